"""Oracle: each token runs its neurons of largest |neuron_act| times the norm of the down column.

It knows every activation before it chooses, so it bounds what grouping and routing can reach without repair.
"""

from __future__ import annotations

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import OracleSection, oracle_design, share_nothing
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget


class Options(OracleSection):
    """Options of the contribution oracle: none of its own."""

    name: str = "contribution_oracle"


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
    return oracle_design("contribution", weights, budget)
