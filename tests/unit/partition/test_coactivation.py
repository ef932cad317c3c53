from __future__ import annotations

import torch

from expertweaver.partition.coactivation import coactivation_features, marker_features


def strength() -> tuple[torch.Tensor, torch.Tensor]:
    """Random strengths of 30 neurons on 2000 tokens, and their marks at 5 a token."""
    values = torch.rand(2000, 30, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.8, 1.2, 30)
    return values, torch.zeros(2000, 30).scatter_(1, values.topk(5, dim=1).indices, 1)


def test_counts_are_exact_and_distances_of_marks_are_kept_about() -> None:
    values, marks = strength()
    features, counts = marker_features(values.split(300), 2000, 5, dims=1024, seed=0)
    assert torch.equal(counts, marks.sum(dim=0))
    exact, found = torch.cdist(marks.T, marks.T), torch.cdist(features, features)
    apart = ~torch.eye(30, dtype=torch.bool)
    assert ((found / exact)[apart] - 1).abs().max() < 0.15


def test_batches_do_not_matter() -> None:
    values, _ = strength()
    (a, counts), (b, again) = (marker_features(values.split(n), 2000, 5, dims=16, seed=1) for n in (7, 2000))
    assert torch.allclose(a, b, atol=1e-4)
    assert torch.equal(counts, again)


def test_coactivation_features_are_the_columns_at_unit_length() -> None:
    values, marks = strength()
    features = coactivation_features(values, 5, dims=4096, seed=0)
    assert ((features.norm(dim=1) - 1).abs() < 0.1)[marks.sum(dim=0) > 0].all()
