"""Layer-adaptive shared shares from the spread of activations over samples (ExpertWeaver, step 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expertweaver.partition.budget import SliceBudget

EPSILON = 1e-12


@dataclass(frozen=True)
class Allocation:
    """How many slices of one layer are shared, and why.

    Attributes:
        num_shared: Shared slices, n_s.
        alpha: The shared share asked for, before rounding and clipping; None where a method does not use one.
        r: Share of neurons whose coefficient of variation exceeds tau; None likewise.
        tau: The threshold; None likewise.
        clip: What was clipped, in words; None if nothing.
        cv: Coefficients of variation [F]; None likewise.
    """

    num_shared: int
    alpha: float | None = None
    r: float | None = None
    tau: float | None = None
    clip: str | None = None
    cv: Tensor | None = None


def coefficient_of_variation(profile: Tensor) -> Tensor:
    """Standard deviation over samples relative to |mean|: profile [F, N] to [F].

    Source: ExpertWeaver (arXiv 2602.15521), step 2; |mean| makes it meaningful for signed profiles too.
    """
    return profile.std(dim=1, correction=0) / (profile.mean(dim=1).abs() + EPSILON)


def allocate_shared(
    cv: Tensor, budget: SliceBudget, *, tau: float, alpha_min: float, alpha_max: float, relative_to_active: bool
) -> Allocation:
    """Choose a layer's shared slices: the more neurons vary over samples, the fewer are shared.

    Args:
        cv: Coefficients of variation [F].
        budget: The slices.
        tau: Above it a neuron counts as varying.
        alpha_min: Shared share if every neuron varies.
        alpha_max: Shared share if none does.
        relative_to_active: Take alpha as a share of the active slices instead of all slices.

    Source: ExpertWeaver (arXiv 2602.15521), step 2; taking it relative to the active slices is ours.
    """
    r = float((cv > tau).double().mean())
    alpha = alpha_max - (alpha_max - alpha_min) * r
    base = budget.active_slices if relative_to_active else budget.num_slices
    wanted = int(alpha * base + 0.5)
    num_shared = min(wanted, budget.max_shared)
    clip = None
    if num_shared != wanted:
        clip = f"{wanted} shared slices clipped to {num_shared}, so that {budget.active_slices - num_shared} are routed"
    return Allocation(num_shared, alpha, r, tau, clip, cv)


def strongest_neurons(score: Tensor, count: int) -> Tensor:
    """Ids of the `count` neurons of highest score, in ascending order; ties go to the lower id."""
    order = torch.sort(score, descending=True, stable=True).indices
    return order[:count].sort().values
