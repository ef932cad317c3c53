"""Weave (ours): experts that a router can tell apart, fitted router, reassignment, least-squares repair, in sequence.

Built on what each neuron adds to each token's output, not on its gate alone. Every layer is designed on the tokens as
the layers converted before it put them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.calibration.traffic import TrafficSample
from expertweaver.machine import return_freed_memory
from expertweaver.methods.base import remaining_neurons, same_shared
from expertweaver.modeling.reference import (
    PART_TOKENS,
    activation,
    choose_experts,
    chosen_mask,
    neuron_activations,
    token_parts,
)
from expertweaver.modeling.values import GLUWeights, LayerDesign, Partition, Router
from expertweaver.partition.allocation import Allocation, strongest_neurons
from expertweaver.partition.balanced import balanced_kmeans
from expertweaver.partition.budget import SliceBudget
from expertweaver.partition.coactivation import coactivation_features, contributions, projected
from expertweaver.partition.reassign import captured_energy, improve_by_swaps
from expertweaver.recipe.schema import MethodSection, Seed
from expertweaver.router.refine import BATCH_TOKENS as REFINED_TOKENS
from expertweaver.router.refine import refine_router
from expertweaver.router.ridge import RidgeRegressor, expert_output_norms

FEATURE_DIMS = 256
SHARED = -1
NEURON_BATCH = 128
SAMPLE_ACTIVATIONS = 68_000_000
SEARCH_ROUNDS = 2
"""Rounds after which the shared share of a layer is chosen."""

MAX_SWEEPS = 3
"""Passes over all pairs of experts in a round: the next router changes what is to be gained anyway."""

SHARED_SHARES = (0.0, 0.0625, 0.125)
"""What `shared_share: auto` tries in every layer; at least one slice is always shared."""


class Options(MethodSection):
    """Options of weave."""

    name: str = "weave"
    repair: bool = Field(default=True, description="Repair down_proj by least squares, layer after layer.")
    shared_share: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        default="auto",
        description="Share of all slices that is shared in every layer; auto: what captures most, layer by layer.",
    )
    clusters: Literal["predictable", "coactivation"] = Field(
        default="predictable", description="Cluster neurons by what the router can tell of them, or by co-activation."
    )
    rounds: int = Field(default=4, ge=0, description="Rounds of reassignment and router refit.")
    router_bias: bool = Field(
        default=True, description="Fit the router with a bias, which formats without a selection bias cannot hold."
    )
    router_ridge: float = Field(default=1e-3, gt=0, description="Ridge of the router, relative.")
    router_steps: int = Field(default=600, ge=0, description="Gradient steps that refine the fitted router.")
    cluster_tokens: Annotated[int, Field(ge=256)] | Literal["auto"] = Field(
        default="auto", description="Tokens that clusters, router and reassignment are fitted on; auto: by the width."
    )
    seed: Seed = Field(default=0, description="Of projection, clustering and the refinement's batches.")

    @property
    def reads_traffic(self) -> bool:
        """Layers are designed on what the converted layers before them put out."""
        return True

    def num_cluster_tokens(self, intermediate_size: int) -> int:
        """Tokens of the sample; auto: as many as 68 million activations allow, at least 8,192."""
        if self.cluster_tokens != "auto":
            return self.cluster_tokens
        return max(SAMPLE_ACTIVATIONS // intermediate_size, 8192)

    @property
    def needs_selection_bias(self) -> bool:
        """Unless the router is fitted without a bias."""
        return self.router_bias

    @property
    def bias_setting(self) -> str:
        """The router fitted without one."""
        return "method.router_bias=false"

    def fixed_share(self, budget: SliceBudget) -> int | None:
        """The share asked for, at least one slice unless it is zero; None where layers choose for themselves."""
        if self.shared_share == "auto":
            return None
        wanted = max(1, int(self.shared_share * budget.num_slices + 0.5)) if self.shared_share else 0
        return min(wanted, budget.max_shared)

    @property
    def share_setting(self) -> str:
        """The option that fixes it for all layers."""
        return "method.shared_share"

    def extra_memory(self, *, hidden_size: int, intermediate_size: int, num_tokens: int) -> int:
        """Activations of the sample, its inputs in two forms, and activations of a batch of tokens or neurons."""
        sample = min(num_tokens, self.num_cluster_tokens(intermediate_size))
        copies = 3 if self.clusters == "coactivation" else 1
        inputs = 2 * sample * hidden_size + 3 * intermediate_size * hidden_size
        batches = 2 * sample * NEURON_BATCH + 4 * PART_TOKENS * intermediate_size
        return 4 * (copies * sample * intermediate_size + inputs + batches)

    def design_products(self, *, hidden_size: int, intermediate_size: int, num_slices: int, num_tokens: int) -> int:
        """Activations and their regression, trials of every share, refinement; twice, for what is not a product."""
        sample = min(num_tokens, self.num_cluster_tokens(intermediate_size))
        shares = len(SHARED_SHARES) if self.shared_share == "auto" else 1
        trials = shares * (1 + min(SEARCH_ROUNDS, self.rounds)) + max(0, self.rounds - SEARCH_ROUNDS) + 1
        trial = sample * intermediate_size * (num_slices + intermediate_size // num_slices)
        refinement = 2 * self.router_steps * REFINED_TOKENS * hidden_size * num_slices
        return 2 * (3 * sample * intermediate_size * hidden_size + trials * trial + refinement)


def allocate(
    options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """At least one shared slice in every layer, because stock engines want one; the same share everywhere if given."""
    fixed = options.fixed_share(budget)
    return same_shared(min(1, budget.max_shared) if fixed is None else fixed, num_layers, budget)


def design(
    options: Options,
    layer: int,
    evidence: TrafficSample,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Divide with every candidate share of shared slices, and keep what captures most on held-back tokens."""
    sample = _Sample.of(evidence, weights)
    return_freed_memory()
    regressor = RidgeRegressor(sample.x, ridge=options.router_ridge, with_bias=options.router_bias)
    features = _features(options, layer, sample, regressor, budget)
    return_freed_memory()
    counts = _shared_counts(options, allocation, budget)
    weavers = [_Weaver(options, layer, sample, features, regressor, num_shared, budget) for num_shared in counts]
    searched = min(SEARCH_ROUNDS, options.rounds) if len(weavers) > 1 else options.rounds
    searches = [weaver.reassigned(weaver.begun(), searched) for weaver in weavers]
    weaver, (best, last) = max(zip(weavers, searches, strict=True), key=lambda pair: pair[1][0].captured)
    again, _ = weaver.reassigned(last, options.rounds - searched)
    best = weaver.refined(max(best, again, key=lambda trial: trial.captured))
    experts = [(best.labels == expert).nonzero().squeeze(-1) for expert in range(weaver.num_experts)]
    shared = (best.labels == SHARED).nonzero().squeeze(-1)
    return LayerDesign(Partition(shared, experts), best.router, measures={"captured_energy": best.captured})


def _features(options: Options, layer: int, sample: _Sample, regressor: RidgeRegressor, budget: SliceBudget) -> Tensor:
    """What neurons are clustered by, one a row."""
    seed = options.seed + layer
    if options.clusters == "coactivation":
        num_active = budget.active_slices * budget.slice_width
        contribution = contributions(sample.neuron_act.T, sample.down)
        return coactivation_features(contribution, num_active, dims=FEATURE_DIMS, seed=seed)
    strengths = (neurons.abs() for neurons in sample.neuron_act.split(NEURON_BATCH))
    told = (normalize(directions) for directions in regressor.directions(strengths))
    return torch.cat([projected(directions, FEATURE_DIMS, seed=seed) for directions in told])


def _shared_counts(options: Options, allocation: Allocation, budget: SliceBudget) -> list[int]:
    if options.shared_share != "auto":
        return [allocation.num_shared]
    counts = {max(allocation.num_shared, int(share * budget.num_slices + 0.5)) for share in SHARED_SHARES}
    return sorted({min(count, budget.max_shared) for count in counts})


@dataclass(frozen=True)
class _Sample:
    """The tokens that a layer is divided on, and what its neurons do on them, one neuron a row.

    Attributes:
        x: FFN inputs of the tokens to fit on, [T, H].
        judging_x: Those of the tokens that judge, [J, H].
        neuron_act: On the tokens to fit on, [F, T].
        judging_act: On those that judge, [F, J].
        strength: Each neuron's squared contribution over the tokens to fit on, [F] float64.
        down: down_proj [H, F].
        down_norm: Norms of its columns [F].
    """

    x: Tensor
    judging_x: Tensor
    neuron_act: Tensor
    judging_act: Tensor
    strength: Tensor
    down: Tensor
    down_norm: Tensor

    @staticmethod
    def of(evidence: TrafficSample, weights: GLUWeights) -> _Sample:
        x, judging_x = evidence.fitting, evidence.judging
        neuron_act, judging_act = _activations((x, judging_x), weights)
        down = weights.down.float()
        down_norm, everywhere = down.norm(dim=0), torch.ones(len(x), 1, dtype=torch.bool)
        strength = captured_energy(neuron_act, down_norm, everywhere)[:, 0]
        return _Sample(x, judging_x, neuron_act, judging_act, strength, down, down_norm)


def _activations(inputs: Sequence[Tensor], weights: GLUWeights) -> list[Tensor]:
    """Neuron activations, one neuron a row: each [T, H] to [F, T]; those of few tokens in memory beside the results."""
    exact, act = replace(weights, gate=weights.gate.float(), up=weights.up.float()), activation(weights.hidden_act)
    results = [torch.empty(weights.num_neurons, len(x)) for x in inputs]
    for x, result in zip(inputs, results, strict=True):
        for part, found in token_parts(x, result.T):
            found.copy_(neuron_activations(part, exact, act)[1])
    return results


@dataclass(frozen=True)
class _Trial:
    """An expert for every neuron [F], the router, and the share of energy captured on judging tokens."""

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
        features: Tensor,
        regressor: RidgeRegressor,
        num_shared: int,
        budget: SliceBudget,
    ) -> None:
        self.options, self.seed, self.sample, self.regressor = options, options.seed + layer, sample, regressor
        self.num_experts = budget.num_slices - num_shared
        self.num_chosen = budget.active_slices - num_shared
        shared = strongest_neurons(sample.strength, num_shared * budget.slice_width)
        self.rest = remaining_neurons(shared, len(sample.strength))
        self.features = features[self.rest]

    def begun(self) -> _Trial:
        """Cluster by what the inputs tell of each neuron, and fit the router."""
        labels = torch.empty(len(self.rest), dtype=torch.int64)
        for expert, neurons in enumerate(balanced_kmeans(self.features, self.num_experts, seed=self.seed)):
            labels[neurons] = expert
        return self._trial(labels, self._fitted(labels))

    def reassigned(self, trial: _Trial, rounds: int) -> tuple[_Trial, _Trial]:
        """The best and the last trial of some rounds of swaps and router fits."""
        best = trial
        for _ in range(rounds):
            labels = trial.labels[self.rest]
            running = self._running(trial.router, self.sample.x)
            gain = captured_energy(self.sample.neuron_act, self.sample.down_norm, running)[self.rest]
            swapped = improve_by_swaps(gain, labels, max_sweeps=MAX_SWEEPS)
            if torch.equal(swapped, labels):
                break
            trial = self._trial(swapped, self._fitted(swapped))
            best = max(best, trial, key=lambda t: t.captured)
        return best, trial

    def refined(self, best: _Trial) -> _Trial:
        """The trial with its router refined, unless that captures less."""
        if self.options.router_steps == 0 or self.num_chosen >= self.num_experts:
            return best
        labels, steps = best.labels[self.rest], self.options.router_steps
        gain = self._norms(labels).square_()
        return_freed_memory()
        refined = refine_router(self.regressor, gain, best.router, steps=steps, seed=self.seed)
        return max(best, self._trial(labels, refined), key=lambda trial: trial.captured)

    def _norms(self, labels: Tensor) -> Tensor:
        experts = [self.rest[labels == expert] for expert in range(self.num_experts)]
        return expert_output_norms(self.sample.neuron_act, self.sample.down, experts)

    def _fitted(self, labels: Tensor) -> Router:
        return self.regressor.fit(self._norms(labels), self.num_chosen)

    def _running(self, router: Router, x: Tensor) -> Tensor:
        return chosen_mask(choose_experts(x, router), self.num_experts)

    def _trial(self, labels: Tensor, router: Router) -> _Trial:
        everywhere = torch.full((len(self.sample.down_norm),), SHARED)
        everywhere[self.rest] = labels
        running = self._running(router, self.sample.judging_x)
        always = torch.ones(len(running), 1, dtype=torch.bool)
        gain = captured_energy(self.sample.judging_act, self.sample.down_norm, torch.cat([running, always], dim=1))
        captured = gain.gather(1, everywhere[:, None] % gain.shape[1]).sum() / gain[:, -1].sum().clamp_min(1e-30)
        return_freed_memory()
        return _Trial(everywhere, router, float(captured))
