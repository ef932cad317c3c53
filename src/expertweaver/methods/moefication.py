"""MoEfication / EMoE (2110.01786): balanced clusters of gate rows of unit length, mean-gate router.

It looks at weights only. The paper shares nothing, but serving engines want a shared expert: by default the one
cluster of largest mean squared contribution always runs (our choice; `num_shared_slices: 0` is the paper's).
"""

from __future__ import annotations

import torch
from pydantic import Field

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import SharingSection, share_as_asked
from expertweaver.modeling.values import GLUWeights, LayerDesign, Partition
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.balanced import balanced_kmeans
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import Seed
from expertweaver.router.mean_gate import mean_gate_router


class Options(SharingSection):
    """Options of MoEfication."""

    name: str = "moefication"
    num_shared_slices: int = Field(default=1, ge=0, description="Clusters of largest contribution that always run.")
    seed: Seed = Field(default=0, description="Of the clustering's starting points.")


allocate = share_as_asked


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Cluster all neurons by the direction of their gate rows, then set the shared clusters aside."""
    rows = torch.nn.functional.normalize(weights.gate.float(), dim=1)
    clusters = balanced_kmeans(rows, budget.num_slices, seed=options.seed + layer)
    energy = torch.stack([evidence.contribution[neurons].sum() for neurons in clusters])
    ranking = torch.sort(energy, descending=True, stable=True).indices.tolist()
    always = set(ranking[: allocation.num_shared])
    experts = [neurons for cluster, neurons in enumerate(clusters) if cluster not in always]
    shared = [clusters[cluster] for cluster in sorted(always)]
    together = torch.cat([torch.empty(0, dtype=torch.int64), *shared]).sort().values
    router = mean_gate_router(weights.gate, experts, budget.active_slices - allocation.num_shared)
    return LayerDesign(Partition(together, experts), router)
