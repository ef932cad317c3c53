"""Qwen2MoeForCausalLM: shared expert behind a gate, softmax over all experts; routers without a bias.

Each routed expert is weighed by its share of the softmax, nearly 1/E, and the shared expert by the sigmoid of a gate,
nearly 1/2: `down_proj` is multiplied by E and by 2. The gate's weight is tiny and never zero: llama.cpp computes the
sigmoid as silu(z) / z, which is not a number at zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.model import DenseModel
from expertweaver.errors import Problem
from expertweaver.formats.base import QKV_BIASES, Capabilities, Layout, ServedRouting, StoredLayer
from expertweaver.formats.parts.configuration import common_config, experts_implementation
from expertweaver.formats.parts.fit import block_problems
from expertweaver.formats.parts.layer import Names, load_sliced, sliced_tensors
from expertweaver.formats.parts.layer import mlp_of as stock_ffn
from expertweaver.formats.parts.softmax import run_all_experts, softmax_routing, store_softmax
from expertweaver.modeling.values import GLUWeights, LayerDesign

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
    engines=("transformers", "vLLM", "llama.cpp"),
    shared_expert="required",
    attention_biases=(QKV_BIASES,),
)
NAMES = Names(shared="mlp.shared_expert.")
SHARED_GATE = 2.0**-26
"""Every weight of the shared expert's gate; with inputs that add up to 500, twice the sigmoid is 1 to 4e-6."""


def check(dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
    """Find what of a model qwen2_moe cannot hold."""
    return block_problems("qwen2_moe", CAPABILITIES, dense, dtype)


def config(dense: DenseModel, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json; everything whose class default differs is set explicitly."""
    num_layers = dense.dims.num_hidden_layers
    return {
        **common_config(dense, dtype, "Qwen2MoeForCausalLM", "qwen2_moe"),
        "qkv_bias": bool(dense.traits.biases),
        "use_sliding_window": False,
        "max_window_layers": num_layers,
        "layer_types": ["full_attention"] * num_layers,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": layout.slice_width,
        "shared_expert_intermediate_size": layout.num_shared_slices * layout.slice_width,
        "num_experts": layout.num_experts,
        "num_experts_per_tok": layout.num_experts_per_tok,
        "norm_topk_prob": False,
        "output_router_logits": False,
        **experts_implementation(layout.slice_width),
    }


def store_layer(design: LayerDesign, layout: Layout, probe_inputs: Tensor) -> StoredLayer:
    """Scale the router; the softmax runs over all experts."""
    return store_softmax(design, layout, probe_inputs, over_chosen=False, shared_scale=2.0)


def layer_tensors(layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """Slice the FFN into shared and routed experts, and gate the shared one."""
    tensors = sliced_tensors(layer, stored, weights, dtype, NAMES)
    gate = torch.full((1, stored.router_weight.shape[1]), SHARED_GATE)
    return tensors | {f"{layer_prefix(layer)}mlp.shared_expert_gate.weight": gate.to(dtype)}


def set_all_experts_on(mlp: nn.Module) -> None:
    """Zero the router, whose softmax is then exactly 1/E for every expert, and run all experts."""
    ffn: Any = mlp
    run_all_experts(ffn.gate, ffn.experts, over_chosen=False)


def load_layer(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load a stock decoder layer from its tensors on disk."""
    load_sliced(module, tensors, NAMES)


def reference_routing(x: Tensor, stored: StoredLayer, layout: Layout) -> ServedRouting:
    """The served model's choice and weights, in our own arithmetic."""
    return softmax_routing(x, stored, layout, over_chosen=False)
