"""One neuron that speaks for its expert: the nearest to the middle of the cluster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def representatives(features: Tensor, clusters: Sequence[Tensor]) -> Tensor:
    """Row nearest each cluster's mean.

    Args:
        features: [n, d].
        clusters: Row ids of each of the E clusters, ascending.

    Returns:
        Row ids [E] int64; ties go to the lower id.

    Source: CMoE (2502.04416), its representative neurons.
    """
    nearest = []
    for rows in clusters:
        members = features[rows].double()
        distance = (members - members.mean(dim=0)).square().sum(dim=1)
        nearest.append(rows[torch.sort(distance, stable=True).indices[0]])
    return torch.stack(nearest)
