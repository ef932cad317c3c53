"""ExpertWeaver (arXiv 2602.15521): layer-adaptive shared expert, balanced k-means on profiles, mean-gate router.

The paper contradicts itself in places; both readings are options. `profile: abs` takes the mean |gate_act| per
sample (what its text, figure and CV range imply), `signed` the mean gate_act (what its formula says).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import remaining_neurons
from expertweaver.modeling.values import GLUWeights, LayerDesign, Partition
from expertweaver.partition.allocation import (
    Allocation,
    allocate_shared,
    coefficient_of_variation,
    strongest_neurons,
)
from expertweaver.partition.balanced import balanced_kmeans
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection, Seed
from expertweaver.router.mean_gate import mean_gate_router


class Options(MethodSection):
    """Options of the paper's method, with the paper's values as defaults."""

    name: str = "expertweaver"
    profile: Literal["abs", "signed"] = Field(
        default="abs", description="Mean of |gate_act| or of gate_act per sample."
    )
    tau: float | Literal["auto"] = Field(
        default=0.6, description="A neuron whose CV exceeds it varies; auto: a quantile."
    )
    tau_quantile: float = Field(
        default=0.5, ge=0, le=1, description="With tau auto: quantile of the CVs of all layers."
    )
    alpha_min: float = Field(default=0.2, ge=0, le=1, description="Shared share of a layer whose neurons all vary.")
    alpha_max: float = Field(default=0.7, ge=0, le=1, description="Shared share of a layer whose neurons never vary.")
    alpha_relative_to: Literal["all", "active"] = Field(
        default="all", description="Share of all slices, or of the active."
    )
    seed: Seed = Field(default=0, description="Of the clustering's starting points.")

    @model_validator(mode="after")
    def _ordered(self) -> Options:
        if self.alpha_min > self.alpha_max:
            raise ValueError(f"alpha_min {self.alpha_min:g} to be at most alpha_max {self.alpha_max:g}")
        if self.tau != "auto" and self.tau <= 0:
            raise ValueError("tau positive or 'auto'")
        return self


def allocate(
    options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """Share more slices in layers whose neurons vary less over samples (steps 1 and 2)."""
    spreads = [coefficient_of_variation(layer.profile(options.profile)) for layer in statistics]
    tau = _quantile(spreads, options.tau_quantile) if options.tau == "auto" else options.tau
    return [
        allocate_shared(
            cv,
            budget,
            tau=tau,
            alpha_min=options.alpha_min,
            alpha_max=options.alpha_max,
            relative_to_active=options.alpha_relative_to == "active",
        )
        for cv in spreads
    ]


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Share the neurons of highest mean |gate_act|, cluster the rest by profile, route by mean gate (steps 3 to 5)."""
    shared = strongest_neurons(evidence.mean_abs(), allocation.num_shared * budget.slice_width)
    rest = remaining_neurons(shared, weights.num_neurons)
    num_experts = budget.num_slices - allocation.num_shared
    clusters = balanced_kmeans(evidence.profile(options.profile)[rest], num_experts, seed=options.seed + layer)
    experts = [rest[cluster] for cluster in clusters]
    router = mean_gate_router(weights.gate, experts, budget.active_slices - allocation.num_shared)
    return LayerDesign(Partition(shared, experts), router)


def _quantile(spreads: list[torch.Tensor], quantile: float) -> float:
    return float(torch.cat(spreads).sort().values[round(quantile * (sum(map(len, spreads)) - 1))])
