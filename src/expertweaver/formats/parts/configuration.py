"""What the configurations of all formats say alike."""

from __future__ import annotations

from typing import Any

import torch

from expertweaver.dense.model import DenseModel
from expertweaver.partition.budget import GROUPED_BLOCK

KEPT = ("initializer_range", "rms_norm_eps", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")


def common_config(dense: DenseModel, dtype: torch.dtype, architecture: str, model_type: str) -> dict[str, Any]:
    """Sizes, positions and ids, from the source; the head is always stored."""
    import transformers

    dims = dense.dims
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "dtype": str(dtype).removeprefix("torch."),
        "transformers_version": transformers.__version__,
        "vocab_size": dims.vocab_size,
        "hidden_size": dims.hidden_size,
        "intermediate_size": dims.intermediate_size,
        "num_hidden_layers": dims.num_hidden_layers,
        "num_attention_heads": dims.num_attention_heads,
        "num_key_value_heads": dims.num_key_value_heads,
        "head_dim": dims.head_dim,
        "hidden_act": dims.hidden_act,
        "max_position_embeddings": dims.max_position_embeddings,
        "rope_parameters": dict(dense.config["rope_parameters"]),
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        **{key: dense.config.get(key) for key in KEPT},
    }


def experts_implementation(slice_width: int) -> dict[str, str]:
    """Ask transformers for its plain loop over experts where its default kernel would refuse the width."""
    return {} if slice_width % GROUPED_BLOCK == 0 else {"experts_implementation": "eager"}
