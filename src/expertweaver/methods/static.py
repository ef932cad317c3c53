"""Baseline: static FFN pruning; the neurons of highest mean squared contribution always run, the rest never.

A contribution is |neuron_act| times the norm of the neuron's down column. The checkpoint keeps the neurons that
never run as experts that are never chosen, so that every method is measured through the same code path. With `repair`
it is the control that shows how much of a method's gain is repair rather than routing.
"""

from __future__ import annotations

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import PruningSection, pruned_design, share_most
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget


class Options(PruningSection):
    """Options of static pruning."""

    name: str = "static"


allocate = share_most


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Rank the neurons once, for all tokens."""
    return pruned_design(evidence.contribution, weights, allocation, budget)
