"""Baseline: static FFN pruning; the neurons of highest mean squared contribution always run, the rest never.

A contribution is |neuron_act| times the norm of the neuron's down column. The checkpoint keeps the neurons that
never run as experts that are never chosen, so that every method is measured through the same code path. With `repair`
it is the control that shows how much of a method's gain is repair rather than routing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import equal_experts
from expertweaver.modeling.values import GLUWeights, LayerDesign, Partition, Router
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection
from expertweaver.repair.ffn import few_tokens, repair_ffn


class Options(MethodSection):
    """Options of static pruning."""

    name: str = "static"
    repair: bool = Field(default=False, description="Repair down_proj by least squares, as weave does.")
    num_tokens: int = Field(default=65536, ge=256, description="Calibration tokens used by the repair, at most.")

    @property
    def num_probes(self) -> int:
        """The repair is fitted on the inputs that are kept."""
        return self.num_tokens if self.repair else super().num_probes

    def extra_scratch(self, *, hidden_size: int, intermediate_size: int) -> int:
        """The repaired down_proj of a layer."""
        return 4 * hidden_size * intermediate_size if self.repair else 0

    def extra_memory(self, *, hidden_size: int, intermediate_size: int, num_tokens: int) -> int:
        """The repair's square matrices in float64."""
        return 3 * 8 * intermediate_size**2 if self.repair else 0

    def warnings(self, *, intermediate_size: int, num_tokens: int) -> list[str]:
        """Too few tokens make the repair timid."""
        return few_tokens(min(num_tokens, self.num_tokens), intermediate_size) if self.repair else []


def allocate(options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget) -> list[Allocation]:
    """Share as much as the format allows; the last active slices are experts that are always chosen."""
    return [Allocation(budget.max_shared)] * len(statistics)


def design(
    options: Options,
    layer: int,
    statistics: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Rank the neurons once, for all tokens."""
    ranking = torch.sort(statistics.contribution, descending=True, stable=True).indices
    num_shared = allocation.num_shared * budget.slice_width
    num_experts = budget.num_slices - allocation.num_shared
    experts = equal_experts(ranking[num_shared:], num_experts)
    num_chosen = budget.active_slices - allocation.num_shared
    bias = (torch.arange(num_experts) < num_chosen).float()
    router = Router(torch.zeros(num_experts, weights.gate.shape[1]), bias, num_chosen)
    partition = Partition(ranking[:num_shared].sort().values, experts)
    if not options.repair:
        return LayerDesign(partition, router)
    exact = weights.to(torch.float32)
    running = torch.zeros(weights.num_neurons).index_fill_(0, ranking[: budget.active_slices * budget.slice_width], 1.0)
    repaired = repair_ffn(statistics.probe_inputs, exact, lambda tokens: running)
    return LayerDesign(partition, router, repaired.down, measures=repaired.measures(exact.down))
