"""A router made of the weights the model already has: each expert's mean gate row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expertweaver.modeling.values import Router


def mean_gate_router(gate: Tensor, expert_neurons: Sequence[Tensor], num_experts_per_tok: int) -> Router:
    """Score an expert by its neurons' mean gate pre-activation.

    Args:
        gate: gate_proj [F, H].
        expert_neurons: Neuron ids of each of the E experts.
        num_experts_per_tok: K.

    Source: ExpertWeaver (arXiv 2602.15521), step 5; the same scores as MoEfication's (2110.01786) mean
    pre-activation.
    """
    weight = torch.stack([gate[neurons].float().mean(dim=0) for neurons in expert_neurons])
    return Router(weight, torch.zeros(len(expert_neurons)), num_experts_per_tok)
