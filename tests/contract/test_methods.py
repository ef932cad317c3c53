"""Every registered method through one suite: what any method must keep to."""

from __future__ import annotations

import pytest
import torch
from support.statistics import FakeLayer, fake_layers

from expertweaver.errors import RecipeError
from expertweaver.formats.base import uniform_layout
from expertweaver.methods.base import load_method
from expertweaver.modeling.reference import activation, choose_experts, dense_ffn, sparse_ffn
from expertweaver.modeling.values import LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import method_options
from expertweaver.registry import module_names

BUDGETS = [
    SliceBudget(8, 6, 4),
    SliceBudget(8, 6, 6),
    SliceBudget(8, 6, 8),
    SliceBudget(4, 12, 1),
    SliceBudget(2, 24, 1),
]


@pytest.fixture(scope="module")
def layers() -> list[FakeLayer]:
    return fake_layers(num_layers=3, neurons=48)


@pytest.fixture(params=module_names("methods"))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def design_all(name: str, layers: list[FakeLayer], budget: SliceBudget) -> list[tuple[Allocation, LayerDesign]]:
    method, options = load_method(name), method_options(name)(name=name)
    allocations = method.allocate(options, [layer.statistics for layer in layers], budget)
    return [
        (allocation, method.design(options, index, layer.statistics, layer.weights, allocation, budget))
        for index, (layer, allocation) in enumerate(zip(layers, allocations, strict=True))
    ]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_neurons_are_a_permutation_in_equal_slices(name: str, layers: list[FakeLayer], budget: SliceBudget) -> None:
    for allocation, found in design_all(name, layers, budget):
        assert 0 <= allocation.num_shared <= budget.max_shared
        partition = found.partition
        assert len(partition.shared_neurons) == allocation.num_shared * budget.slice_width
        assert [len(e) for e in partition.expert_neurons] == [budget.slice_width] * (
            budget.num_slices - allocation.num_shared
        )
        everything = torch.cat([partition.shared_neurons, *partition.expert_neurons])
        assert torch.equal(everything.sort().values, torch.arange(48))
        assert found.router.num_experts_per_tok == budget.active_slices - allocation.num_shared
        assert found.router.weight.shape == (partition.num_experts, 8)
        assert torch.isfinite(found.router.weight).all()


def test_all_experts_on_is_the_dense_ffn(name: str, layers: list[FakeLayer]) -> None:
    act = activation("silu")
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    for layer, (_, found) in zip(layers, design_all(name, layers, SliceBudget(8, 6, 4)), strict=True):
        shared = layer.weights.slice(found.partition.shared_neurons)
        experts = [layer.weights.slice(neurons) for neurons in found.partition.expert_neurons]
        everyone = torch.arange(len(experts)).expand(20, -1)
        assert torch.allclose(
            sparse_ffn(x, shared, experts, everyone, act), dense_ffn(x, layer.weights, act), atol=1e-5
        )
        chosen = choose_experts(x, found.router)
        assert not torch.allclose(
            sparse_ffn(x, shared, experts, chosen, act), dense_ffn(x, layer.weights, act), atol=1e-3
        )


def test_the_same_input_gives_the_same_design(name: str, layers: list[FakeLayer]) -> None:
    first, again = (design_all(name, layers, SliceBudget(8, 6, 4)) for _ in range(2))
    for (_, a), (_, b) in zip(first, again, strict=True):
        assert torch.equal(a.partition.shared_neurons, b.partition.shared_neurons)
        assert all(map(torch.equal, a.partition.expert_neurons, b.partition.expert_neurons))
        assert torch.equal(a.router.weight, b.router.weight)


def test_the_design_fits_the_uniform_layout(name: str, layers: list[FakeLayer]) -> None:
    budget = SliceBudget(8, 6, 4)
    designs = design_all(name, layers, budget)
    layout = uniform_layout([allocation for allocation, _ in designs], budget)
    for allocation, found in designs:
        pinned = allocation.num_shared - layout.num_shared_slices
        assert layout.num_experts == found.partition.num_experts + pinned
        assert layout.num_experts_per_tok == found.router.num_experts_per_tok + pinned


def test_an_unknown_option_is_refused(name: str) -> None:
    from expertweaver.recipe.loading import make_recipe

    with pytest.raises(RecipeError, match="shaerd"):
        make_recipe("model", settings={"method": name, "method.shaerd": 1})
