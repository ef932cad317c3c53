"""GraniteMoeSharedForCausalLM: constants for embeddings, residuals, attention and logits; softmax over the chosen.

The stock class for Granite, whose constants no other has. Each chosen expert is weighed by nearly 1/K, and `down_proj`
is multiplied by K. Routers have no bias. The shared expert may be of any width, or left out. It runs other activations
than silu in transformers only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.model import DenseModel
from expertweaver.formats.base import ATTENTION_BIASES, Capabilities, Layout, StoredLayer
from expertweaver.formats.parts.fit import ACTIVATION, BIASES, DYNAMIC, HEADS, SILU
from expertweaver.formats.parts.softmax import SoftmaxFormat
from expertweaver.modeling.values import GLUWeights

LOADED_AS = {
    "block_sparse_moe.input_linear.weight": "block_sparse_moe.experts.gate_up_proj",
    "block_sparse_moe.output_linear.weight": "block_sparse_moe.experts.down_proj",
    "block_sparse_moe.router.layer.weight": "block_sparse_moe.router.weight",
}
"""Names on disk and in the stock class."""


def own_config(dense: DenseModel, layout: Layout) -> dict[str, Any]:
    """Keys beside those that all formats have."""
    scales = dense.traits.scales
    attention = dense.dims.head_dim**-0.5 if scales.attention is None else scales.attention
    return {
        "attention_bias": bool(dense.traits.biases),
        "embedding_multiplier": scales.embedding,
        "residual_multiplier": scales.residual,
        "attention_multiplier": attention,
        "logits_scaling": scales.logits,
        "intermediate_size": layout.slice_width,
        "shared_intermediate_size": layout.num_shared_slices * layout.slice_width,
        "num_local_experts": layout.num_experts,
        "num_experts_per_tok": layout.num_experts_per_tok,
        "output_router_logits": False,
    }


class GraniteFFN(nn.Module):
    """Both halves of a stock layer's FFN as one module."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.routed, self.shared = layer.block_sparse_moe, layer.shared_mlp

    def forward(self, x: Tensor) -> Tensor:
        """Map FFN inputs [B, T, H] to outputs [B, T, H]."""
        return self.routed(x) if self.shared is None else self.routed(x) + self.shared(x)


class FusedExperts(SoftmaxFormat):
    """A softmax router over experts that lie in one tensor on disk, and a shared expert beside them."""

    def layer_tensors(
        self, layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Slice the FFN into routed experts, fused as the class has them, and the shared one if there is one."""
        prefix, written = layer_prefix(layer), stored.written(weights, dtype)
        experts = [written.slice(neurons) for neurons in stored.expert_neurons]
        tensors = {
            "block_sparse_moe.input_linear.weight": torch.stack([_gate_up(expert) for expert in experts]),
            "block_sparse_moe.output_linear.weight": torch.stack([expert.down for expert in experts]),
            "block_sparse_moe.router.layer.weight": stored.router_weight.to(dtype),
        }
        if len(stored.shared_neurons):
            shared = written.slice(stored.shared_neurons)
            tensors["shared_mlp.input_linear.weight"] = _gate_up(shared)
            tensors["shared_mlp.output_linear.weight"] = shared.down.contiguous()
        return {prefix + name: tensor for name, tensor in tensors.items()}

    def stock_ffn(self, layer: nn.Module) -> nn.Module:
        """The routed and the shared half of a stock layer's FFN."""
        return GraniteFFN(layer)

    def set_all_experts_on(self, mlp: nn.Module) -> None:
        """Zero the router and run all experts with weight one."""
        ffn: Any = mlp
        self.run_all(ffn.routed.router, ffn.routed.experts)

    def load_layer(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Load a stock decoder layer from its tensors on disk."""
        module.load_state_dict({LOADED_AS.get(name, name): t for name, t in tensors.items()}, strict=True, assign=True)


def _gate_up(weights: GLUWeights) -> Tensor:
    return torch.cat([weights.gate, weights.up])


FORMAT = FusedExperts(
    model_type="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    capabilities=Capabilities(
        engines=("transformers", "vLLM", "llama.cpp"),
        not_served={
            BIASES: ("vLLM",),
            ACTIVATION: ("vLLM", "llama.cpp"),
            HEADS: ("vLLM",),
            DYNAMIC: ("llama.cpp",),
        },
        shared_expert="optional",
        attention_biases=(ATTENTION_BIASES,),
        scales=True,
        activations=(*SILU, "gelu_pytorch_tanh", "gelu"),
    ),
    own_config=own_config,
    over_chosen=True,
    chosen_by_logits=True,
)
