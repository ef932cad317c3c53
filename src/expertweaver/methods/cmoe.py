"""CMoE (2502.04416): clusters of neurons that are strongest on the same tokens, one neuron speaks for each expert.

Markers are the few strongest |neuron_act| of each token; the paper's code normalises inputs and weight rows before it
ranks, its text does not, and neither do we. Marker columns are compared after a random projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import remaining_neurons, same_shared
from expertweaver.modeling.reference import activation, neuron_activations
from expertweaver.modeling.values import GLUWeights, LayerDesign, Need, NeuronRouter, Partition
from expertweaver.partition.allocation import Allocation, strongest_neurons
from expertweaver.partition.balanced import balanced_kmeans
from expertweaver.partition.budget import SliceBudget
from expertweaver.partition.coactivation import marker_features
from expertweaver.recipe.schema import MethodSection, Seed
from expertweaver.router.representative import representatives

BATCH_TOKENS = 1024
FEATURE_DIMS = 256


class Options(MethodSection):
    """Options of CMoE."""

    name: str = "cmoe"
    num_markers: int = Field(default=10, ge=1, description="Neurons marked on each token, the paper's K_a.")
    shared_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of the active slices that is shared; the paper's 3 of 3 + 3 is 0.5."
    )
    num_tokens: int = Field(default=16384, ge=256, description="Calibration tokens that are marked, at most.")
    seed: Seed = Field(default=0, description="Of the projection.")

    @property
    def num_probes(self) -> int:
        """Every token that is marked is kept."""
        return self.num_tokens

    @property
    def needs(self) -> tuple[Need, ...]:
        """Its scores are not affine in the input."""
        return (Need.NEURON_ROUTER,)

    def extra_memory(self, *, hidden_size: int, intermediate_size: int, num_tokens: int) -> int:
        """The projection, and the features in both widths."""
        return FEATURE_DIMS * (4 * min(num_tokens, self.num_tokens) + 2 * (4 + 8) * intermediate_size)


def allocate(
    options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """The same shared share of the active slices in every layer, where the budget allows at least one slice."""
    wanted = max(1, int(options.shared_share * budget.active_slices + 0.5))
    return same_shared(wanted, num_layers, budget)


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Share the neurons marked most often, cluster the others from the most marked on, let the central ones speak."""
    x, exact, act = evidence.probe_inputs, weights.to(torch.float32), activation(weights.hidden_act)
    strength = (neuron_activations(part, exact, act)[1].abs() for part in x.split(BATCH_TOKENS))
    num_markers, seed = min(options.num_markers, weights.num_neurons), options.seed + layer
    features, counts = marker_features(strength, len(x), num_markers, dims=FEATURE_DIMS, seed=seed)
    shared = strongest_neurons(counts, allocation.num_shared * budget.slice_width)
    rest = remaining_neurons(shared, weights.num_neurons)
    num_experts = budget.num_slices - allocation.num_shared
    start = strongest_neurons(counts[rest], num_experts)
    clusters = balanced_kmeans(features[rest], num_experts, seed=seed, start=start)
    speakers = rest[representatives(features[rest], clusters)]
    router = NeuronRouter(speakers, budget.active_slices - allocation.num_shared)
    return LayerDesign(Partition(shared, [rest[cluster] for cluster in clusters]), router)
