"""Every registered method through one suite: what any method must keep to, and what those that are exported must."""

from __future__ import annotations

import pytest
import torch
from support.statistics import FakeLayer, fake_layers

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.calibration.traffic import TrafficSample
from expertweaver.errors import RecipeError
from expertweaver.formats.base import uniform_layout
from expertweaver.methods.base import load_method
from expertweaver.modeling.reference import (
    activation,
    choose_experts,
    dense_ffn,
    designed_ffn,
    neuron_activations,
    running_neurons,
    sparse_ffn,
)
from expertweaver.modeling.values import LayerDesign, NeuronOracle, Router
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection, method_options
from expertweaver.registry import module_names

BUDGETS = [
    SliceBudget(8, 6, 4),
    SliceBudget(8, 6, 6),
    SliceBudget(8, 6, 8),
    SliceBudget(4, 12, 1),
    SliceBudget(2, 24, 1),
]
NEURONS, HIDDEN = 48, 8
ACT = activation("silu")

SETTINGS: list[MethodSection] = [
    *(method_options(name)(name=name) for name in module_names("methods")),
    *(
        method_options(name).model_validate({"name": name, **options})
        for name, options in (
            ("flap", {"bias": False}),
            ("flap", {"scope": "global"}),
            ("flap", {"scope": "global", "bias": False}),
            ("llama_moe", {"split": "gradient"}),
            ("moefication", {"num_shared_slices": 0}),
            ("weave", {"router_bias": False, "shared_share": 0.25}),
            ("weave", {"router_bias": False, "shared_share": 0}),
        )
    ),
]
"""Every method with its defaults, and those whose options lead to a design of another kind."""

STOCK = [section for section in SETTINGS if section.beyond_stock is None]


def label(section: MethodSection) -> str:
    changed = section.model_dump(exclude_defaults=True, exclude={"name"})
    return ",".join([section.name, *(f"{key}={value}" for key, value in changed.items())])


every_method = pytest.mark.parametrize("section", SETTINGS, ids=label)
every_stock_method = pytest.mark.parametrize("section", STOCK, ids=label)
every_budget = pytest.mark.parametrize("budget", BUDGETS, ids=str)


@pytest.fixture(scope="module")
def layers() -> list[FakeLayer]:
    return fake_layers(num_layers=3, neurons=NEURONS, hidden=HIDDEN)


def fresh_tokens(count: int = 20) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1))


def evidence(section: MethodSection, layer: FakeLayer) -> TrafficSample | LayerStatistics:
    if not section.reads_traffic:
        return layer.statistics
    return layer.traffic.sample(section.num_cluster_tokens(layer.weights.num_neurons))


def design_all(
    section: MethodSection, layers: list[FakeLayer], budget: SliceBudget
) -> list[tuple[Allocation, LayerDesign]]:
    method = load_method(section.name)
    allocations = method.allocate(section, [layer.statistics for layer in layers], budget, len(layers))
    return [
        (allocation, method.design(section, index, evidence(section, layer), layer.weights, allocation, budget))
        for index, (layer, allocation) in enumerate(zip(layers, allocations, strict=True))
    ]


def test_methods_of_both_kinds_were_found() -> None:
    assert {section.name for section in SETTINGS} == set(module_names("methods"))
    assert {"expertweaver", "weave", "static", "random", "flap"} <= {section.name for section in STOCK}
    assert {"abstopk", "cmoe", "flap", "read_me"} <= {s.name for s in SETTINGS if s not in STOCK}
    assert [section.name for section in SETTINGS if section.is_oracle] == ["abstopk", "contribution_oracle"]
    assert all(section.beyond_stock for section in SETTINGS if section.is_oracle)


# --- every method -----------------------------------------------------------------------------------------------------


@every_method
@every_budget
def test_as_many_neurons_run_on_fresh_tokens_as_the_budget_says(
    section: MethodSection, layers: list[FakeLayer], budget: SliceBudget
) -> None:
    """On every token; only a global threshold may divide the neurons unevenly among layers."""
    x, wanted, means = fresh_tokens(), budget.active_slices * budget.slice_width, []
    for layer, (allocation, found) in zip(layers, design_all(section, layers, budget), strict=True):
        activations = neuron_activations(x, layer.weights, ACT)
        counts = running_neurons(x, *activations, found, layer.weights.down).sum(dim=1)
        expected = wanted if allocation.num_kept is None else allocation.num_kept
        assert counts.tolist() == [expected] * len(x)
        means.append(expected)
    assert sum(means) == len(layers) * wanted
    assert (len(set(means)) > 1) == ("unequal width" in str(section.beyond_stock) and wanted < NEURONS)


@every_method
def test_a_full_budget_is_the_dense_ffn_and_half_of_it_is_not(section: MethodSection, layers: list[FakeLayer]) -> None:
    x = fresh_tokens()
    full, half = (design_all(section, layers, SliceBudget(8, 6, active)) for active in (8, 4))
    for layer, (_, everything), (_, some) in zip(layers, full, half, strict=True):
        dense = dense_ffn(x, layer.weights, ACT)
        assert torch.allclose(designed_ffn(x, layer.weights, everything, ACT), dense, atol=1e-4)
        assert not torch.allclose(designed_ffn(x, layer.weights, some, ACT), dense, atol=1e-3)


@every_method
@every_budget
def test_ids_are_those_of_neurons_and_stand_once_in_an_expert(
    section: MethodSection, layers: list[FakeLayer], budget: SliceBudget
) -> None:
    for _, found in design_all(section, layers, budget):
        for neurons in (found.partition.shared_neurons, *found.partition.expert_neurons):
            assert neurons.dtype == torch.int64
            assert torch.equal(neurons, neurons.unique()), "ascending, each once"
            assert all(0 <= neuron < NEURONS for neuron in neurons.tolist())


@every_method
def test_the_same_input_gives_the_same_design(section: MethodSection, layers: list[FakeLayer]) -> None:
    first, again = (design_all(section, layers, SliceBudget(8, 6, 4)) for _ in range(2))
    for (_, a), (_, b) in zip(first, again, strict=True):
        assert torch.equal(a.partition.shared_neurons, b.partition.shared_neurons)
        assert all(map(torch.equal, a.partition.expert_neurons, b.partition.expert_neurons))
        assert (a.bias is None) == (b.bias is None)
        assert a.bias is None or (b.bias is not None and torch.equal(a.bias, b.bias))
        x = fresh_tokens()
        assert torch.equal(designed_ffn(x, layers[0].weights, a, ACT), designed_ffn(x, layers[0].weights, b, ACT))


@every_method
def test_the_weights_are_not_touched(section: MethodSection, layers: list[FakeLayer]) -> None:
    before = [(w.gate.clone(), w.up.clone(), w.down.clone()) for w in (layer.weights for layer in layers)]
    design_all(section, layers, SliceBudget(8, 6, 4))
    for layer, parts in zip(layers, before, strict=True):
        assert all(map(torch.equal, (layer.weights.gate, layer.weights.up, layer.weights.down), parts))


@every_method
def test_what_goes_beyond_stock_is_what_the_design_has(section: MethodSection, layers: list[FakeLayer]) -> None:
    """The words of the refusal are true of the design, and a design without words has nothing to refuse."""
    words = section.beyond_stock or ""
    for allocation, found in design_all(section, layers, SliceBudget(8, 6, 4)):
        everything = torch.cat([found.partition.shared_neurons, *found.partition.expert_neurons])
        assert (found.bias is not None) == ("output bias" in words)
        assert (allocation.num_kept is not None) == ("unequal width" in words)
        assert torch.equal(everything.sort().values, torch.arange(NEURONS)) == ("overlapping" not in words)
        assert isinstance(found.router, NeuronOracle) == section.is_oracle == ("oracle" in words)
        assert (not isinstance(found.router, Router | NeuronOracle)) == ("a router" in words)


@pytest.mark.parametrize("section", [s for s in SETTINGS if s.needs_gradients], ids=label)
def test_a_method_without_its_gradients_says_so(section: MethodSection, layers: list[FakeLayer]) -> None:
    from dataclasses import replace

    bare = [replace(layer.statistics, weight_saliency=None, act_saliency=None) for layer in layers]
    without = [replace(layer, statistics=statistics) for layer, statistics in zip(layers, bare, strict=True)]
    with pytest.raises(ValueError, match="no gradients"):
        design_all(section, without, SliceBudget(8, 6, 4))


@pytest.mark.parametrize("name", module_names("methods"))
def test_an_unknown_option_is_refused(name: str) -> None:
    from expertweaver.recipe.loading import make_recipe

    with pytest.raises(RecipeError, match="shaerd"):
        make_recipe("model", settings={"method": name, "method.shaerd": 1})


# --- methods that are exported ----------------------------------------------------------------------------------------


@every_stock_method
@every_budget
def test_the_neurons_are_a_permutation_in_equal_slices(
    section: MethodSection, layers: list[FakeLayer], budget: SliceBudget
) -> None:
    for allocation, found in design_all(section, layers, budget):
        assert 0 <= allocation.num_shared <= budget.max_shared
        partition, router = found.partition, found.router
        assert len(partition.shared_neurons) == allocation.num_shared * budget.slice_width
        assert [len(e) for e in partition.expert_neurons] == [budget.slice_width] * (
            budget.num_slices - allocation.num_shared
        )
        everything = torch.cat([partition.shared_neurons, *partition.expert_neurons])
        assert torch.equal(everything.sort().values, torch.arange(NEURONS))
        assert isinstance(router, Router)
        assert router.num_experts_per_tok == budget.active_slices - allocation.num_shared
        assert router.weight.shape == (partition.num_experts, HIDDEN)
        assert torch.isfinite(router.weight).all()


@every_stock_method
def test_all_experts_on_is_the_dense_ffn(section: MethodSection, layers: list[FakeLayer]) -> None:
    x = fresh_tokens()
    for layer, (_, found) in zip(layers, design_all(section, layers, SliceBudget(8, 6, 4)), strict=True):
        shared = layer.weights.slice(found.partition.shared_neurons)
        experts = [layer.weights.slice(neurons) for neurons in found.partition.expert_neurons]
        everyone = torch.arange(len(experts)).expand(len(x), -1)
        dense = dense_ffn(x, layer.weights, ACT)
        assert torch.allclose(sparse_ffn(x, shared, experts, everyone, ACT), dense, atol=1e-5)
        assert isinstance(found.router, Router)
        chosen = choose_experts(x, found.router)
        assert not torch.allclose(sparse_ffn(x, shared, experts, chosen, ACT), dense, atol=1e-3)


@every_stock_method
@every_budget
def test_the_options_say_what_a_format_must_hold(
    section: MethodSection, layers: list[FakeLayer], budget: SliceBudget
) -> None:
    """A bias of the router, and a share that is the same in every layer: formats are checked against these words."""
    for allocation, found in design_all(section, layers, budget):
        assert isinstance(found.router, Router)
        if not section.needs_selection_bias:
            assert not found.router.bias.any()
        share = section.fixed_share(budget)
        if share is not None:
            assert allocation.num_shared == share
            assert len(found.partition.shared_neurons) == share * budget.slice_width


def test_there_are_methods_for_every_kind_of_format() -> None:
    budget = SliceBudget(8, 6, 4)
    kinds = {(section.needs_selection_bias, section.fixed_share(budget)) for section in STOCK}
    assert {(True, None), (True, 3), (False, None), (False, 0), (False, 1), (False, 2)} <= kinds
    assert all(section.bias_setting for section in STOCK if section.name == "weave")


@every_stock_method
def test_the_design_fits_the_uniform_layout(section: MethodSection, layers: list[FakeLayer]) -> None:
    budget = SliceBudget(8, 6, 4)
    designs = design_all(section, layers, budget)
    layout = uniform_layout([allocation for allocation, _ in designs], budget)
    for allocation, found in designs:
        pinned = allocation.num_shared - layout.num_shared_slices
        assert isinstance(found.router, Router)
        assert layout.num_experts == found.partition.num_experts + pinned
        assert layout.num_experts_per_tok == found.router.num_experts_per_tok + pinned
