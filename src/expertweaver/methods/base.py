"""What a method is: a module with `Options`, `allocate` and `design`.

`allocate` sees the statistics of all layers and decides how many slices each layer shares at least (most methods take
one of those below: `share_as_asked`, `share_most`, `share_nothing`); `design` then turns
one layer's evidence and weights into a partition and a router. The evidence is the layer's statistics in the dense
model, or, for a method whose options say `reads_traffic`, a sample of its tokens in the model converted so far. Both
are functions from values to values. The repair of down_proj is not a method's business: it follows any design that asks
for it (`method.repair`). The first line of the module's docstring is its description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.modeling.values import GLUWeights, LayerDesign, Need, NeuronOracle, Partition, Router
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection
from expertweaver.registry import load_module
from expertweaver.router.mean_gate import mean_gate_router


class Method(Protocol):
    """The contract of a method module."""

    Options: type[MethodSection]

    def allocate(
        self, options: Any, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
    ) -> list[Allocation]:
        """Decide every layer's number of shared slices, or the fewest its design may share.

        `statistics` is empty for a method that reads traffic.
        """
        ...

    def design(
        self,
        options: Any,
        layer: int,
        evidence: Any,
        weights: GLUWeights,
        allocation: Allocation,
        budget: SliceBudget,
    ) -> LayerDesign:
        """Decide one layer's partition and router."""
        ...


def load_method(name: str) -> Method:
    """A registered method by its name."""
    return cast("Method", load_module("methods", name))


def remaining_neurons(shared: Tensor, num_neurons: int) -> Tensor:
    """Ids of the neurons that are not shared, ascending."""
    mask = torch.ones(num_neurons, dtype=torch.bool)
    mask[shared] = False
    return mask.nonzero().squeeze(-1)


def equal_experts(neurons: Tensor, num_experts: int) -> list[Tensor]:
    """Cut an id vector into equal experts, in order; ids ascending inside each."""
    return [part.sort().values for part in neurons.view(num_experts, -1)]


def same_shared(wanted: int, num_layers: int, budget: SliceBudget) -> list[Allocation]:
    """The same number of shared slices in every layer, clipped to what the budget allows."""
    num_shared = min(wanted, budget.max_shared)
    clip = None if num_shared == wanted else f"{wanted} shared slices clipped to {num_shared}"
    return [Allocation(num_shared, clip=clip)] * num_layers


def random_order(num_neurons: int, *, seed: int, layer: int) -> Tensor:
    """Neuron ids in a random order of the layer's own, [n] int64."""
    return torch.randperm(num_neurons, generator=torch.Generator().manual_seed(seed * 100_003 + layer))


def sliced_design(order: Tensor, weights: GLUWeights, allocation: Allocation, budget: SliceBudget) -> LayerDesign:
    """Cut the neurons in the order given: shared slices first, then equal experts with a mean-gate router.

    Args:
        order: Every neuron id once, [F].
        weights: The FFN.
        allocation: How many slices are shared.
        budget: The slices.
    """
    num_shared = allocation.num_shared * budget.slice_width
    experts = equal_experts(order[num_shared:], budget.num_slices - allocation.num_shared)
    router = mean_gate_router(weights.gate, experts, budget.active_slices - allocation.num_shared)
    return LayerDesign(Partition(order[:num_shared].sort().values, experts), router)


def pruned_design(score: Tensor, weights: GLUWeights, allocation: Allocation, budget: SliceBudget) -> LayerDesign:
    """Static pruning in a form that stock formats hold: the neurons of highest score run on every token.

    The best are shared; those that a format must route are experts that the router's bias always chooses, and the
    pruned neurons are experts that it never does. Ties go to the lower id.

    Args:
        score: [F].
        weights: The FFN.
        allocation: How many slices are shared.
        budget: The slices.
    """
    ranking = torch.sort(score, descending=True, stable=True).indices
    num_shared = allocation.num_shared * budget.slice_width
    num_experts = budget.num_slices - allocation.num_shared
    num_chosen = budget.active_slices - allocation.num_shared
    bias = (torch.arange(num_experts) < num_chosen).float()
    router = Router(torch.zeros(num_experts, weights.gate.shape[1]), bias, num_chosen)
    partition = Partition(ranking[:num_shared].sort().values, equal_experts(ranking[num_shared:], num_experts))
    return LayerDesign(partition, router)


def gathered(saliency: Tensor | None) -> Tensor:
    """A gradient statistic that the method asked for through `needs_gradients`."""
    if saliency is None:
        raise ValueError("the statistics hold no gradients, which this method's options ask for")
    return saliency


def oracle_design(rank: Literal["gate", "contribution"], weights: GLUWeights, budget: SliceBudget) -> LayerDesign:
    """One expert of all neurons, of which each token runs its strongest; see `NeuronOracle` for `rank`."""
    everyone = Partition(torch.empty(0, dtype=torch.int64), [torch.arange(weights.num_neurons)])
    return LayerDesign(everyone, NeuronOracle(rank, budget.active_slices * budget.slice_width))


class SharingSection(MethodSection):
    """What the options of methods derive from that share as many slices in every layer and route without a bias."""

    num_shared_slices: int

    def fixed_share(self, budget: SliceBudget) -> int:
        """As many as asked for, as far as the budget allows."""
        return min(self.num_shared_slices, budget.max_shared)

    @property
    def share_setting(self) -> str:
        """The option that says how many."""
        return "method.num_shared_slices"


class PruningSection(MethodSection):
    """What the options of methods derive from whose designs are `pruned_design`s."""

    @property
    def needs_selection_bias(self) -> bool:
        """The bias says which experts always run and which never do."""
        return True

    def fixed_share(self, budget: SliceBudget) -> int:
        """As much as can be shared."""
        return budget.max_shared


class OracleSection(MethodSection):
    """What the options of oracles derive from."""

    @property
    def is_oracle(self) -> bool:
        """It looks at all activations first."""
        return True

    @property
    def needs(self) -> tuple[Need, ...]:
        """Nothing that is served can know this."""
        return (Need.ORACLE,)


def share_as_asked(
    options: SharingSection, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """The `allocate` of methods that share the same few slices in every layer."""
    return same_shared(options.num_shared_slices, num_layers, budget)


def share_most(
    options: MethodSection, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """The `allocate` of static pruning: all that the format allows; the last active slices are always chosen."""
    return [Allocation(budget.max_shared)] * num_layers


def share_nothing(
    options: MethodSection, statistics: Sequence[LayerStatistics], budget: SliceBudget, num_layers: int
) -> list[Allocation]:
    """The `allocate` of methods that decide neuron by neuron what runs, not in whole slices."""
    return [Allocation(0)] * num_layers
