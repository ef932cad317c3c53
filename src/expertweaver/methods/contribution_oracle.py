"""Oracle: each token runs its neurons of largest |neuron_act| times the norm of the down column.

It knows every activation before it chooses, so it bounds what grouping and routing can reach without repair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.modeling.values import GLUWeights, LayerDesign, NeuronOracle, Partition
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection


class Options(MethodSection):
    """Options of the contribution oracle: none of its own."""

    name: str = "contribution_oracle"

    @property
    def is_oracle(self) -> bool:
        """It looks at all activations first."""
        return True

    @property
    def beyond_stock(self) -> str:
        """Nothing that is served can know this."""
        return "an oracle's knowledge of every activation"


def allocate(
    options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """Nothing is shared: every token chooses among all neurons."""
    return [Allocation(0)] * num_layers


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """One expert of all neurons, of which each token runs its strongest."""
    everyone = Partition(torch.empty(0, dtype=torch.int64), [torch.arange(weights.num_neurons)])
    return LayerDesign(everyone, NeuronOracle("contribution", budget.active_slices * budget.slice_width))
