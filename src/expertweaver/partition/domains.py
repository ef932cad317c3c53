"""Experts of a domain's strongest neurons, which may overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from expertweaver.modeling.values import Partition
from expertweaver.partition.allocation import strongest_neurons


def domain_experts(strength: Tensor, num_active: int) -> Partition:
    """Give each domain its strongest neurons; what all domains have in common is shared.

    Args:
        strength: How strong each neuron is in each domain, [D, F].
        num_active: Neurons that a domain runs, shared ones included.

    Returns:
        D experts of `num_active` minus the shared neurons each; neurons of some domains are in several experts, and
        neurons of none in no expert. With one domain all is shared and its expert is empty.

    Source: READ-ME (2410.19123), its domain-aware experts.
    """
    top = torch.zeros(strength.shape, dtype=torch.bool)
    for domain, score in enumerate(strength):
        top[domain, strongest_neurons(score, num_active)] = True
    shared = top.all(dim=0)
    return Partition(shared.nonzero().squeeze(-1), [(own & ~shared).nonzero().squeeze(-1) for own in top])
