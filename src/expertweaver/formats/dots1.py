"""Dots1ForCausalLM: norms on queries and keys, shared expert and DeepSeek-V3 router: Qwen3 beside glm4_moe.

The router's arithmetic is in `parts/sigmoid.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from expertweaver.dense.model import DenseModel
from expertweaver.errors import Problem
from expertweaver.formats.base import ATTENTION_BIASES, Capabilities, Layout
from expertweaver.formats.parts.configuration import common_config, experts_implementation
from expertweaver.formats.parts.fit import block_problems
from expertweaver.formats.parts.layer import mlp_of as stock_ffn
from expertweaver.formats.parts.sigmoid import (
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
    "layer_tensors",
    "load_layer",
    "reference_routing",
    "set_all_experts_on",
    "stock_ffn",
    "store_layer",
]

CAPABILITIES = Capabilities(
    engines=("transformers", "llama.cpp"),
    selection_bias=True,
    layer_adaptive_share=True,
    shared_expert="advised",
    attention_biases=(ATTENTION_BIASES,),
    qk_norm="required",
)


def check(dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
    """Find what of a model dots1 cannot hold."""
    return block_problems("dots1", CAPABILITIES, dense, dtype)


def config(dense: DenseModel, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json; everything whose class default differs is set explicitly."""
    num_layers = dense.dims.num_hidden_layers
    return {
        **common_config(dense, dtype, "Dots1ForCausalLM", "dots1"),
        "attention_bias": bool(dense.traits.biases),
        "sliding_window": None,
        "max_window_layers": num_layers,
        "layer_types": ["full_attention"] * num_layers,
        **router_config(layout),
        "first_k_dense_replace": 0,
        **experts_implementation(layout.slice_width),
    }
