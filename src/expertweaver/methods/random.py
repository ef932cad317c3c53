"""Baseline: a random equal split with a mean-gate router; what any method must beat.

Source: the split of LLaMA-MoE, with a router from the weights instead of a trained one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import equal_experts
from expertweaver.modeling.values import GLUWeights, LayerDesign, Partition
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection, Seed
from expertweaver.router.mean_gate import mean_gate_router


class Options(MethodSection):
    """Options of the random split."""

    name: str = "random"
    num_shared_slices: int = Field(default=1, ge=0, description="Random slices that are always on.")
    seed: Seed = Field(default=0, description="Of the split.")


def allocate(
    options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """The same few shared slices in every layer."""
    wanted = options.num_shared_slices
    num_shared = min(wanted, budget.max_shared)
    clip = None if num_shared == wanted else f"{wanted} shared slices clipped to {num_shared}"
    return [Allocation(num_shared, clip=clip)] * num_layers


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Split at random."""
    generator = torch.Generator().manual_seed(options.seed * 100_003 + layer)
    order = torch.randperm(weights.num_neurons, generator=generator)
    num_shared = allocation.num_shared * budget.slice_width
    experts = equal_experts(order[num_shared:], budget.num_slices - allocation.num_shared)
    router = mean_gate_router(weights.gate, experts, budget.active_slices - allocation.num_shared)
    return LayerDesign(Partition(order[:num_shared].sort().values, experts), router)
