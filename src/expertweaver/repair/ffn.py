"""Repairing an FFN from its inputs: which tokens fit, which judge, and a batch of activations at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from expertweaver.modeling.reference import activation, neuron_activations
from expertweaver.modeling.values import GLUWeights
from expertweaver.repair.least_squares import Batch, Repair, repair_down

TOKENS_PER_NEURON = 8
"""Calibration tokens a neuron that the repair wants."""

BATCH_TOKENS = 4096
"""Tokens whose activations are in memory at a time while the repair is fitted."""

JUDGE_EVERY, JUDGE_RUN = 8, 64
"""Of every 8 runs of up to 64 tokens one is held back to judge."""


def held_back(num_tokens: int) -> Tensor:
    """Which tokens judge instead of fit, [T] bool: one run of every few, so that neighbours stay together."""
    run = min(JUDGE_RUN, max(1, num_tokens // (4 * JUDGE_EVERY)))
    return (torch.arange(num_tokens) // run) % JUDGE_EVERY == JUDGE_EVERY - 1


def repair_ffn(x: Tensor, weights: GLUWeights, running: Callable[[Tensor], Tensor]) -> Repair:
    """Repair down_proj so that the neurons that run reproduce the dense FFN's output.

    Args:
        x: FFN inputs [T, H].
        weights: The dense FFN, float32.
        running: Maps inputs [t, H] to one where a neuron runs and zero where it is skipped, [t, F].
    """
    act, judge = activation(weights.hidden_act), held_back(len(x))

    def activations(tokens: Tensor) -> Batch:
        full = neuron_activations(tokens, weights, act)[1]
        return full * running(tokens), full @ weights.down.T

    return repair_down(map(activations, x[~judge].split(BATCH_TOKENS)), activations(x[judge]), weights.down)


def few_tokens(num_tokens: int, intermediate_size: int) -> list[str]:
    """What to tell a user whose tokens are few for the repair: its ridge then holds it at the source's weights."""
    if num_tokens >= TOKENS_PER_NEURON * intermediate_size:
        return []
    return [
        f"at most {num_tokens:,} calibration tokens are {num_tokens / intermediate_size:.1f} per FFN neuron; the "
        f"least-squares repair wants {TOKENS_PER_NEURON} and changes less with fewer: raise calibration.num_samples"
    ]
