"""Baseline: a random equal split with a mean-gate router; what any method must beat.

Source: the split of LLaMA-MoE, with a router from the weights instead of a trained one.
"""

from __future__ import annotations

from pydantic import Field

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import SharingSection, random_order, share_as_asked, sliced_design
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import Seed


class Options(SharingSection):
    """Options of the random split."""

    name: str = "random"
    num_shared_slices: int = Field(default=1, ge=0, description="Random slices that are always on.")
    seed: Seed = Field(default=0, description="Of the split.")


allocate = share_as_asked


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Split at random."""
    order = random_order(weights.num_neurons, seed=options.seed, layer=layer)
    return sliced_design(order, weights, allocation, budget)
