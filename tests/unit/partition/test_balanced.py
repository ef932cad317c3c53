from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertweaver.errors import PartitionError
from expertweaver.partition.balanced import assign_greedily, balanced_kmeans


@settings(max_examples=40, deadline=None)
@given(clusters=st.integers(1, 7), size=st.integers(1, 6), seed=st.integers(0, 99), dim=st.integers(1, 4))
def test_clusters_are_an_equal_partition(clusters: int, size: int, seed: int, dim: int) -> None:
    features = torch.randn(clusters * size, dim, generator=torch.Generator().manual_seed(seed))
    found = balanced_kmeans(features, clusters, seed=seed)
    assert [len(cluster) for cluster in found] == [size] * clusters
    assert torch.equal(torch.cat(found).sort().values, torch.arange(clusters * size))


def test_clear_groups_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 4
    centres = 20 * torch.eye(4)
    features = centres[truth] + torch.randn(60, 4, generator=generator)
    found = balanced_kmeans(features, 4, seed=1)
    assert sorted(truth[cluster].unique().tolist() for cluster in found) == [[0], [1], [2], [3]]


def test_same_seed_same_clusters_and_the_seed_matters() -> None:
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    first, again = (balanced_kmeans(features, 8, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = balanced_kmeans(features, 8, seed=4)
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_identical_rows_are_divided_all_the_same() -> None:
    found = balanced_kmeans(torch.ones(12, 3), 4, seed=0)
    assert [len(cluster) for cluster in found] == [3] * 4


def test_unequal_division_is_refused() -> None:
    with pytest.raises(PartitionError, match="divides 10 rows"):
        balanced_kmeans(torch.randn(10, 2), 3, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_assignment_is_the_plain_loop(seed: int) -> None:
    """Against the definition: all pairs by distance, first come first served."""
    distances = np.random.default_rng(seed).integers(0, 6, size=(1500, 3)).astype(float)  # many ties, several chunks
    labels = np.full(1500, -1)
    room = [500] * 3
    pairs = sorted(itertools.product(range(1500), range(3)), key=lambda pair: distances[pair])
    for row, cluster in pairs:
        if labels[row] < 0 and room[cluster] > 0:
            labels[row] = cluster
            room[cluster] -= 1
    assert np.array_equal(assign_greedily(distances, 500), labels)


def test_clustering_beats_a_random_split() -> None:
    features = torch.randn(128, 6, generator=torch.Generator().manual_seed(0)).double()

    def inertia(parts: list[torch.Tensor]) -> float:
        return sum(float((features[p] - features[p].mean(dim=0)).square().sum()) for p in parts)

    assert inertia(balanced_kmeans(features, 8, seed=0)) < 0.8 * inertia(list(torch.arange(128).view(8, 16)))


def test_given_starting_rows_take_the_place_of_the_seed() -> None:
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    start = torch.arange(0, 64, 8)
    first, again = (balanced_kmeans(features, 8, seed=seed, start=start) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = balanced_kmeans(features, 8, seed=3, start=start + 1)
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    one_round = balanced_kmeans(features, 8, seed=0, start=start, max_iterations=1)
    assert all(int(row) in cluster.tolist() for row, cluster in zip(start, one_round, strict=True))
