"""Splits and rankings of the baselines, by hand on statistics whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from support.statistics import fake_layers

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods import contiguous, llama_moe, llm_pruner, moefication, random
from expertweaver.modeling.values import GLUWeights, LayerDesign, Router
from expertweaver.partition.budget import SliceBudget

BUDGET = SliceBudget(num_slices=8, slice_width=6, active_slices=4)
[LAYER] = fake_layers(num_layers=1, neurons=48)


def design(
    method: ModuleType,
    statistics: LayerStatistics = LAYER.statistics,
    weights: GLUWeights = LAYER.weights,
    layer: int = 0,
    **options: object,
) -> LayerDesign:
    chosen = method.Options.model_validate(options)
    allocation = method.allocate(chosen, [statistics], BUDGET, 1)[0]
    return method.design(chosen, layer, statistics, weights, allocation, BUDGET)


def mean_gate_rows(found: LayerDesign, weights: GLUWeights = LAYER.weights) -> bool:
    router = found.router
    assert isinstance(router, Router)
    rows = torch.stack([weights.gate[neurons].mean(dim=0) for neurons in found.partition.expert_neurons])
    return torch.allclose(router.weight, rows) and not router.bias.any()


def experts_of(found: LayerDesign) -> list[list[int]]:
    return [neurons.tolist() for neurons in found.partition.expert_neurons]


def test_contiguous_keeps_the_order_of_the_checkpoint() -> None:
    found = design(contiguous, num_shared_slices=2)
    assert found.partition.shared_neurons.tolist() == list(range(12))
    assert experts_of(found) == [list(range(start, start + 6)) for start in range(12, 48, 6)]
    assert mean_gate_rows(found)
    assert found.router == replace(found.router, num_experts_per_tok=2)


def test_more_shared_slices_than_the_budget_allows_are_clipped_and_told() -> None:
    [allocation] = contiguous.allocate(contiguous.Options(num_shared_slices=9), [LAYER.statistics], BUDGET, 1)
    assert allocation.num_shared == 3
    assert allocation.clip == "9 shared slices clipped to 3"


def test_llm_pruner_runs_the_neurons_of_highest_weight_saliency() -> None:
    saliency = torch.arange(48, dtype=torch.float64).flip(0)
    statistics = replace(LAYER.statistics, weight_saliency=saliency, act_saliency=saliency.flip(0))
    found = design(llm_pruner, statistics)
    router = found.router
    assert isinstance(router, Router)
    assert found.partition.shared_neurons.tolist() == list(range(18)), "three of the four active slices"
    assert experts_of(found) == [list(range(start, start + 6)) for start in range(18, 48, 6)]
    assert router.num_experts_per_tok == 1
    assert int(router.bias.argmax()) == 0
    assert not router.weight.any()
    assert llm_pruner.Options().needs_gradients


def test_llama_moe_at_random_is_the_random_split() -> None:
    for layer, seed in ((0, 0), (3, 1)):
        found, split = (design(method, layer=layer, seed=seed) for method in (llama_moe, random))
        assert torch.equal(found.partition.shared_neurons, split.partition.shared_neurons)
        assert experts_of(found) == experts_of(split)
        assert mean_gate_rows(found)
    assert not llama_moe.Options().needs_gradients


def test_llama_moe_by_gradient_shares_the_neurons_of_highest_act_saliency() -> None:
    saliency = torch.zeros(48, dtype=torch.float64)
    important = [1, 5, 9, 11, 20, 30, 31, 32, 40, 45, 46, 47]
    saliency[important] = 1
    statistics = replace(LAYER.statistics, act_saliency=saliency, weight_saliency=1 - saliency)
    found, other = (design(llama_moe, statistics, split="gradient", num_shared_slices=2, seed=seed) for seed in (0, 1))
    assert found.partition.shared_neurons.tolist() == other.partition.shared_neurons.tolist() == important
    assert experts_of(found) != experts_of(other), "the rest is split at random"
    assert experts_of(found) != sorted(experts_of(found)), "not in order"
    assert mean_gate_rows(found)
    assert llama_moe.Options(split="gradient").needs_gradients


def planted_gates() -> tuple[GLUWeights, torch.Tensor]:
    """Gate rows in eight directions of very different lengths, in mixed order."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.arange(48) % 8
    lengths = 10 ** torch.empty(48, 1).uniform_(-2, 2, generator=generator)
    gate = (torch.eye(8)[direction] + 0.02 * torch.randn(48, 8, generator=generator)) * lengths
    return replace(LAYER.weights, gate=gate), direction


def test_moefication_groups_gate_rows_by_direction_whatever_their_length() -> None:
    weights, direction = planted_gates()
    found = design(moefication, weights=weights, num_shared_slices=0)
    assert sorted(direction[n].unique().tolist() for n in found.partition.expert_neurons) == [[d] for d in range(8)]
    assert mean_gate_rows(found, weights)
    assert len(found.partition.shared_neurons) == 0


def test_moefication_always_runs_the_clusters_of_largest_contribution() -> None:
    weights, direction = planted_gates()
    contribution = torch.where((direction == 5) | (direction == 2), 2.0, 1.0).double()
    statistics = replace(LAYER.statistics, contribution=contribution)
    found = design(moefication, statistics, weights, num_shared_slices=2)
    assert direction[found.partition.shared_neurons].unique().tolist() == [2, 5]
    assert found.partition.num_experts == 6
