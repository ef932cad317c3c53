"""Weave against the paper's method and its own ablations, on a made-up FFN whose neurons work in groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.statistics import fake_traffic

from expertweaver.calibration.statistics import LayerStatistics, StatisticsAccumulator, TokenBatch
from expertweaver.methods import expertweaver, static, weave
from expertweaver.modeling.reference import activation, dense_ffn, designed_ffn, neuron_activations
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.budget import SliceBudget
from expertweaver.weaving import repaired

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
    measured = StatisticsAccumulator(weights, torch.arange(20) % 2)
    everything = torch.ones(4000, dtype=torch.bool)
    measured.add(TokenBatch(ids, everything), x, *neuron_activations(x, weights, ACT))
    return measured.finish("made up")


def design(
    module: object, statistics: LayerStatistics, weights: GLUWeights, *, repair: bool = False, **options: object
) -> LayerDesign:
    """Design by a method, and repair the design if asked, as the road does."""
    chosen = module.Options.model_validate(options)  # type: ignore[attr-defined]
    allocation = module.allocate(chosen, [statistics], BUDGET, 1)[0]  # type: ignore[attr-defined]
    traffic = fake_traffic(statistics.probe_inputs, weights)
    sample = traffic.sample(chosen.num_cluster_tokens(weights.num_neurons))
    evidence = sample if chosen.reads_traffic else statistics
    found = module.design(chosen, 0, evidence, weights, allocation, BUDGET)  # type: ignore[attr-defined]
    return repaired(found, weights, traffic) if repair else found


def error(found: LayerDesign, weights: GLUWeights) -> float:
    """Squared error of the output on fresh tokens, relative to its power."""
    x = inputs(1000, seed=2)
    wanted = dense_ffn(x, weights, ACT)
    return float((designed_ffn(x, weights, found, ACT) - wanted).square().sum() / wanted.square().sum())


def test_weave_beats_the_paper_and_static_pruning(statistics: LayerStatistics, weights: GLUWeights) -> None:
    ours = error(design(weave, statistics, weights, repair=True), weights)
    assert ours < 0.5 * error(design(expertweaver, statistics, weights), weights)
    assert ours < 0.5 * error(design(static, statistics, weights), weights)


def test_routing_is_worth_more_than_repair_alone(statistics: LayerStatistics, weights: GLUWeights) -> None:
    plain, repaired = (error(design(static, statistics, weights, repair=on), weights) for on in (False, True))
    assert repaired < plain
    assert error(design(weave, statistics, weights, repair=True), weights) < 0.8 * repaired


def test_each_part_helps(statistics: LayerStatistics, weights: GLUWeights) -> None:
    full = error(design(weave, statistics, weights, repair=True), weights)
    without_repair = design(weave, statistics, weights)
    assert full < error(without_repair, weights)
    without_steps = design(weave, statistics, weights, router_steps=0)
    without_rounds = design(weave, statistics, weights, router_steps=0, rounds=0)
    captured = [d.measures["captured_energy"] for d in (without_repair, without_steps, without_rounds)]
    assert all(part is not None for part in captured)
    assert captured == sorted(captured, key=lambda part: -(part or 0))
    assert len(set(captured)) > 1


def test_the_shared_share_is_chosen_by_what_is_captured(statistics: LayerStatistics, weights: GLUWeights) -> None:
    chosen = design(weave, statistics, weights, router_steps=0)
    tried = [design(weave, statistics, weights, router_steps=0, shared_share=share) for share in (0.125, 0.25)]
    best = max(tried, key=lambda d: d.measures["captured_energy"] or 0)
    assert chosen.measures == best.measures
    assert len(chosen.partition.shared_neurons) == len(best.partition.shared_neurons)


def test_repair_is_recorded_with_its_errors(statistics: LayerStatistics, weights: GLUWeights) -> None:
    measures = design(weave, statistics, weights, repair=True).measures
    assert measures["repair_ridge"] is not None
    assert measures["repair_ridges_singular"] == 0
    before, after = measures["error_before"], measures["error"]
    assert before is not None
    assert after is not None
    assert 0 < after < before < 1


def test_gate_and_up_are_never_touched(statistics: LayerStatistics, weights: GLUWeights) -> None:
    gate, up, down = weights.gate.clone(), weights.up.clone(), weights.down.clone()
    design(weave, statistics, weights, repair=True)
    assert torch.equal(weights.gate, gate)
    assert torch.equal(weights.up, up)
    assert torch.equal(weights.down, down)


def test_a_bias_is_taken_out_of_the_repairs_target(statistics: LayerStatistics, weights: GLUWeights) -> None:
    plain = design(static, statistics, weights)
    traffic = fake_traffic(statistics.probe_inputs, weights)
    shifted = replace(plain, bias=torch.full((HIDDEN,), 5.0))
    assert error(repaired(shifted, weights, traffic), weights) < 0.8 * error(shifted, weights)
