"""READ-ME finds planted neurons of domains, and its router tells the domains apart."""

from __future__ import annotations

import pytest
import torch

from expertweaver.calibration.statistics import LayerStatistics, StatisticsAccumulator, TokenBatch
from expertweaver.methods import read_me
from expertweaver.modeling.reference import activation, choose_experts, neuron_activations, running_neurons
from expertweaver.modeling.values import GLUWeights, LayerDesign, Router
from expertweaver.partition.budget import SliceBudget

BUDGET = SliceBudget(num_slices=8, slice_width=4, active_slices=4)
HIDDEN, NEURONS, ACTIVE, PER_DOMAIN = 6, 32, 16, 300
ACT = activation("silu")
LIKED = {0: {1, 2, 3, 4, 5, 6}, 1: {5, 6, 7, 8, 9, 10}, 2: {5, 6, 11, 12, 13, 14}}
"""Neurons that answer to one domain's direction; 5 and 6 answer to all three."""

COMMON = set(range(18, 28))
"""Neurons that answer to what every token has."""


@pytest.fixture(scope="module")
def weights() -> GLUWeights:
    gate = 0.01 * torch.randn(NEURONS, HIDDEN, generator=torch.Generator().manual_seed(0))
    for domain, neurons in LIKED.items():
        gate[sorted(neurons), domain] = 3.0
    gate[sorted(COMMON), HIDDEN - 1] = 3.0
    return GLUWeights(gate, gate.clone(), torch.randn(HIDDEN, NEURONS, generator=torch.Generator().manual_seed(1)))


def inputs(domain: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed * 10 + domain)
    x = 0.1 * torch.randn(PER_DOMAIN, HIDDEN, generator=generator)
    x[:, domain] += 1
    x[:, -1] += 1
    return x


def statistics(weights: GLUWeights, domains: list[int]) -> LayerStatistics:
    measured = StatisticsAccumulator(weights, torch.tensor(domains))
    everything = torch.ones(PER_DOMAIN, dtype=torch.bool)
    for sample, domain in enumerate(domains):
        ids, x = torch.full((PER_DOMAIN,), sample), inputs(domain, seed=1)
        measured.add(TokenBatch(ids, everything), x, *neuron_activations(x, weights, ACT))
    return measured.finish("made up")


def design(weights: GLUWeights, domains: list[int]) -> LayerDesign:
    options, measured = read_me.Options(), statistics(weights, domains)
    allocation = read_me.allocate(options, [measured], BUDGET, 1)[0]
    return read_me.design(options, 0, measured, weights, allocation, BUDGET)


def test_a_domains_expert_has_the_neurons_planted_for_it(weights: GLUWeights) -> None:
    partition = design(weights, [0, 1, 2]).partition
    assert set(partition.shared_neurons.tolist()) == COMMON | {5, 6}
    experts = [set(neurons.tolist()) for neurons in partition.expert_neurons]
    assert experts == [LIKED[domain] - {5, 6} for domain in range(3)]


def test_experts_overlap_where_some_domains_agree(weights: GLUWeights) -> None:
    gate = weights.gate.clone()
    gate[7] = gate[1]  # domain 0 likes what only domain 1 did; domain 2 does not
    gate[7, 1] = 3.0
    gate[2] = 0.0
    partition = design(GLUWeights(gate, gate.clone(), weights.down), [0, 1, 2]).partition
    first, second, third = (set(neurons.tolist()) for neurons in partition.expert_neurons)
    assert 7 in first & second
    assert 7 not in third


def test_a_fresh_token_runs_the_expert_of_its_domain(weights: GLUWeights) -> None:
    found = design(weights, [0, 1, 2])
    assert isinstance(found.router, Router)
    for domain in range(3):
        x = inputs(domain, seed=2)
        assert (choose_experts(x, found.router) == domain).float().mean() > 0.98
        running = running_neurons(x, *neuron_activations(x, weights, ACT), found, weights.down)
        assert running.sum(dim=1).tolist() == [ACTIVE] * PER_DOMAIN


def test_one_domain_shares_everything_that_runs(weights: GLUWeights) -> None:
    found = design(weights, [1, 1])
    assert set(found.partition.shared_neurons.tolist()) == COMMON | LIKED[1]
    assert [len(neurons) for neurons in found.partition.expert_neurons] == [0]
