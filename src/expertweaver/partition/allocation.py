"""How much each layer shares or keeps: by the spread of activations over samples, or by one threshold for all."""

from __future__ import annotations

from collections.abc import Sequence
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
        num_kept: Neurons that always run, where a method prunes neurons and layers differ; None where it has slices.
    """

    num_shared: int
    alpha: float | None = None
    r: float | None = None
    tau: float | None = None
    clip: str | None = None
    cv: Tensor | None = None
    num_kept: int | None = None


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


def kept_over_layers(scores: Sequence[Tensor], total: int) -> list[int]:
    """Divide a number of kept neurons among layers by one threshold on scores that are z-scored within each layer.

    Args:
        scores: Score of every neuron, [F], for each of the L layers.
        total: Neurons kept in all layers together; at least L, because every layer keeps its best neuron.

    Returns:
        Kept neurons of each layer; they sum to `total`. Ties go to the lower layer, then the lower id.

    Source: FLAP (2312.11983), its standardised global structure search.
    """
    standard = []
    for score in scores:
        values = (score.double() - score.double().mean()) / (score.double().std(correction=0) + EPSILON)
        values[int(values.argmax())] = torch.inf
        standard.append(values)
    owner = torch.arange(len(scores)).repeat_interleave(torch.tensor([len(score) for score in scores]))
    order = torch.sort(torch.cat(standard), descending=True, stable=True).indices
    return torch.bincount(owner[order[:total]], minlength=len(scores)).tolist()


def strongest_neurons(score: Tensor, count: int) -> Tensor:
    """Ids of the `count` neurons of highest score, in ascending order; ties go to the lower id."""
    order = torch.sort(score, descending=True, stable=True).indices
    return order[:count].sort().values
