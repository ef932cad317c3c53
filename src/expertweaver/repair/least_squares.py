"""Least-squares repair of down_proj: the active neurons learn what the skipped ones would have added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
CHUNK_TOKENS = 4096


@dataclass(frozen=True)
class Repair:
    """A repaired down_proj and what it gained.

    Attributes:
        down: [H, F] float32.
        ridge: The ridge that held-back tokens chose, relative to the mean diagonal; None if no repair helped.
        error_before: Squared error of the output on held-back tokens, relative to the output's power.
        error_after: The same with the repaired weights.
    """

    down: Tensor
    ridge: float | None
    error_before: float
    error_after: float


def repair_down(
    active: Tensor, target: Tensor, down: Tensor, held_back: Tensor, *, ridges: Sequence[float] = RIDGES
) -> Repair:
    """Fit down_proj so that the active neurons alone reproduce the dense output.

    Solves (A'A + ridge * tr(A'A)/F * I) change = A'(target - A down') for each ridge on the fitting tokens, and keeps
    the one of least error on the held-back tokens; no change is among the candidates. Neurons that never ran keep
    their weights (their row of A'A and of the right-hand side is zero). With fewer tokens than neurons the ridge pulls
    the change towards zero. A ridge too small to make the matrix positive definite is passed over.

    Args:
        active: Neuron activations with those of skipped neurons set to zero, [T, F].
        target: Output of the dense FFN on the same tokens, [T, H].
        down: down_proj [H, F].
        held_back: Tokens that judge instead of fit, [T] bool.
        ridges: Candidates, relative to the mean diagonal of the Gram matrix.

    Source: METHODS, weave step 5; sums over chunks of tokens in float64, Cholesky in float64.
    """
    fitting = ~held_back
    gram, cross = _normal_equations(active[fitting], target[fitting], down)
    judged, wanted = active[held_back], target[held_back]
    power = float(wanted.double().square().sum())
    best = (_squared_error(judged, wanted, down), None, down)
    before = best[0]
    scale = gram.diagonal().mean().clamp_min(1e-30)
    for ridge in ridges:
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype))
        if failed:
            continue
        change = torch.cholesky_solve(cross, factor)
        repaired = (down.double() + change.T).float()
        error = _squared_error(judged, wanted, repaired)
        if error < best[0]:
            best = (error, ridge, repaired)
    return Repair(best[2], best[1], before / power, best[0] / power)


def _normal_equations(active: Tensor, target: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """A'A [F, F] and A'(target - A down') [F, H], summed in float64."""
    neurons, hidden = active.shape[1], target.shape[1]
    gram = torch.zeros(neurons, neurons, dtype=torch.float64)
    cross = torch.zeros(neurons, hidden, dtype=torch.float64)
    for part, wanted in zip(active.split(CHUNK_TOKENS), target.split(CHUNK_TOKENS), strict=True):
        gram += (part.T @ part).double()
        cross += (part.T @ (wanted - part @ down.T)).double()
    return gram, cross


def _squared_error(active: Tensor, target: Tensor, down: Tensor) -> float:
    return float((active @ down.T - target).double().square().sum())
