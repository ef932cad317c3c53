"""Qwen2MoeForCausalLM: shared expert behind a gate, softmax over all experts; routers without a bias.

Each routed expert is weighed by its share of the softmax, nearly 1/E, and the shared expert by the sigmoid of a gate,
nearly 1/2: `down_proj` is multiplied by E and by 2. The gate's weight is tiny and never zero: llama.cpp computes the
sigmoid as silu(z) / z, which is not a number at zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.model import DenseModel
from expertweaver.formats.base import QKV_BIASES, Capabilities, Layout, StoredLayer
from expertweaver.formats.parts.fit import DYNAMIC, FACTORS, HEADS
from expertweaver.formats.parts.layer import Names
from expertweaver.formats.parts.softmax import SoftmaxFormat
from expertweaver.modeling.values import GLUWeights

SHARED_GATE = 2.0**-26
"""Every weight of the shared expert's gate; with inputs that add up to 500, twice the sigmoid is 1 to 4e-6."""


def own_config(dense: DenseModel, layout: Layout) -> dict[str, Any]:
    """Keys beside those that all formats have."""
    num_layers = dense.dims.num_hidden_layers
    return {
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
    }


class GatedShared(SoftmaxFormat):
    """A softmax router, and a gate before the shared expert."""

    def layer_tensors(
        self, layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Slice the FFN into shared and routed experts, and gate the shared one."""
        tensors = super().layer_tensors(layer, stored, weights, dtype)
        gate = torch.full((1, stored.router_weight.shape[1]), SHARED_GATE)
        return tensors | {f"{layer_prefix(layer)}mlp.shared_expert_gate.weight": gate.to(dtype)}


FORMAT = GatedShared(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    capabilities=Capabilities(
        engines=("transformers", "vLLM", "llama.cpp"),
        not_served=dict.fromkeys((DYNAMIC, FACTORS, HEADS), ("llama.cpp",)),
        shared_expert="required",
        attention_biases=(QKV_BIASES,),
    ),
    own_config=own_config,
    names=Names(shared="mlp.shared_expert."),
    over_chosen=False,
    shared_scale=2.0,
)
