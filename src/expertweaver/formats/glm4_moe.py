"""Glm4MoeForCausalLM: shared expert and DeepSeek-V3 router; native in transformers, vLLM, SGLang and llama.cpp.

Its attention covers that of most Llama-like families. The router's arithmetic is in `parts/sigmoid.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from expertweaver.dense.model import DenseModel
from expertweaver.errors import Problem
from expertweaver.formats.base import QKV_BIASES, Capabilities, Layout
from expertweaver.formats.parts.configuration import common_config, experts_implementation
from expertweaver.formats.parts.fit import block_problems
from expertweaver.formats.parts.layer import mlp_of as stock_ffn
from expertweaver.formats.parts.sigmoid import (
    fold_router,
    layer_tensors,
    load_layer,
    reference_routing,
    router_config,
    set_all_experts_on,
    store_layer,
)

__all__ = [
    "CAPABILITIES",
    "check",
    "config",
    "fold_router",
    "layer_tensors",
    "load_layer",
    "reference_routing",
    "set_all_experts_on",
    "stock_ffn",
    "store_layer",
]

CAPABILITIES = Capabilities(
    engines=("transformers", "vLLM", "SGLang", "llama.cpp"),
    selection_bias=True,
    layer_adaptive_share=True,
    shared_expert="advised",
    attention_biases=(QKV_BIASES,),
    qk_norm="optional",
    partial_rotary=True,
)


def check(dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
    """Find what of a model glm4_moe cannot hold."""
    return block_problems("glm4_moe", CAPABILITIES, dense, dtype)


def config(dense: DenseModel, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json; everything whose class default differs is set explicitly."""
    common = common_config(dense, dtype, "Glm4MoeForCausalLM", "glm4_moe")
    partial = common["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    return {
        **common,
        "partial_rotary_factor": partial,
        "attention_bias": bool(dense.traits.biases),
        "use_qk_norm": dense.traits.qk_norm != "none",
        **router_config(layout),
        "first_k_dense_replace": 0,
        "num_nextn_predict_layers": 0,
        **experts_implementation(layout.slice_width),
    }
