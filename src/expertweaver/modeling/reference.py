"""The reference forward of a GLU and of its sparse form: short enough to be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from expertweaver.modeling.values import GLUWeights, Router

Activation = Callable[[Tensor], Tensor]


def activation(name: str) -> Activation:
    """The gate's activation function by its configuration name (`silu`)."""
    from transformers.activations import ACT2FN

    return ACT2FN[name]


def neuron_activations(x: Tensor, weights: GLUWeights, act: Activation) -> tuple[Tensor, Tensor]:
    """Compute gate_act = act(x Wg) and neuron_act = gate_act * (x Wu).

    Args:
        x: Inputs of the FFN, [..., H].
        weights: The GLU.
        act: The gate's activation function.

    Returns:
        gate_act and neuron_act, [..., F] each.
    """
    gate_act = act(x @ weights.gate.T)
    return gate_act, gate_act * (x @ weights.up.T)


def dense_ffn(x: Tensor, weights: GLUWeights, act: Activation) -> Tensor:
    """The dense FFN: [..., H] to [..., H]."""
    return neuron_activations(x, weights, act)[1] @ weights.down.T


def choose_experts(x: Tensor, router: Router) -> Tensor:
    """Ids of the K experts each token runs, [T, K], from inputs [T, H]; ties go to the lower id."""
    logits = x.float() @ router.weight.float().T + router.bias.float()
    return torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, : router.num_experts_per_tok]


def chosen_mask(chosen: Tensor, num_experts: int) -> Tensor:
    """Which experts run on which tokens, [T, E] bool, from the chosen ids [T, K]."""
    return torch.zeros(len(chosen), num_experts, dtype=torch.bool).scatter_(1, chosen, True)


def choose_by_sigmoid(
    x: Tensor, weight: Tensor, selection_bias: Tensor, num_experts_per_tok: int
) -> tuple[Tensor, Tensor]:
    """The choice of a DeepSeek-V3 style router: the largest sigmoid(x W) + selection bias, in float32.

    Returns:
        Expert ids [T, K], and whether the choice hangs on a tie [T]: the best expert left out scored exactly as
        the worst one chosen, so another implementation may rightly choose the other.
    """
    scores = sigmoid_scores(x, weight) + selection_bias.float()
    ordered = scores.sort(dim=-1, descending=True, stable=True)
    padded = torch.nn.functional.pad(ordered.values, (0, 1), value=-torch.inf)
    tied = padded[:, num_experts_per_tok - 1] == padded[:, num_experts_per_tok]
    return ordered.indices[:, :num_experts_per_tok], tied


def sigmoid_scores(x: Tensor, weight: Tensor) -> Tensor:
    """Router scores sigmoid(x W) of a DeepSeek-V3 style router in float32: [T, H], [E, H] to [T, E]."""
    return torch.nn.functional.linear(x.float(), weight.float()).sigmoid()


def sparse_ffn(
    x: Tensor,
    shared: GLUWeights,
    experts: Sequence[GLUWeights],
    chosen: Tensor,
    act: Activation,
    routing_weights: Tensor | None = None,
) -> Tensor:
    """The shared expert plus the weighted sum of the chosen routed experts.

    Args:
        x: Inputs [T, H].
        shared: The shared expert; may have zero neurons.
        experts: The E routed experts.
        chosen: Expert ids of each token [T, K].
        act: The gate's activation function.
        routing_weights: Weight of each expert for each token [T, E]; None means one.

    Returns:
        Outputs [T, H].
    """
    output = dense_ffn(x, shared, act)
    for expert, weights in enumerate(experts):
        tokens = (chosen == expert).any(dim=-1).nonzero().squeeze(-1)
        part = dense_ffn(x[tokens], weights, act)
        if routing_weights is not None:
            part = part * routing_weights[tokens, expert, None]
        output = output.index_add(0, tokens, part)
    return output
