"""Routers without a bias: softmax scores that add up to one, over all experts or over the chosen ones.

The router is scaled by a power of two until every logit is near zero, so that each of n scores that add up to one is
nearly 1/n. `down_proj` of the routed experts is multiplied by n in return, so that each weighs one. n is E where the
softmax runs over all experts, and K where it runs over the chosen. In float32 the product is exact to a rounding. In
bfloat16 it rounds `down_proj` once more, unless n is a power of two or the repair had it in float32 anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.formats.base import DownScales, Layout, ServedRouting, StoredLayer
from expertweaver.formats.parts.folding import centred_weight, routing_kept, scale_log2, stock_router, stored_slices
from expertweaver.formats.parts.layer import PLAIN, Names, load_sliced, sliced_tensors
from expertweaver.formats.parts.stock import StockFormat
from expertweaver.modeling.reference import choose_largest
from expertweaver.modeling.values import GLUWeights, LayerDesign

MAX_ABS_LOGIT = 3e-3
"""A weight that is exp(logit) over a mean is then exact to 3e-3 where all experts are in the mean."""


@dataclass(frozen=True)
class SoftmaxFormat(StockFormat):
    """A stock class with this router.

    Attributes:
        over_chosen: Whether the scores of the chosen experts add up to one, rather than those of all.
        names: Where the FFN is on disk.
        chosen_by_logits: The class takes the largest logits; otherwise the largest scores, which may tie in float32.
        shared_scale: What the shared expert's `down_proj` is multiplied by.
    """

    over_chosen: bool
    names: Names = PLAIN
    chosen_by_logits: bool = False
    shared_scale: float = 1.0

    def store_layer(self, design: LayerDesign, layout: Layout, probe_inputs: Tensor) -> StoredLayer:
        """Scale the router, and note what `down_proj` is multiplied by.

        Args:
            design: The layer's partition and router, whose bias is zero.
            layout: The uniform sizes; every layer shares exactly its share.
            probe_inputs: FFN inputs that set the range of the router's logits, [P, H].
        """
        router, slices = stock_router(design), stored_slices(design.partition, layout)
        assert slices.num_pinned == 0, "planning refuses layers that share unlike"
        assert not router.bias.any(), "planning refuses routers with a bias"
        weight = centred_weight(router)
        if not weight.any():  # nothing to choose by, and no bias to prefer lower ids with: any choice is as good
            weight = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).bfloat16().float()
        log2 = scale_log2(weight, probe_inputs, MAX_ABS_LOGIT)
        weight = weight * 2.0**log2
        logits = probe_inputs @ weight.T
        chosen, _ = choose_largest(logits if self.over_chosen else logits.softmax(dim=-1), layout.num_experts_per_tok)
        total = layout.num_experts_per_tok if self.over_chosen else layout.num_experts
        return StoredLayer(
            shared_neurons=slices.shared_neurons,
            expert_neurons=slices.expert_neurons,
            router_weight=weight,
            selection_bias=torch.zeros(len(weight)),
            scale_log2=log2,
            max_abs_logit=float(logits.abs().max()),
            routing_kept=routing_kept(chosen, router, probe_inputs),
            down=design.down,
            scales=DownScales(self.shared_scale, float(total)),
        )

    def layer_tensors(
        self, layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Slice the FFN into experts under their names on disk."""
        return sliced_tensors(layer, stored, weights, dtype, self.names)

    def set_all_experts_on(self, mlp: nn.Module) -> None:
        """Zero the router and run all experts with weight one."""
        ffn: Any = mlp
        self.run_all(ffn.gate, ffn.experts)

    def run_all(self, router: Any, experts: Any) -> None:
        """Zero a stock router, whose scores are then all equal, and run all experts.

        Scores over the chosen experts now add up to one over all E instead of K, which `down_proj` makes up for.
        """
        with torch.no_grad():
            router.weight.zero_()
            if self.over_chosen:
                experts.down_proj.mul_(router.num_experts / router.top_k)
        router.top_k = router.num_experts

    def load_layer(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Load a stock decoder layer from its tensors on disk."""
        load_sliced(module, tensors, self.names)

    def reference_routing(self, x: Tensor, stored: StoredLayer, layout: Layout) -> ServedRouting:
        """Choice and weights in our own arithmetic, with the factor of `down_proj` counted into the weights."""
        logits = nn.functional.linear(x.float(), stored.router_weight.float())
        scores = logits.softmax(dim=-1)
        chosen, tied = choose_largest(logits if self.chosen_by_logits else scores, layout.num_experts_per_tok)
        weights = scores / scores.gather(1, chosen).sum(dim=1, keepdim=True) if self.over_chosen else scores
        return ServedRouting(chosen, weights * stored.scales.routed, tied)
