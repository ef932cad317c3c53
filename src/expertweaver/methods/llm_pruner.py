"""Baseline: LLM-Pruner (2305.11627) on the FFN only: static pruning by the first-order change of the loss.

A neuron's score is the sum of |weight * dloss/dweight| over its gate, up and down weights, with the gradient of the
next-token loss summed over the calibration tokens first. The paper also prunes attention and trains afterwards.
"""

from __future__ import annotations

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import PruningSection, gathered, pruned_design, share_most
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget


class Options(PruningSection):
    """Options of LLM-Pruner: none of its own."""

    name: str = "llm_pruner"

    @property
    def needs_gradients(self) -> bool:
        """The score is made of gradients."""
        return True


allocate = share_most


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Keep the neurons whose removal would change the loss most."""
    return pruned_design(gathered(evidence.weight_saliency), weights, allocation, budget)
