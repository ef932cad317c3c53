"""The DeepSeek-V3 router: sigmoid scores, a bias that takes part in the choice only, weights times a constant.

The training-free model is a plain sum of experts, but these classes weigh each by routed_scaling_factor *
sigmoid(logit). So the router is scaled by a power of two until every logit is near zero: 2 * sigmoid(0) = 1, and the
order of the experts stays. Near zero the sigmoid has slope 1/4, which turns a router's bias b into a selection bias
b / 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.dense.accounting import layer_prefix
from expertweaver.formats.base import Layout, ServedRouting, StoredLayer
from expertweaver.formats.parts.folding import centred_weight, routing_kept, scale_log2, stock_router, stored_slices
from expertweaver.formats.parts.layer import Names, load_sliced, sliced_tensors
from expertweaver.formats.parts.stock import StockFormat
from expertweaver.modeling.reference import choose_by_sigmoid, sigmoid_scores
from expertweaver.modeling.values import GLUWeights, LayerDesign, Router

MAX_ABS_LOGIT = 6e-3
"""Unit weights are then exact to 3e-3 in float32; rounded to bfloat16, those of logits above -3.9e-3 are one."""

PINNED_BIAS = 2.0
"""Selection bias of an expert that is always chosen; scores lie in (0, 1)."""

ROUTED_SCALING_FACTOR = 2.0
NAMES = Names(shared="mlp.shared_experts.")


def router_config(layout: Layout) -> dict[str, Any]:
    """What config.json says of the experts; one group, no dense layer, weights that are not normalised."""
    return {
        "moe_intermediate_size": layout.slice_width,
        "n_routed_experts": layout.num_experts,
        "num_experts_per_tok": layout.num_experts_per_tok,
        "n_shared_experts": layout.num_shared_slices,
        "routed_scaling_factor": ROUTED_SCALING_FACTOR,
        "norm_topk_prob": False,
        "n_group": 1,
        "topk_group": 1,
    }


@dataclass(frozen=True)
class SigmoidFormat(StockFormat):
    """A stock class with this router and one shared expert."""

    def store_layer(self, design: LayerDesign, layout: Layout, probe_inputs: Tensor) -> StoredLayer:
        """Fold the router into the format's arithmetic and pin the shared slices that exceed the layout's.

        Args:
            design: The layer's partition and router.
            layout: The uniform sizes.
            probe_inputs: FFN inputs that set the range of the router's logits, [P, H].
        """
        router, slices = stock_router(design), stored_slices(design.partition, layout)
        weight, bias, log2 = fold_router(router, probe_inputs)
        stored_weight = torch.cat([torch.zeros(slices.num_pinned, weight.shape[1]), weight])
        stored_bias = torch.cat([torch.full((slices.num_pinned,), PINNED_BIAS), bias])
        chosen, _ = choose_by_sigmoid(probe_inputs, stored_weight, stored_bias, layout.num_experts_per_tok)
        return StoredLayer(
            shared_neurons=slices.shared_neurons,
            expert_neurons=slices.expert_neurons,
            router_weight=stored_weight,
            selection_bias=stored_bias,
            scale_log2=log2,
            max_abs_logit=float((probe_inputs @ weight.T).abs().max()),
            routing_kept=routing_kept(chosen, router, probe_inputs, slices.num_pinned),
            down=design.down,
        )

    def layer_tensors(
        self, layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Slice the FFN into shared and routed experts under their names on disk."""
        tensors = sliced_tensors(layer, stored, weights, dtype, NAMES)
        tensors[f"{layer_prefix(layer)}mlp.gate.e_score_correction_bias"] = stored.selection_bias
        return tensors

    def set_all_experts_on(self, mlp: nn.Module) -> None:
        """Zero the router, whose sigmoid is then exactly 1/2 for every expert, and run all experts."""
        ffn: Any = mlp
        with torch.no_grad():
            ffn.gate.weight.zero_()
            ffn.gate.e_score_correction_bias.zero_()
        ffn.gate.top_k = ffn.gate.num_experts

    def load_layer(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Load a stock decoder layer from its tensors on disk."""
        load_sliced(module, tensors, NAMES)

    def reference_routing(self, x: Tensor, stored: StoredLayer, layout: Layout) -> ServedRouting:
        """The served model's choice and weights, in our own arithmetic."""
        chosen, tied = choose_by_sigmoid(x, stored.router_weight, stored.selection_bias, layout.num_experts_per_tok)
        return ServedRouting(chosen, sigmoid_scores(x, stored.router_weight) * ROUTED_SCALING_FACTOR, tied)


def fold_router(router: Router, probe_inputs: Tensor) -> tuple[Tensor, Tensor, int]:
    """Turn an affine router into a nearly constant sigmoid router that chooses the same experts.

    The mean over experts is subtracted (the order stays) and weights are rounded to bfloat16, unless the method has
    done so already; then everything is multiplied by a power of two, which is exact.

    Returns:
        Weight [E, H], selection bias [E], and the power of two.
    """
    weight, bias = centred_weight(router), router.bias - router.bias.mean()
    if not weight.any() and not bias.any():  # nothing to choose by: lower ids first, the same in every engine
        bias = -torch.arange(len(bias), dtype=torch.float32)
    log2 = scale_log2(weight, probe_inputs, MAX_ABS_LOGIT)
    return weight * 2.0**log2, bias * 2.0**log2 / 4, log2
