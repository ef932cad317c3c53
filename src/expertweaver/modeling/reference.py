"""The reference forward of a GLU and of its sparse form: short enough to be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from expertweaver.modeling.values import GLUWeights, LayerDesign, NeuronOracle, NeuronRouter, Partition, Router

Activation = Callable[[Tensor], Tensor]

PART_TOKENS = 256
"""Tokens whose activations are computed at a time where a whole batch of them would be large."""


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


def token_parts(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of at most `PART_TOKENS` tokens of each tensor, [T, ...] to [t, ...].

    The parts are even, because some kernels round a handful of rows differently than many.
    """
    parts = max(1, -(-len(rows[0]) // PART_TOKENS))
    return zip(*(each.tensor_split(parts) for each in rows), strict=True)


def by_parts(ffn: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """What a function puts out for `token_parts` of its inputs, [T, ...] each, joined to [T, H].

    An FFN's activations are several times as large as its inputs: those of a part stay near the processor, and the
    memory for them is used again for the next part.
    """
    return torch.cat([ffn(*part) for part in token_parts(*rows)])


def dense_ffn(x: Tensor, weights: GLUWeights, act: Activation) -> Tensor:
    """The dense FFN: [..., H] to [..., H]."""

    def ffn(tokens: Tensor) -> Tensor:
        return neuron_activations(tokens, weights, act)[1] @ weights.down.T

    return by_parts(ffn, x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], len(weights.down))


def choose_experts(x: Tensor, router: Router) -> Tensor:
    """Ids of the K experts each token runs, [T, K], from inputs [T, H]; ties go to the lower id."""
    logits = x.float() @ router.weight.float().T + router.bias.float()
    return torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, : router.num_experts_per_tok]


def chosen_mask(chosen: Tensor, num_experts: int) -> Tensor:
    """Which experts run on which tokens, [T, E] bool, from the chosen ids [T, K]."""
    return torch.zeros(len(chosen), num_experts, dtype=torch.bool, device=chosen.device).scatter_(1, chosen, True)


def choose_by_sigmoid(
    x: Tensor, weight: Tensor, selection_bias: Tensor, num_experts_per_tok: int
) -> tuple[Tensor, Tensor]:
    """The choice of a DeepSeek-V3 style router: the largest sigmoid(x W) + selection bias, in float32.

    Returns:
        Expert ids [T, K], and whether the choice hangs on a tie [T]: the best expert left out scored exactly as
        the worst one chosen, so another implementation may rightly choose the other.
    """
    return choose_largest(sigmoid_scores(x, weight) + selection_bias.float(), num_experts_per_tok)


def choose_largest(scores: Tensor, num_experts_per_tok: int) -> tuple[Tensor, Tensor]:
    """Expert ids [T, K] of the largest scores [T, E], ties to the lower id, and whether the choice hangs on one [T]."""
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


def running_neurons(x: Tensor, gate_act: Tensor, neuron_act: Tensor, design: LayerDesign, down: Tensor) -> Tensor:
    """Which neurons a design runs on which tokens, [T, F] bool.

    Args:
        x: Inputs [T, H].
        gate_act: Of all neurons [T, F].
        neuron_act: Of all neurons [T, F].
        design: Partition and router of any kind; a neuron of several chosen experts runs once.
        down: The source's down_proj [H, F], which an oracle of contributions looks at.
    """
    router, partition = design.router, design.partition
    if isinstance(router, NeuronOracle):
        strength = gate_act.abs() if router.rank == "gate" else neuron_act.abs() * down.norm(dim=0)
        return chosen_mask(strength.topk(router.num_neurons, dim=1).indices, strength.shape[1])
    if isinstance(router, NeuronRouter):
        scores = neuron_act[:, router.neurons].abs()
        chosen = torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, : router.num_experts_per_tok]
    else:
        chosen = choose_experts(x, router)
    return owned_neurons(chosen_mask(chosen, partition.num_experts), partition, neuron_act.shape[1])


def membership(expert_neurons: Sequence[Tensor] | Tensor, num_neurons: int, device: torch.device) -> Tensor:
    """One where an expert has a neuron, else zero, [E, F]."""
    members = torch.zeros(len(expert_neurons), num_neurons, device=device)
    sizes = torch.tensor([len(neurons) for neurons in expert_neurons], dtype=torch.int64)
    owners = torch.arange(len(sizes)).repeat_interleave(sizes).to(device)
    none = torch.empty(0, dtype=torch.int64, device=device)  # there may be no experts, or empty ones
    members[owners, torch.cat([none, *expert_neurons])] = 1
    return members


def owned_neurons(experts: Tensor, partition: Partition, num_neurons: int) -> Tensor:
    """The shared neurons and those of the experts that run: experts [T, E] bool to neurons [T, F] bool."""
    running = experts.float() @ membership(partition.expert_neurons, num_neurons, experts.device) > 0
    running[:, partition.shared_neurons] = True
    return running


def designed_ffn(x: Tensor, weights: GLUWeights, design: LayerDesign, act: Activation) -> Tensor:
    """The FFN that a design makes of a dense one, with weight one for every expert: [T, H] to [T, H].

    It holds what stock formats cannot: any router, unequal or overlapping experts, an output bias.
    """
    down = weights.down if design.down is None else design.down

    def ffn(tokens: Tensor) -> Tensor:
        gate_act, neuron_act = neuron_activations(tokens, weights, act)
        return (neuron_act * running_neurons(tokens, gate_act, neuron_act, design, weights.down)) @ down.T

    output = by_parts(ffn, x)
    return output if design.bias is None else output + design.bias
