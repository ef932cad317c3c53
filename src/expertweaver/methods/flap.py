"""FLAP (2312.11983) on the FFN only: static pruning of the neurons that fluctuate least, their mean kept as a bias.

A neuron that hardly varies can be replaced by its mean: the score is the variance of neuron_act over tokens times
the squared norm of the down column, and what the dropped neurons add on average becomes an output bias. The paper also
prunes attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import PruningSection, pruned_design, remaining_neurons, share_most
from expertweaver.modeling.values import GLUWeights, LayerDesign, Need, Partition, Router
from expertweaver.partition.allocation import Allocation, kept_over_layers, strongest_neurons
from expertweaver.partition.budget import SliceBudget


class Options(PruningSection):
    """Options of FLAP."""

    name: str = "flap"
    scope: Literal["uniform", "global"] = Field(
        default="uniform", description="Every layer alike, or one threshold on z-scores for all layers."
    )
    bias: bool = Field(default=True, description="Add the mean output of the dropped neurons.")

    @property
    def needs(self) -> tuple[Need, ...]:
        """Uniform layers without the bias are plain static pruning; the rest no stock format holds."""
        return (Need.OUTPUT_BIAS,) * self.bias + (Need.UNEQUAL_LAYERS,) * (self.scope == "global")

    @property
    def stock_settings(self) -> str:
        """FLAP's ranking without what goes beyond."""
        return "method.bias=false and method.scope=uniform"


def allocate(
    options: Options, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """Share as much as the format allows, or with a global threshold say how many neurons each layer keeps."""
    if options.scope == "uniform":
        return share_most(options, statistics, budget, num_layers)
    total = num_layers * budget.active_slices * budget.slice_width
    kept = kept_over_layers([_fluctuation(layer) for layer in statistics], total)
    return [Allocation(0, num_kept=count) for count in kept]


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Keep the neurons that fluctuate most; where asked, put the mean of the others into a bias."""
    score = _fluctuation(evidence)
    num_kept = allocation.num_kept
    if num_kept is None:
        found = pruned_design(score, weights, allocation, budget)
        num_kept = budget.active_slices * budget.slice_width
    else:
        kept = strongest_neurons(score, num_kept)
        never = Router(torch.zeros(1, weights.gate.shape[1]), torch.zeros(1), num_experts_per_tok=0)
        found = LayerDesign(Partition(kept, [remaining_neurons(kept, weights.num_neurons)]), never)
    if not options.bias:
        return found
    dropped = remaining_neurons(strongest_neurons(score, num_kept), weights.num_neurons)
    mean = evidence.neuron_act_sum[dropped] / evidence.num_tokens
    return LayerDesign(found.partition, found.router, bias=(weights.down[:, dropped].double() @ mean).float())


def _fluctuation(evidence: LayerStatistics) -> Tensor:
    """Variance over tokens of neuron_act times the squared norm of the down column, [F] float64.

    The norm is what `contribution` holds beyond the sum of squares; a neuron that never acts scores zero.
    """
    squared = evidence.neuron_act_squared / evidence.num_tokens
    variance = (squared - (evidence.neuron_act_sum / evidence.num_tokens).square()).clamp_min(0)
    norm_squared = evidence.contribution / evidence.neuron_act_squared.clamp_min(torch.finfo(torch.float64).tiny)
    return variance * norm_squared
