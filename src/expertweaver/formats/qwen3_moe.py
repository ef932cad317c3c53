"""Qwen3MoeForCausalLM: norms on queries and keys, routed experts only, softmax over the chosen.

Each chosen expert is weighed by nearly 1/K, and `down_proj` is multiplied by K. Routers have no bias. The class can
also leave the softmax over all experts as it is; llama.cpp always makes the chosen add up to one, so this is the form.
"""

from __future__ import annotations

from typing import Any

from expertweaver.dense.model import DenseModel
from expertweaver.formats.base import ATTENTION_BIASES, Capabilities, Layout
from expertweaver.formats.parts.fit import BIASES, DYNAMIC, FACTORS
from expertweaver.formats.parts.softmax import SoftmaxFormat


def own_config(dense: DenseModel, layout: Layout) -> dict[str, Any]:
    """Keys beside those that all formats have."""
    return {
        "attention_bias": bool(dense.traits.biases),
        "use_sliding_window": False,
        "sliding_window": None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": layout.slice_width,
        "num_experts": layout.num_experts,
        "num_experts_per_tok": layout.num_experts_per_tok,
        "norm_topk_prob": True,
        "output_router_logits": False,
    }


FORMAT = SoftmaxFormat(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    capabilities=Capabilities(
        engines=("transformers", "vLLM", "llama.cpp"),
        not_served=dict.fromkeys((BIASES, DYNAMIC, FACTORS), ("llama.cpp",)),
        attention_biases=(ATTENTION_BIASES,),
        qk_norm="required",
    ),
    own_config=own_config,
    over_chosen=True,
)
