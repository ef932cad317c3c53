"""Weave (ours): co-activation experts, fitted router, routing-aware reassignment, least-squares repair.

Built on what each neuron adds to each token's output, not on its gate alone. First version: every layer is profiled
on the dense model's own inputs; errors of earlier layers are not yet fed forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import remaining_neurons
from expertweaver.modeling.reference import activation, choose_experts, chosen_mask, neuron_activations
from expertweaver.modeling.values import GLUWeights, LayerDesign, Partition, Router
from expertweaver.partition.allocation import Allocation, strongest_neurons
from expertweaver.partition.balanced import balanced_kmeans
from expertweaver.partition.budget import SliceBudget
from expertweaver.partition.coactivation import coactivation_features, contributions
from expertweaver.partition.reassign import captured_energy, improve_by_swaps
from expertweaver.recipe.schema import MethodSection, Seed
from expertweaver.repair.ffn import few_tokens, held_back, repair_ffn
from expertweaver.router.ridge import RidgeRegressor, expert_output_norms

FEATURE_DIMS = 256


class Options(MethodSection):
    """Options of weave."""

    name: str = "weave"
    num_tokens: int = Field(default=65536, ge=256, description="Calibration tokens used, at most.")
    shared_share: float = Field(default=0.0625, ge=0, le=1, description="Share of all slices that is shared.")
    rounds: int = Field(default=10, ge=0, description="Rounds of reassignment and router refit.")
    router_ridge: float = Field(default=1e-3, gt=0, description="Ridge of the router, relative.")
    cluster_tokens: int = Field(
        default=16384, ge=256, description="Tokens that clusters, router and reassignment are fitted on."
    )
    repair: bool = Field(default=True, description="Repair down_proj by least squares.")
    seed: Seed = Field(default=0, description="Of projection and clustering.")

    @property
    def num_probes(self) -> int:
        """Every token that is used is kept."""
        return self.num_tokens

    def extra_memory(self, *, hidden_size: int, intermediate_size: int, num_tokens: int) -> int:
        """Activations of the sample four times over, and the repair's square matrices in float64."""
        sample = min(num_tokens, self.num_tokens, self.cluster_tokens)
        square = 3 * 8 * intermediate_size**2 if self.repair else 0
        return 4 * 4 * sample * intermediate_size + square

    def extra_scratch(self, *, hidden_size: int, intermediate_size: int) -> int:
        """The repaired down_proj of a layer."""
        return 4 * hidden_size * intermediate_size if self.repair else 0

    def warnings(self, *, intermediate_size: int, num_tokens: int) -> list[str]:
        """Too few tokens make the repair timid: its ridge then holds it at the source's weights."""
        return few_tokens(min(num_tokens, self.num_tokens), intermediate_size) if self.repair else []


def allocate(options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget) -> list[Allocation]:
    """The same shared share in every layer; at least one slice, because stock engines want one."""
    wanted = max(1, int(options.shared_share * budget.num_slices + 0.5))
    num_shared = min(wanted, budget.max_shared)
    clip = None if num_shared == wanted else f"{wanted} shared slices clipped to {num_shared}"
    return [Allocation(num_shared, clip=clip)] * len(statistics)


@dataclass(frozen=True)
class _Trial:
    """An assignment of routed neurons with the router fitted to it."""

    labels: Tensor
    router: Router
    energy: float


def design(
    options: Options,
    layer: int,
    statistics: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Cluster, route, reassign, repair."""
    x, exact = statistics.probe_inputs, weights.to(torch.float32)
    partition, router = _divide(options, layer, x, exact, allocation, budget)
    if not options.repair:
        return LayerDesign(partition, router)
    repaired = repair_ffn(x, exact, lambda tokens: _running_neurons(tokens, router, partition, weights.num_neurons))
    return LayerDesign(partition, router, repaired.down, measures=repaired.measures(exact.down))


def _divide(
    options: Options, layer: int, x: Tensor, weights: GLUWeights, allocation: Allocation, budget: SliceBudget
) -> tuple[Partition, Router]:
    """Choose the shared neurons, cluster the rest, fit the router and reassign, on a sample of the tokens."""
    sample = x[:: -(-len(x) // options.cluster_tokens)]
    neuron_act = neuron_activations(sample, weights, activation(weights.hidden_act))[1]
    contribution = contributions(neuron_act, weights.down)
    shared = strongest_neurons(contribution.square().mean(dim=0), allocation.num_shared * budget.slice_width)
    rest = remaining_neurons(shared, weights.num_neurons)
    weaver = _Weaver(
        options, layer, sample, neuron_act[:, rest], weights.slice(rest), contribution[:, rest], allocation, budget
    )
    best = weaver.run()
    return Partition(shared, [rest[best.labels == expert] for expert in range(weaver.num_experts)]), best.router


class _Weaver:
    """Alternates router fits and reassignments of one layer's routed neurons; keeps the best on held-back tokens."""

    def __init__(
        self,
        options: Options,
        layer: int,
        x: Tensor,
        neuron_act: Tensor,
        routed: GLUWeights,
        contribution: Tensor,
        allocation: Allocation,
        budget: SliceBudget,
    ) -> None:
        self.options, self.layer, self.budget = options, layer, budget
        self.x, self.neuron_act, self.down, self.contribution = x, neuron_act, routed.down, contribution
        self.num_experts = budget.num_slices - allocation.num_shared
        self.num_chosen = budget.active_slices - allocation.num_shared
        self.judge = held_back(len(x))
        self.regressor = RidgeRegressor(x[~self.judge], ridge=options.router_ridge)

    def run(self) -> _Trial:
        best = trial = self._fit(self._clusters())
        for _ in range(self.options.rounds):
            running = self._running(trial.router, ~self.judge)
            gain = captured_energy(self.contribution[~self.judge], running)
            labels = improve_by_swaps(gain, trial.labels)
            if torch.equal(labels, trial.labels):
                break
            trial = self._fit(labels)
            best = max(best, trial, key=lambda t: t.energy)
        return best

    def _clusters(self) -> Tensor:
        strongest = round(self.budget.active_slices / self.budget.num_slices * self.contribution.shape[1])
        seed = self.options.seed + self.layer
        features = coactivation_features(self.contribution[~self.judge], strongest, dims=FEATURE_DIMS, seed=seed)
        labels = torch.empty(self.contribution.shape[1], dtype=torch.int64)
        for expert, neurons in enumerate(balanced_kmeans(features, self.num_experts, seed=seed)):
            labels[neurons] = expert
        return labels

    def _fit(self, labels: Tensor) -> _Trial:
        experts = [(labels == expert).nonzero().squeeze(-1) for expert in range(self.num_experts)]
        norms = expert_output_norms(self.neuron_act[~self.judge], self.down, experts)
        router = self.regressor.fit(norms, self.num_chosen)
        gain = captured_energy(self.contribution[self.judge], self._running(router, self.judge))
        return _Trial(labels, router, float(gain.gather(1, labels[:, None]).sum()))

    def _running(self, router: Router, tokens: Tensor) -> Tensor:
        return chosen_mask(choose_experts(self.x[tokens], router), self.num_experts)


def _running_neurons(x: Tensor, router: Router, partition: Partition, num_neurons: int) -> Tensor:
    """One where a neuron runs on a token, [T, F] float32."""
    experts = chosen_mask(choose_experts(x, router), partition.num_experts)
    owner = torch.full((num_neurons,), partition.num_experts)
    for expert, neurons in enumerate(partition.expert_neurons):
        owner[neurons] = expert
    with_shared = torch.cat([experts, torch.ones(len(x), 1, dtype=torch.bool)], dim=1)
    return with_shared[:, owner].float()
