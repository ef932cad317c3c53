"""READ-ME (2410.19123): one overlapping expert a domain, made of the neurons that are strongest there.

What all domains want is shared; each token runs the shared neurons and one domain's expert. The paper trains one
router beside the model that decides for all layers ahead; ours regresses the domain on each layer's input, by ridge.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.methods.base import share_nothing
from expertweaver.modeling.reference import activation, neuron_activations
from expertweaver.modeling.values import GLUWeights, LayerDesign, Need
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.partition.domains import domain_experts
from expertweaver.recipe.schema import MethodSection
from expertweaver.router.ridge import RidgeRegressor

BATCH_TOKENS = 4096


class Options(MethodSection):
    """Options of READ-ME."""

    name: str = "read_me"
    num_tokens: int = Field(default=16384, ge=256, description="Calibration tokens that domains are told by, at most.")
    router_ridge: float = Field(default=1e-3, gt=0, description="Ridge of the router, relative.")

    @property
    def num_probes(self) -> int:
        """Every token that is used is kept."""
        return self.num_tokens

    @property
    def needs(self) -> tuple[Need, ...]:
        """A neuron may belong to several experts or to none, and experts of different layers differ in width."""
        return (Need.OVERLAPPING_EXPERTS,)


allocate = share_nothing


def design(
    options: Options,
    layer: int,
    evidence: LayerStatistics,
    weights: GLUWeights,
    allocation: Allocation,
    budget: SliceBudget,
) -> LayerDesign:
    """Find each domain's neurons, and fit a router that tells the domains apart."""
    domains, labels = evidence.probe_domains.unique(return_inverse=True)
    strength = _mean_abs(evidence.probe_inputs, labels, len(domains), weights.to(torch.float32))
    partition = domain_experts(strength, budget.active_slices * budget.slice_width)
    regressor = RidgeRegressor(evidence.probe_inputs, ridge=options.router_ridge)
    targets = torch.nn.functional.one_hot(labels, len(domains)).float()
    return LayerDesign(partition, regressor.fit(targets, num_experts_per_tok=1))


def _mean_abs(x: Tensor, labels: Tensor, num_domains: int, weights: GLUWeights) -> Tensor:
    """Mean |neuron_act| over each domain's tokens, [D, F] float64."""
    act = activation(weights.hidden_act)
    sums = torch.zeros(num_domains, weights.num_neurons, dtype=torch.float64)
    for tokens, owners in zip(x.split(BATCH_TOKENS), labels.split(BATCH_TOKENS), strict=True):
        sums.index_add_(0, owners, neuron_activations(tokens, weights, act)[1].abs().double())
    return sums / torch.bincount(labels, minlength=num_domains)[:, None]
