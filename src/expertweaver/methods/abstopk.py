"""Oracle (ExpertWeaver's AbsTopK-GLU): each token runs its neurons of largest |gate_act|.

It knows every gate activation before it chooses, so it bounds what any grouping and routing by gates can reach.
"""

from __future__ import annotations

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import OracleSection, oracle_design, share_nothing
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget


class Options(OracleSection):
    """Options of AbsTopK: none of its own."""

    name: str = "abstopk"


allocate = share_nothing


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """One expert of all neurons, of which each token runs its strongest."""
    return oracle_design("gate", weights, budget)
