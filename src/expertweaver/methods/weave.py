"""Weave (ours): co-activation experts, a fitted router, routing-aware reassignment, least-squares repair, in sequence.

Built on what each neuron adds to each token's output, not on its gate alone. Every layer is designed on the tokens as
the layers converted before it put them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.calibration.traffic import LayerTraffic
from expertweaver.methods.base import remaining_neurons
from expertweaver.modeling.reference import activation, choose_experts, chosen_mask, neuron_activations
from expertweaver.modeling.values import GLUWeights, LayerDesign, Partition, Router
from expertweaver.partition.allocation import Allocation, strongest_neurons
from expertweaver.partition.balanced import balanced_kmeans
from expertweaver.partition.budget import SliceBudget
from expertweaver.partition.coactivation import coactivation_features, contributions
from expertweaver.partition.reassign import captured_energy, improve_by_swaps
from expertweaver.recipe.schema import MethodSection, Seed
from expertweaver.router.refine import refine_router
from expertweaver.router.ridge import RidgeRegressor, expert_output_norms

FEATURE_DIMS = 256
SHARED_SHARES = (0.0, 0.0625, 0.125)
"""What `shared_share: auto` tries in every layer; at least one slice is always shared."""


class Options(MethodSection):
    """Options of weave."""

    name: str = "weave"
    repair: bool = Field(default=True, description="Repair down_proj by least squares, layer after layer.")
    shared_share: float | Literal["auto"] = Field(
        default="auto", description="Share of all slices that is shared; auto: what captures most, layer by layer."
    )
    rounds: int = Field(default=10, ge=0, description="Rounds of reassignment and router refit.")
    router_ridge: float = Field(default=1e-3, gt=0, description="Ridge of the router, relative.")
    router_steps: int = Field(default=300, ge=0, description="Gradient steps that refine the fitted router.")
    cluster_tokens: int = Field(
        default=16384, ge=256, description="Tokens that clusters, router and reassignment are fitted on."
    )
    seed: Seed = Field(default=0, description="Of projection, clustering and the refinement's batches.")

    @property
    def reads_traffic(self) -> bool:
        """Layers are designed on what the converted layers before them put out."""
        return True

    def extra_memory(self, *, hidden_size: int, intermediate_size: int, num_tokens: int) -> int:
        """Activations of the sample four times over."""
        return 4 * 4 * min(num_tokens, self.cluster_tokens) * intermediate_size


def allocate(
    options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """At least one shared slice in every layer, because stock engines want one; the same share everywhere if given."""
    if options.shared_share == "auto":
        return [Allocation(min(1, budget.max_shared))] * num_layers
    wanted = max(1, int(options.shared_share * budget.num_slices + 0.5))
    num_shared = min(wanted, budget.max_shared)
    clip = None if num_shared == wanted else f"{wanted} shared slices clipped to {num_shared}"
    return [Allocation(num_shared, clip=clip)] * num_layers


def design(
    options: Options,
    layer: int,
    evidence: LayerTraffic,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Divide with every candidate share of shared slices, and keep what captures most on held-back tokens."""
    x, judging = evidence.sample(options.cluster_tokens)
    exact = weights.to(torch.float32)
    neuron_act = neuron_activations(x, exact, activation(exact.hidden_act))[1]
    sample = _Sample(x, judging, neuron_act, exact, contributions(neuron_act, exact.down))
    regressor = RidgeRegressor(x[~judging], ridge=options.router_ridge)
    trials = [
        _Weaver(options, layer, sample, regressor, num_shared, budget).run()
        for num_shared in _shared_counts(options, allocation, budget)
    ]
    best = max(trials, key=lambda trial: trial.captured)
    num_experts = best.router.weight.shape[0]
    experts = [(best.labels == expert).nonzero().squeeze(-1) for expert in range(num_experts)]
    shared = (best.labels < 0).nonzero().squeeze(-1)
    return LayerDesign(Partition(shared, experts), best.router, measures={"captured_energy": best.captured})


def _shared_counts(options: Options, allocation: Allocation, budget: SliceBudget) -> list[int]:
    if options.shared_share != "auto":
        return [allocation.num_shared]
    counts = {max(allocation.num_shared, int(share * budget.num_slices + 0.5)) for share in SHARED_SHARES}
    return sorted({min(count, budget.max_shared) for count in counts})


@dataclass(frozen=True)
class _Sample:
    """The tokens that a layer is divided on: inputs [T, H], which of them judge [T], activations and contributions
    of all neurons [T, F], the dense FFN.
    """

    x: Tensor
    judging: Tensor
    neuron_act: Tensor
    weights: GLUWeights
    contribution: Tensor


@dataclass(frozen=True)
class _Trial:
    """An expert for every neuron (-1: shared) [F], the router, and the share of energy captured on judging tokens."""

    labels: Tensor
    router: Router
    captured: float


class _Weaver:
    """Alternates router fits and reassignments for one number of shared slices; keeps the best on judging tokens."""

    def __init__(
        self,
        options: Options,
        layer: int,
        sample: _Sample,
        regressor: RidgeRegressor,
        num_shared: int,
        budget: SliceBudget,
    ) -> None:
        self.options, self.seed, self.sample, self.regressor = options, options.seed + layer, sample, regressor
        self.num_experts = budget.num_slices - num_shared
        self.num_chosen = budget.active_slices - num_shared
        self.active_share = budget.active_slices / budget.num_slices
        strength = sample.contribution.square().mean(dim=0)
        self.shared = strongest_neurons(strength, num_shared * budget.slice_width)
        self.rest = remaining_neurons(self.shared, len(strength))
        self.fitting = ~sample.judging
        self.contribution = sample.contribution[:, self.rest]
        self.neuron_act = sample.neuron_act[self.fitting][:, self.rest]
        self.down = sample.weights.down[:, self.rest]

    def run(self) -> _Trial:
        labels = self._clusters()
        best, labels = self._trial(labels, self._fitted(labels)), labels
        trial = best
        for _ in range(self.options.rounds):
            reassigned = improve_by_swaps(self._gain(trial.router, self.fitting), labels)
            if torch.equal(reassigned, labels):
                break
            labels = reassigned
            trial = self._trial(labels, self._fitted(labels))
            best = max(best, trial, key=lambda t: t.captured)
        return self._refined(best) if self.options.router_steps and self.num_chosen < self.num_experts else best

    def _clusters(self) -> Tensor:
        strongest = max(1, round(self.active_share * len(self.rest)))
        contribution = self.contribution[self.fitting]
        features = coactivation_features(contribution, strongest, dims=FEATURE_DIMS, seed=self.seed)
        labels = torch.empty(len(self.rest), dtype=torch.int64)
        for expert, neurons in enumerate(balanced_kmeans(features, self.num_experts, seed=self.seed)):
            labels[neurons] = expert
        return labels

    def _norms(self, labels: Tensor) -> Tensor:
        experts = [(labels == expert).nonzero().squeeze(-1) for expert in range(self.num_experts)]
        return expert_output_norms(self.neuron_act, self.down, experts)

    def _fitted(self, labels: Tensor) -> Router:
        return self.regressor.fit(self._norms(labels), self.num_chosen)

    def _refined(self, best: _Trial) -> _Trial:
        labels = best.labels[self.rest]
        steps, gain = self.options.router_steps, self._norms(labels).square()
        refined = refine_router(self.regressor, gain, best.router, steps=steps, seed=self.seed)
        return max(best, self._trial(labels, refined), key=lambda trial: trial.captured)

    def _gain(self, router: Router, tokens: Tensor) -> Tensor:
        running = chosen_mask(choose_experts(self.sample.x[tokens], router), self.num_experts)
        return captured_energy(self.contribution[tokens], running)

    def _trial(self, labels: Tensor, router: Router) -> _Trial:
        judging = self.sample.judging
        energy = self.sample.contribution[judging].double().square()
        routed = self._gain(router, judging).gather(1, labels[:, None]).sum()
        captured = float((energy[:, self.shared].sum() + routed) / energy.sum().clamp_min(1e-30))
        everywhere = torch.full((energy.shape[1],), -1)
        everywhere[self.rest] = labels
        return _Trial(everywhere, router, captured)
