"""Weave against the paper's method and its own ablations, on a made-up FFN whose neurons work in groups."""

from __future__ import annotations

import pytest
import torch

from expertweaver.calibration.statistics import LayerStatistics, StatisticsAccumulator, TokenBatch
from expertweaver.methods import expertweaver, static, weave
from expertweaver.modeling.reference import activation, choose_experts, dense_ffn, neuron_activations, sparse_ffn
from expertweaver.modeling.values import GLUWeights, LayerDesign, Router
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import Recipe, SourceSection

BUDGET = SliceBudget(num_slices=8, slice_width=8, active_slices=4)
ACT = activation("silu")
HIDDEN, NEURONS, GROUPS = 16, 64, 8


def inputs(num_tokens: int, seed: int) -> torch.Tensor:
    """Each token belongs to two of eight directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.eye(HIDDEN)[:GROUPS]
    pairs = torch.randint(GROUPS, (num_tokens, 2), generator=generator)
    return 3 * directions[pairs].sum(dim=1) + 0.3 * torch.randn(num_tokens, HIDDEN, generator=generator)


@pytest.fixture(scope="module")
def weights() -> GLUWeights:
    """Neuron j answers to direction j mod 8, and only to it."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(NEURONS) % GROUPS
    gate = 2 * torch.eye(HIDDEN)[owner] - 1.5 * torch.ones(NEURONS, HIDDEN) * (torch.arange(HIDDEN) < GROUPS) / GROUPS
    up = torch.randn(NEURONS, HIDDEN, generator=generator)
    return GLUWeights(gate, up, torch.randn(HIDDEN, NEURONS, generator=generator))


@pytest.fixture(scope="module")
def statistics(weights: GLUWeights) -> LayerStatistics:
    x = inputs(4000, seed=1)
    ids = torch.arange(4000) // 200
    measured = StatisticsAccumulator(weights, torch.arange(20) % 2, 32)
    everything = torch.ones(4000, dtype=torch.bool)
    measured.add(TokenBatch(ids, everything, everything), x, *neuron_activations(x, weights, ACT))
    return measured.finish("made up")


def design(module: object, statistics: LayerStatistics, weights: GLUWeights, **options: object) -> LayerDesign:
    chosen = module.Options.model_validate(options)  # type: ignore[attr-defined]
    allocation = module.allocate(chosen, [statistics], BUDGET, 1)[0]  # type: ignore[attr-defined]
    return module.design(chosen, 0, statistics, weights, allocation, BUDGET)  # type: ignore[attr-defined]


def error(found: LayerDesign, weights: GLUWeights) -> float:
    """Squared error of the output on fresh tokens, relative to its power."""
    x = inputs(1000, seed=2)
    down = weights.down if found.down is None else found.down
    served = GLUWeights(weights.gate, weights.up, down)
    experts = [served.slice(neurons) for neurons in found.partition.expert_neurons]
    assert isinstance(found.router, Router)
    output = sparse_ffn(x, served.slice(found.partition.shared_neurons), experts, choose_experts(x, found.router), ACT)
    wanted = dense_ffn(x, weights, ACT)
    return float((output - wanted).square().sum() / wanted.square().sum())


def test_weave_beats_the_paper_and_static_pruning(statistics: LayerStatistics, weights: GLUWeights) -> None:
    ours = error(design(weave, statistics, weights), weights)
    assert ours < 0.5 * error(design(expertweaver, statistics, weights), weights)
    assert ours < 0.5 * error(design(static, statistics, weights), weights)


def test_routing_is_worth_more_than_repair_alone(statistics: LayerStatistics, weights: GLUWeights) -> None:
    plain, repaired = (error(design(static, statistics, weights, repair=on), weights) for on in (False, True))
    assert repaired < plain
    assert error(design(weave, statistics, weights), weights) < 0.8 * repaired


def test_repair_and_reassignment_each_help(statistics: LayerStatistics, weights: GLUWeights) -> None:
    full = error(design(weave, statistics, weights), weights)
    without_repair = error(design(weave, statistics, weights, repair=False), weights)
    assert full < without_repair
    without_rounds = error(design(weave, statistics, weights, repair=False, rounds=0), weights)
    assert without_repair <= without_rounds


def test_repair_is_recorded_with_its_errors(statistics: LayerStatistics, weights: GLUWeights) -> None:
    measures = design(weave, statistics, weights).measures
    assert measures["repair_ridge"] is not None
    before, after = measures["error_before"], measures["error"]
    assert before is not None
    assert after is not None
    assert 0 < after < before < 1


def test_gate_and_up_are_never_touched(statistics: LayerStatistics, weights: GLUWeights) -> None:
    gate, up, down = weights.gate.clone(), weights.up.clone(), weights.down.clone()
    design(weave, statistics, weights)
    assert torch.equal(weights.gate, gate)
    assert torch.equal(weights.up, up)
    assert torch.equal(weights.down, down)


def test_too_few_tokens_for_the_repair_are_told_with_their_ratio() -> None:
    options = weave.Options()
    assert options.warnings(intermediate_size=1024, num_tokens=8192) == []
    [warning] = options.warnings(intermediate_size=1024, num_tokens=2048)
    assert "2,048 calibration tokens are 2.0 per FFN neuron" in warning
    assert weave.Options(repair=False).warnings(intermediate_size=1024, num_tokens=2048) == []
    assert Recipe(source=SourceSection(model="m")).method.warnings(intermediate_size=9, num_tokens=1) == []
