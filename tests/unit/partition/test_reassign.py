from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertweaver.partition.coactivation import coactivation_features, contributions
from expertweaver.partition.reassign import captured_energy, improve_by_swaps


def energy(gain: torch.Tensor, labels: torch.Tensor) -> float:
    return float(gain.gather(1, labels[:, None]).sum())


@settings(max_examples=60, deadline=None)
@given(experts=st.integers(2, 5), size=st.integers(1, 5), seed=st.integers(0, 999))
def test_swaps_never_lose_energy_and_keep_the_sizes(experts: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gain = torch.rand(experts * size, experts, generator=generator, dtype=torch.float64)
    labels = torch.arange(experts).repeat(size)
    found = improve_by_swaps(gain, labels)
    assert energy(gain, found) >= energy(gain, labels) - 1e-12
    assert torch.bincount(found, minlength=experts).tolist() == [size] * experts
    again = improve_by_swaps(gain, found)
    assert torch.equal(again, found), "a second call finds nothing left to swap"


@pytest.mark.parametrize("seed", range(8))
def test_two_experts_are_divided_as_well_as_can_be(seed: int) -> None:
    """For two experts the swaps reach the best of all balanced assignments."""
    gain = torch.rand(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = improve_by_swaps(gain, torch.arange(8) % 2)
    best = max(
        sum(float(gain[j, 0 if j in chosen else 1]) for j in range(8)) for chosen in itertools.combinations(range(8), 4)
    )
    assert energy(gain, found) == pytest.approx(best)


def test_captured_energy_by_hand() -> None:
    neuron_act = torch.tensor([[1.0, -3.0], [4.0, 0.5]])  # two neurons on two tokens
    running = torch.tensor([[True, False, True], [False, True, True]])
    expected = torch.tensor([[1.0, 9.0, 10.0], [4.0, 0.0625, 4.0625]], dtype=torch.float64)
    assert torch.equal(captured_energy(neuron_act, torch.tensor([1.0, 0.5]), running), expected)


def test_contribution_is_the_norm_of_what_a_neuron_adds() -> None:
    generator = torch.Generator().manual_seed(0)
    act, down = torch.randn(5, 3, generator=generator), torch.randn(4, 3, generator=generator)
    added = act[:, :, None] * down.T[None]  # [T, F, H]
    assert torch.allclose(contributions(act, down), added.norm(dim=2))


def test_neurons_strong_on_the_same_tokens_look_alike() -> None:
    contribution = torch.rand(400, 6, generator=torch.Generator().manual_seed(0))
    contribution[:200, :3] += 2
    contribution[200:, 3:] += 2
    features = torch.nn.functional.normalize(coactivation_features(contribution, 3, dims=64, seed=0), dim=1)
    alike = features @ features.T
    assert alike[:3, :3].min() > 0.8
    assert alike[:3, 3:].max() < 0.3


def test_a_neuron_that_is_never_strong_has_features_without_nan() -> None:
    contribution = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    contribution[:, 2] = 0
    assert coactivation_features(contribution, 2, dims=8, seed=0)[2].tolist() == [0.0] * 8
