"""Baseline: neurons cut into slices in the order the checkpoint has them, with a mean-gate router.

With all branches on it is the plain slicing of MLPMoE, the identity test of a converter.
"""

from __future__ import annotations

import torch
from pydantic import Field

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import SharingSection, share_as_asked, sliced_design
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget


class Options(SharingSection):
    """Options of the split in order."""

    name: str = "contiguous"
    num_shared_slices: int = Field(default=1, ge=0, description="First slices that are always on.")


allocate = share_as_asked


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
