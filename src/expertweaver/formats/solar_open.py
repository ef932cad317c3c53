"""SolarOpenForCausalLM: shared expert and DeepSeek-V3 router, for Llama and Qwen2 beside glm4_moe.

The router's arithmetic is in `parts/sigmoid.py`.
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
    engines=("transformers",),
    selection_bias=True,
    layer_adaptive_share=True,
    shared_expert="advised",
    attention_biases=(QKV_BIASES,),
)


def check(dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
    """Find what of a model solar_open cannot hold."""
    return block_problems("solar_open", CAPABILITIES, dense, dtype)


def config(dense: DenseModel, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json; everything whose class default differs is set explicitly."""
    return {
        **common_config(dense, dtype, "SolarOpenForCausalLM", "solar_open"),
        "attention_bias": bool(dense.traits.biases),
        **router_config(layout),
        **experts_implementation(layout.slice_width),
    }
