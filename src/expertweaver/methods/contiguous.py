"""Baseline: neurons cut into slices in the order the checkpoint has them, with a mean-gate router.

With all branches on it is the plain slicing of MLPMoE, the identity test of a converter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import SharingSection, same_shared, sliced_design
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget


class Options(SharingSection):
    """Options of the split in order."""

    name: str = "contiguous"
    num_shared_slices: int = Field(default=1, ge=0, description="First slices that are always on.")


def allocate(
    options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """The same few shared slices in every layer."""
    return same_shared(options.num_shared_slices, num_layers, budget)


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Split in order."""
    return sliced_design(torch.arange(weights.num_neurons), weights, allocation, budget)
