"""LLaMA-MoE's splits (2406.16554, v2 2411.15708): at random, or shared neurons by gradient importance.

Theirs is a start for training, with a router that is trained too; here, without training, the router is the
mean-gate router of `random`. So `split: random` is the same as the method `random`; v2's is `split: gradient`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import (
    SharingSection,
    gathered,
    random_order,
    remaining_neurons,
    share_as_asked,
    sliced_design,
)
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation, strongest_neurons
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import Seed


class Options(SharingSection):
    """Options of LLaMA-MoE's splits."""

    name: str = "llama_moe"
    split: Literal["random", "gradient"] = Field(
        default="random", description="Shared neurons at random, or by |neuron_act * its gradient|; the rest at random."
    )
    num_shared_slices: int = Field(default=1, ge=0, description="Slices that are always on.")
    seed: Seed = Field(default=0, description="Of the split.")

    @property
    def needs_gradients(self) -> bool:
        """Only v2 looks at gradients."""
        return self.split == "gradient"


allocate = share_as_asked


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Split at random, after the shared neurons were set aside where gradients choose them."""
    num_neurons = weights.num_neurons
    if options.split == "random":
        order = random_order(num_neurons, seed=options.seed, layer=layer)
    else:
        importance = gathered(evidence.act_saliency)
        shared = strongest_neurons(importance, allocation.num_shared * budget.slice_width)
        rest = remaining_neurons(shared, num_neurons)
        order = torch.cat([shared, rest[random_order(len(rest), seed=options.seed, layer=layer)]])
    return sliced_design(order, weights, allocation, budget)
