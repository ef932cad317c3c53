"""Which neurons are strong on the same tokens."""

from __future__ import annotations

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

    Source: METHODS, weave step 2.
    """
    num_tokens, num_neurons = contribution.shape
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(num_tokens, dims, generator=generator) / dims**0.5
    features = torch.zeros(num_neurons, dims)
    counts = torch.zeros(num_neurons)
    for part, directions in zip(contribution.split(1024), projection.split(1024), strict=True):
        marks = torch.zeros_like(part).scatter_(1, part.topk(num_strongest, dim=1).indices, 1.0)
        features += marks.T @ directions
        counts += marks.sum(dim=0)
    return features / counts.clamp_min(1).sqrt()[:, None]
