from __future__ import annotations

import pytest
import torch

from expertweaver.partition.allocation import (
    allocate_shared,
    coefficient_of_variation,
    kept_over_layers,
    strongest_neurons,
)
from expertweaver.partition.budget import SliceBudget

BUDGET = SliceBudget(num_slices=64, slice_width=1, active_slices=48)


def allocate(cv: list[float], *, budget: SliceBudget = BUDGET, relative: bool = False):
    return allocate_shared(
        torch.tensor(cv, dtype=torch.float64),
        budget,
        tau=0.6,
        alpha_min=0.2,
        alpha_max=0.7,
        relative_to_active=relative,
    )


def test_coefficient_of_variation_by_hand() -> None:
    profile = torch.tensor([[1.0, 3.0], [-2.0, -2.0], [-1.0, -3.0]], dtype=torch.float64)
    assert coefficient_of_variation(profile).tolist() == pytest.approx([0.5, 0.0, 0.5])


def test_half_of_the_neurons_varying_takes_the_middle_share() -> None:
    found = allocate([0.1, 0.9])
    assert (found.r, found.alpha) == (0.5, pytest.approx(0.45))
    assert found.num_shared == 29  # round(0.45 * 64 = 28.8)
    assert found.clip is None


@pytest.mark.parametrize(("cv", "shared"), [([0.1, 0.1], 45), ([0.9, 0.9], 13)])
def test_extremes(cv: list[float], shared: int) -> None:
    assert allocate(cv).num_shared == shared


def test_a_neuron_exactly_at_tau_does_not_vary() -> None:
    assert allocate([0.6, 0.6]).r == 0.0
    assert allocate([0.6, 0.6000001]).r == 0.5


def test_half_rounds_up() -> None:
    budget = SliceBudget(num_slices=10, slice_width=1, active_slices=8)
    assert allocate([0.1, 0.9], budget=budget).num_shared == 5  # 4.5


def test_clipping_is_told() -> None:
    half = SliceBudget(num_slices=64, slice_width=1, active_slices=32)
    found = allocate([0.1], budget=half)
    assert found.num_shared == 31
    assert found.clip == "45 shared slices clipped to 31, so that 1 are routed"


def test_relative_to_active_never_clips_at_half() -> None:
    half = SliceBudget(num_slices=64, slice_width=1, active_slices=32)
    found = allocate([0.1], budget=half, relative=True)
    assert (found.num_shared, found.clip) == (22, None)


def test_strongest_neurons_are_sorted_and_ties_go_to_the_lower_id() -> None:
    assert strongest_neurons(torch.tensor([1.0, 5.0, 5.0, 0.0, 5.0]), 2).tolist() == [1, 2]


def test_one_threshold_over_layers_by_hand() -> None:
    """Scores are compared within their layer first: a layer of large numbers has no advantage."""
    flat, peaked = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 0.0, 0.0, 800.0])
    # z-scores: -1.34, -0.45, 0.45, 1.34 and -0.58, -0.58, -0.58, 1.73
    assert kept_over_layers([flat, peaked], 2) == [1, 1]
    assert kept_over_layers([flat, peaked], 4) == [3, 1]
    assert kept_over_layers([1000 * flat, peaked], 4) == [3, 1]
    assert kept_over_layers([flat, peaked], 7) == [3, 4]


def test_every_layer_keeps_a_neuron() -> None:
    flat, steep = torch.ones(4), torch.tensor([0.0, 0.0, 5.0, 5.0])
    assert kept_over_layers([steep, flat], 3) == [2, 1]
    assert kept_over_layers([flat, steep, flat], 4) == [1, 2, 1]
