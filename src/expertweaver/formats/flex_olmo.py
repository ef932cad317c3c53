"""FlexOlmoForCausalLM: OLMo 2's layers, norms after attention and FFN; routed experts only, softmax over the chosen.

Norms on queries and keys are over the whole projection. Each chosen expert is weighed by nearly 1/K, and `down_proj` is
multiplied by K. Routers have no bias. The class can also leave the softmax over all experts as it is; over the chosen,
the factor K is the smaller one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.dense.model import DenseModel
from expertweaver.errors import Problem
from expertweaver.formats.base import ATTENTION_BIASES, Capabilities, Layout, ServedRouting, StoredLayer
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
    engines=("transformers", "vLLM"),
    attention_biases=(ATTENTION_BIASES,),
    qk_norm="required",
    qk_norm_width="projection",
    norms="after",
)
NAMES = Names()


def check(dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
    """Find what of a model flex_olmo cannot hold."""
    return block_problems("flex_olmo", CAPABILITIES, dense, dtype)


def config(dense: DenseModel, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json; everything whose class default differs is set explicitly."""
    return {
        **common_config(dense, dtype, "FlexOlmoForCausalLM", "flex_olmo"),
        "attention_bias": bool(dense.traits.biases),
        "intermediate_size": layout.slice_width,
        "num_experts": layout.num_experts,
        "num_experts_per_tok": layout.num_experts_per_tok,
        "norm_topk_prob": True,
        "output_router_logits": False,
        **experts_implementation(layout.slice_width),
    }


def store_layer(design: LayerDesign, layout: Layout, probe_inputs: Tensor) -> StoredLayer:
    """Scale the router; the weights of the chosen experts add up to one."""
    return store_softmax(design, layout, probe_inputs, over_chosen=True)


def layer_tensors(layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """Slice the FFN into routed experts under their names on disk."""
    return sliced_tensors(layer, stored, weights, dtype, NAMES)


def set_all_experts_on(mlp: nn.Module) -> None:
    """Zero the router and run all experts with weight one."""
    ffn: Any = mlp
    run_all_experts(ffn.gate, ffn.experts, over_chosen=True)


def load_layer(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load a stock decoder layer from its tensors on disk."""
    load_sliced(module, tensors, NAMES)


def reference_routing(x: Tensor, stored: StoredLayer, layout: Layout) -> ServedRouting:
    """The served model's choice, by the softmax over all experts, and the weights, which add up to K."""
    return softmax_routing(x, stored, layout, over_chosen=True)
