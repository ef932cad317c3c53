"""Routing-aware reassignment: give each neuron to the expert that runs when the neuron matters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def captured_energy(neuron_act: Tensor, down_norm: Tensor, running: Tensor) -> Tensor:
    """Squared contribution each neuron would make under each expert's tokens.

    Args:
        neuron_act: One neuron a row, [F, T].
        down_norm: Norm of each neuron's down column, [F].
        running: Which experts run on which tokens, [T, E] bool.

    Returns:
        gain[j, e] = sum over the tokens where e runs of (neuron_act * down_norm)^2, [F, E] float64.
    """
    gain = torch.zeros(neuron_act.shape[0], running.shape[1], dtype=torch.float64)
    for part, mask in zip(neuron_act.split(2048, dim=1), running.split(2048), strict=True):
        weights = mask.to(part.dtype)
        for some, neurons in zip(gain.split(512), part.split(512), strict=True):  # a square of all would be large
            some += (neurons.square() @ weights).double()
    return gain * down_norm.double().square()[:, None]


def improve_by_swaps(gain: Tensor, labels: Tensor, *, max_sweeps: int = 10) -> Tensor:
    """Swap neurons between experts as long as the captured energy grows; sizes stay as they are.

    For each pair of experts the best set of swaps is taken at once: neurons sorted by what a move would gain, paired
    from the top while the pair's sum is positive. Monotone in the captured energy sum_j gain[j, label_j].

    Args:
        gain: [n, E].
        labels: Expert of each neuron, [n] int64.
        max_sweeps: Passes over all pairs at most; fewer when nothing changes.

    Returns:
        New labels, [n] int64.

    Source: docs/concepts.md, weave step 5.
    """
    values, result = gain.numpy(), labels.numpy().copy()
    num_experts = values.shape[1]
    noise = 1e-12 * max(float(values.max()), 1e-300)
    best = np.stack([_best_moves(values, result, expert) for expert in range(num_experts)])
    for _ in range(max_sweeps):
        changed = False
        for a in range(num_experts):
            for b in range(a + 1, num_experts):
                if best[a, b] + best[b, a] > noise and _swap_pair(values, result, a, b, noise):
                    best[a], best[b] = _best_moves(values, result, a), _best_moves(values, result, b)
                    changed = True
        if not changed:
            break
    return torch.from_numpy(result)


def _best_moves(gain: np.ndarray, labels: np.ndarray, expert: int) -> np.ndarray:
    """What the best move of one neuron from an expert to each other one would gain, [E]."""
    members = gain[labels == expert]
    return (members - members[:, expert, None]).max(axis=0)


def _swap_pair(gain: np.ndarray, labels: np.ndarray, a: int, b: int, noise: float) -> bool:
    in_a, in_b = np.flatnonzero(labels == a), np.flatnonzero(labels == b)
    from_a, from_b = gain[in_a, b] - gain[in_a, a], gain[in_b, a] - gain[in_b, b]
    order_a, order_b = np.argsort(-from_a, kind="stable"), np.argsort(-from_b, kind="stable")
    pairs = min(len(in_a), len(in_b))
    sums = from_a[order_a[:pairs]] + from_b[order_b[:pairs]]
    count = int((sums > noise).sum())
    labels[in_a[order_a[:count]]] = b
    labels[in_b[order_b[:count]]] = a
    return count > 0
