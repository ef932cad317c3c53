"""CMoE on neurons whose markers are known by construction."""

from __future__ import annotations

import pytest
import torch
from support.statistics import fake_layers

from expertweaver.calibration.statistics import LayerStatistics, StatisticsAccumulator, TokenBatch
from expertweaver.methods import cmoe
from expertweaver.modeling.reference import activation, neuron_activations, running_neurons
from expertweaver.modeling.values import GLUWeights, LayerDesign, NeuronRouter
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.balanced import balanced_kmeans
from expertweaver.partition.budget import SliceBudget

GROUPS, WIDTH, ALWAYS = 6, 4, 4
NEURONS, HIDDEN, TOKENS = GROUPS * WIDTH + ALWAYS, GROUPS + 1, 1200
BUDGET = SliceBudget(num_slices=7, slice_width=4, active_slices=2)
ACT = activation("silu")
ORDER = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(5))
"""Neuron ORDER[i] plays part i: the first 24 belong to six groups of four, the last four act on every token."""


@pytest.fixture(scope="module")
def weights() -> GLUWeights:
    """A group's neurons answer to its direction; the last four to a constant part of the input."""
    part = torch.empty(NEURONS, dtype=torch.int64)
    part[ORDER] = torch.arange(NEURONS)
    direction = (part // WIDTH).clamp_max(GROUPS)
    gate = 4 * torch.eye(HIDDEN)[direction]
    generator = torch.Generator().manual_seed(0)
    return GLUWeights(gate, gate.clone(), torch.randn(HIDDEN, NEURONS, generator=generator))


def inputs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token goes in the direction of one group."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(GROUPS, (TOKENS,), generator=generator)
    x = torch.eye(HIDDEN)[group] + 0.05 * torch.randn(TOKENS, HIDDEN, generator=generator)
    x[:, -1] = 1.0
    return x, group


@pytest.fixture(scope="module")
def statistics(weights: GLUWeights) -> LayerStatistics:
    x, _ = inputs(seed=1)
    measured = StatisticsAccumulator(weights, torch.zeros(10, dtype=torch.int64))
    everything = torch.ones(TOKENS, dtype=torch.bool)
    ids = torch.arange(TOKENS) // (TOKENS // 10)
    measured.add(TokenBatch(ids, everything), x, *neuron_activations(x, weights, ACT))
    return measured.finish("made up")


def design(statistics: LayerStatistics, weights: GLUWeights, **options: object) -> LayerDesign:
    chosen = cmoe.Options.model_validate({"num_markers": ALWAYS + WIDTH} | options)
    allocation = cmoe.allocate(chosen, [statistics], BUDGET, 1)[0]
    return cmoe.design(chosen, 0, statistics, weights, allocation, BUDGET)


def test_shared_neurons_are_marked_most_often(statistics: LayerStatistics, weights: GLUWeights) -> None:
    assert set(design(statistics, weights).partition.shared_neurons.tolist()) == set(ORDER[-ALWAYS:].tolist())


def test_neurons_marked_on_the_same_tokens_form_an_expert(statistics: LayerStatistics, weights: GLUWeights) -> None:
    for seed in range(3):
        experts = design(statistics, weights, seed=seed).partition.expert_neurons
        planted = sorted(sorted(group.tolist()) for group in ORDER[:-ALWAYS].view(GROUPS, WIDTH))
        assert sorted(neurons.tolist() for neurons in experts) == planted


def test_the_expert_of_a_tokens_own_group_runs(statistics: LayerStatistics, weights: GLUWeights) -> None:
    found = design(statistics, weights)
    router = found.router
    assert isinstance(router, NeuronRouter)
    assert router.num_experts_per_tok == 1
    for speaker, neurons in zip(router.neurons.tolist(), found.partition.expert_neurons, strict=True):
        assert speaker in neurons.tolist()
    x, group = inputs(seed=2)
    running = running_neurons(x, *neuron_activations(x, weights, ACT), found, weights.down)
    own = torch.zeros(TOKENS, NEURONS, dtype=torch.bool)
    own.scatter_(1, ORDER[:-ALWAYS].view(GROUPS, WIDTH)[group], True)
    own[:, ORDER[-ALWAYS:]] = True
    assert torch.equal(running, own)


def test_clustering_starts_at_the_routed_neurons_marked_most_often(monkeypatch: pytest.MonkeyPatch) -> None:
    [layer] = fake_layers(num_layers=1, neurons=48)
    started: list[torch.Tensor] = []

    def watch(features: torch.Tensor, num_clusters: int, *, seed: int, start: torch.Tensor) -> list[torch.Tensor]:
        started.append(start)
        return balanced_kmeans(features, num_clusters, seed=seed, start=start)

    monkeypatch.setattr(cmoe, "balanced_kmeans", watch)
    found = cmoe.design(cmoe.Options(), 0, layer.statistics, layer.weights, Allocation(2), SliceBudget(8, 6, 4))
    strength = neuron_activations(layer.statistics.probe_inputs, layer.weights, ACT)[1].abs()
    rate = torch.bincount(strength.topk(10, dim=1).indices.flatten(), minlength=48)
    shared = found.partition.shared_neurons
    assert set(shared.tolist()) == set(rate.sort(descending=True, stable=True).indices[:12].tolist())
    rest = torch.tensor(sorted(set(range(48)) - set(shared.tolist())))
    chosen = rate[rest[started[0]]].sort().values
    assert torch.equal(chosen, rate[rest].sort().values[-6:])
    assert chosen[0] > rate[rest].min()


@pytest.mark.parametrize(("active", "share", "shared"), [(6, 0.5, 3), (6, 0.0, 1), (6, 1.0, 5), (1, 0.5, 0)])
def test_the_shared_share_is_of_the_active_slices(active: int, share: float, shared: int) -> None:
    options = cmoe.Options(shared_share=share)
    [allocation] = cmoe.allocate(options, [None], SliceBudget(8, 6, active), 1)  # type: ignore[list-item]
    assert allocation.num_shared == shared


def test_every_marked_token_is_kept_as_a_probe() -> None:
    assert cmoe.Options().num_probes == 16384
    assert cmoe.Options(num_tokens=999).num_probes == 999
