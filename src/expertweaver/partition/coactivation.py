"""Which neurons are strong on the same tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def contributions(neuron_act: Tensor, down: Tensor) -> Tensor:
    """How much each neuron adds to each token's output: |neuron_act| * ||down column||, [T, F]."""
    return neuron_act.abs() * down.norm(dim=0)


def coactivation_features(contribution: Tensor, num_strongest: int, *, dims: int, seed: int) -> Tensor:
    """Describe each neuron by the tokens on which it is among the strongest.

    Args:
        contribution: [T, F].
        num_strongest: Neurons marked on each token.
        dims: Width of the random projection of the token axis.
        seed: Of the projection.

    Returns:
        Features of unit norm before projection, [F, dims].

    Source: docs/concepts.md, weave step 3 (`clusters: coactivation`).
    """
    parts = contribution.split(1024)
    features, counts = marker_features(parts, len(contribution), num_strongest, dims=dims, seed=seed)
    return features / counts.clamp_min(1).sqrt()[:, None]


def marker_features(
    strength: Iterable[Tensor], num_tokens: int, num_strongest: int, *, dims: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Mark each token's strongest neurons and project every neuron's column of marks to a few dimensions.

    The random projection keeps distances between columns up to about 1 / sqrt(dims), in memory that does not grow
    with the tokens.

    Args:
        strength: Batches of tokens, [t, F] each.
        num_tokens: T, of all batches together.
        num_strongest: Neurons marked on each token.
        dims: Width of the projection.
        seed: Of the projection.

    Returns:
        Projected columns [F, dims], and how many tokens marked each neuron [F] float32.
    """
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(num_tokens, dims, generator=generator) / dims**0.5
    features, counts, start = torch.zeros(0, dims), torch.zeros(0), 0
    for part in strength:
        if start == 0:
            features, counts = torch.zeros(part.shape[1], dims), torch.zeros(part.shape[1])
        marks = torch.zeros_like(part).scatter_(1, part.topk(num_strongest, dim=1).indices, 1.0)
        features += marks.T @ projection[start : start + len(part)]
        counts += marks.sum(dim=0)
        start += len(part)
    return features, counts


def projected(features: Tensor, dims: int, *, seed: int) -> Tensor:
    """Rows of at most `dims` numbers that keep the distances of wider rows, [n, d] to [n, min(d, dims)]."""
    width = features.shape[1]
    if width <= dims:
        return features
    return features @ (torch.randn(width, dims, generator=torch.Generator().manual_seed(seed)) / dims**0.5)
