"""Dots1ForCausalLM: norms on queries and keys, shared expert and DeepSeek-V3 router: Qwen3 beside glm4_moe.

The router's arithmetic is in `parts/sigmoid.py`.
"""

from __future__ import annotations

from typing import Any

from expertweaver.dense.model import DenseModel
from expertweaver.formats.base import ATTENTION_BIASES, Capabilities, Layout
from expertweaver.formats.parts.fit import BIASES, DYNAMIC, FACTORS, GROUPED
from expertweaver.formats.parts.sigmoid import SigmoidFormat, router_config


def own_config(dense: DenseModel, layout: Layout) -> dict[str, Any]:
    """Keys beside those that all formats have."""
    num_layers = dense.dims.num_hidden_layers
    return {
        "attention_bias": bool(dense.traits.biases),
        "sliding_window": None,
        "max_window_layers": num_layers,
        "layer_types": ["full_attention"] * num_layers,
        **router_config(layout),
        "first_k_dense_replace": 0,
    }


FORMAT = SigmoidFormat(
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    capabilities=Capabilities(
        engines=("transformers", "llama.cpp"),
        not_served=dict.fromkeys((BIASES, DYNAMIC, FACTORS, GROUPED), ("llama.cpp",)),
        selection_bias=True,
        layer_adaptive_share=True,
        shared_expert="advised",
        attention_biases=(ATTENTION_BIASES,),
        qk_norm="required",
    ),
    own_config=own_config,
)
