"""Baseline: static FFN pruning; the neurons of highest mean squared contribution always run, the rest never.

A contribution is |neuron_act| times the norm of the neuron's down column. The checkpoint keeps the neurons that
never run as experts that are never chosen, so that every method is measured through the same code path.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import LayerDesign, equal_experts
from expertweaver.modeling.values import GLUWeights, Partition, Router
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection


class Options(MethodSection):
    """Static pruning has no options."""

    name: str = "static"


def allocate(options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget) -> list[Allocation]:
    """Share as much as the format allows; the last active slices are experts that are always chosen."""
    return [Allocation(budget.max_shared)] * len(statistics)


def design(
    options: Options,
    layer: int,
    statistics: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Rank the neurons once, for all tokens."""
    ranking = torch.sort(statistics.contribution, descending=True, stable=True).indices
    num_shared = allocation.num_shared * budget.slice_width
    num_experts = budget.num_slices - allocation.num_shared
    experts = equal_experts(ranking[num_shared:], num_experts)
    num_chosen = budget.active_slices - allocation.num_shared
    bias = (torch.arange(num_experts) < num_chosen).float()
    router = Router(torch.zeros(num_experts, weights.gate.shape[1]), bias, num_chosen)
    return LayerDesign(Partition(ranking[:num_shared].sort().values, experts), router)
