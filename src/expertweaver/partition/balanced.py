"""Balanced k-means: clusters of exactly equal size, fast enough for the widest FFN."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from expertweaver.errors import PartitionError, Problem


def balanced_kmeans(
    features: Tensor, num_clusters: int, *, seed: int, max_iterations: int = 20, start: Tensor | None = None
) -> list[Tensor]:
    """Cluster the rows of `features` into clusters of exactly equal size.

    Each round assigns rows greedily: of all (row, cluster) pairs the nearest first, as long as the row is free and
    the cluster has room; then centroids move to their means. The round of least inertia is kept. Deterministic:
    float64 distances, ties broken by row and cluster id, k-means++ starts from `seed`.

    Args:
        features: [n, d]; n must be a multiple of `num_clusters`.
        num_clusters: E.
        seed: Of the starting centroids.
        max_iterations: Rounds at most; fewer when the assignment repeats.
        start: Rows that the centroids start at, [E] int64; None lets k-means++ draw them.

    Returns:
        Row ids of each cluster, ascending, int64.

    Raises:
        PartitionError: The rows cannot be divided equally.

    Source: ExpertWeaver (arXiv 2602.15521), step 4; the greedy assignment is one of the ways MoEfication
    (2110.01786) and its successors balance k-means. Memory is linear in n x E.
    """
    num_rows = len(features)
    if num_clusters < 1 or num_rows % num_clusters:
        expected = f"a number of clusters that divides {num_rows} rows"
        raise PartitionError(Problem("balanced clustering", expected, str(num_clusters), "Change num_slices."))
    rows = features.detach().double().numpy()
    capacity = num_rows // num_clusters
    generator = np.random.default_rng(seed)
    centroids = _starting_centroids(rows, num_clusters, generator) if start is None else rows[start.numpy()]
    best: tuple[float, np.ndarray] | None = None
    previous = None
    for _ in range(max_iterations):
        distances = _squared_distances(rows, centroids)
        labels = assign_greedily(distances, capacity)
        centroids = _means(rows, labels, num_clusters)
        inertia = float(_squares(rows, centroids[labels]).sum())
        if best is None or inertia < best[0]:
            best = (inertia, labels)
        if previous is not None and np.array_equal(labels, previous):
            break
        previous = labels
    assert best is not None
    return [torch.from_numpy(np.flatnonzero(best[1] == cluster)) for cluster in range(num_clusters)]


def assign_greedily(distances: np.ndarray, capacity: int) -> np.ndarray:
    """Give every row a cluster, nearest pairs first, at most `capacity` rows each.

    Args:
        distances: [n, E].
        capacity: Rows a cluster may take; n <= E * capacity.

    Returns:
        Cluster of each row, [n].
    """
    num_rows, num_clusters = distances.shape
    order = np.argsort(distances, axis=None, kind="stable")
    labels = np.full(num_rows, -1)
    room = np.full(num_clusters, capacity)
    chunk = max(num_rows, 1024)
    for start in range(0, len(order), chunk):
        row, cluster = np.divmod(order[start : start + chunk], num_clusters)
        candidates = np.flatnonzero((labels[row] < 0) & (room[cluster] > 0))
        for r, c in zip(row[candidates].tolist(), cluster[candidates].tolist(), strict=True):
            if labels[r] < 0 and room[c] > 0:
                labels[r] = c
                room[c] -= 1
    return labels


def _squared_distances(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    cross = rows @ centroids.T
    return np.maximum((rows**2).sum(axis=1)[:, None] - 2 * cross + (centroids**2).sum(axis=1)[None, :], 0)


def _squares(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared differences, in the memory of the others."""
    return np.square(np.subtract(rows, others, out=others), out=others)


def _means(rows: np.ndarray, labels: np.ndarray, num_clusters: int) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    return rows[order].reshape(num_clusters, -1, rows.shape[1]).mean(axis=1)


def _starting_centroids(rows: np.ndarray, num_clusters: int, generator: np.random.Generator) -> np.ndarray:
    """k-means++: each further centroid is a row drawn in proportion to its squared distance to the chosen ones."""
    chosen = [int(generator.integers(len(rows)))]
    nearest = ((rows - rows[chosen[0]]) ** 2).sum(axis=1)
    for _ in range(num_clusters - 1):
        nearest[chosen] = 0
        total = nearest.sum()
        free = np.setdiff1d(np.arange(len(rows)), chosen, assume_unique=True)
        pick = int(generator.choice(len(rows), p=nearest / total)) if total > 0 else int(generator.choice(free))
        chosen.append(pick)
        nearest = np.minimum(nearest, ((rows - rows[pick]) ** 2).sum(axis=1))
    return rows[chosen]
