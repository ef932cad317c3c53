"""What a method is: a module with `Options`, `allocate` and `design`.

`allocate` sees the statistics of all layers and decides how many slices each layer shares at least; `design` then turns
one layer's evidence and weights into a partition and a router. The evidence is the layer's statistics in the dense
model, or, for a method whose options say `reads_traffic`, its tokens in the model converted so far. Both are functions
from values to values. The repair of down_proj is not a method's business: it follows any design that asks for it
(`method.repair`). The first line of the module's docstring is its description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection
from expertweaver.registry import load_module


class Method(Protocol):
    """The contract of a method module."""

    Options: type[MethodSection]

    def allocate(
        self, options: Any, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
    ) -> list[Allocation]:
        """Decide every layer's number of shared slices, or the fewest its design may share.

        `statistics` is empty for a method that reads traffic.
        """
        ...

    def design(
        self,
        options: Any,
        layer: int,
        evidence: Any,
        weights: GLUWeights,
        allocation: Allocation,
        budget: SliceBudget,
    ) -> LayerDesign:
        """Decide one layer's partition and router."""
        ...


def load_method(name: str) -> Method:
    """A registered method by its name."""
    return cast("Method", load_module("methods", name))


def remaining_neurons(shared: Tensor, num_neurons: int) -> Tensor:
    """Ids of the neurons that are not shared, ascending."""
    mask = torch.ones(num_neurons, dtype=torch.bool)
    mask[shared] = False
    return mask.nonzero().squeeze(-1)


def equal_experts(neurons: Tensor, num_experts: int) -> list[Tensor]:
    """Cut an id vector into equal experts, in order; ids ascending inside each."""
    return [part.sort().values for part in neurons.view(num_experts, -1)]
