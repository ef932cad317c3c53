"""Least-squares repair of down_proj: the active neurons learn what the skipped ones would have added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
Batch = tuple[Tensor, Tensor]
"""Activations of the neurons that run [T, F] and the dense output [T, H]."""


@dataclass(frozen=True)
class Repair:
    """A repaired down_proj and what it gained.

    Attributes:
        down: [H, F] float32.
        ridge: The ridge that the judging tokens chose, relative to the mean diagonal; None if no repair helped.
        error_before: Squared error of the output on the judging tokens, relative to the output's power.
        error_after: The same with the repaired weights.
    """

    down: Tensor
    ridge: float | None
    error_before: float
    error_after: float

    def measures(self, source: Tensor) -> dict[str, float | None]:
        """Numbers for a layer's record; `source` is the down_proj before the repair [H, F]."""
        return {
            "repair_ridge": self.ridge,
            "error_before": self.error_before,
            "error": self.error_after,
            "down_change": float((self.down - source).norm() / source.norm().clamp_min(1e-30)),
        }


def repair_down(fitting: Iterable[Batch], judging: Batch, down: Tensor, *, ridges: Sequence[float] = RIDGES) -> Repair:
    """Fit down_proj so that the active neurons alone reproduce the dense output.

    Solves (A'A + ridge * tr(A'A)/F * I) change = A'(target - A down') for each ridge on the fitting tokens, and keeps
    the one of least error on the judging tokens; no change is among the candidates. Neurons that never ran keep
    their weights (their row of A'A and of the right-hand side is zero). With fewer tokens than neurons the ridge pulls
    the change towards zero. A ridge too small to make the matrix positive definite is passed over.

    Args:
        fitting: Batches of A, the neuron activations with those of skipped neurons set to zero, [T, F], and the output
            of the dense FFN on the same tokens, [T, H]. Read once, one batch in memory.
        judging: The same of tokens held back from the fit.
        down: down_proj [H, F].
        ridges: Candidates, relative to the mean diagonal of the Gram matrix.

    Source: METHODS, weave step 5; products of a batch in float32, their sums and the Cholesky in float64.
    """
    gram, cross = _normal_equations(fitting, down)
    power = max(float(judging[1].double().square().sum()), 1e-30)
    before = _squared_error(judging, down)
    best = (before, None, down)
    scale = gram.diagonal().mean().clamp_min(1e-30)
    for ridge in ridges:
        system = gram.clone()
        system.diagonal().add_(ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(system)
        del system
        if failed:
            continue
        repaired = (down.double() + torch.cholesky_solve(cross, factor).T).float()
        error = _squared_error(judging, repaired)
        if error < best[0]:
            best = (error, ridge, repaired)
    return Repair(best[2], best[1], before / power, best[0] / power)


def _normal_equations(fitting: Iterable[Batch], down: Tensor) -> tuple[Tensor, Tensor]:
    """A'A [F, F] and A'(target - A down') [F, H], summed in float64."""
    hidden, neurons = down.shape
    gram = torch.zeros(neurons, neurons, dtype=torch.float64)
    cross = torch.zeros(neurons, hidden, dtype=torch.float64)
    for active, target in fitting:
        gram += active.T @ active
        cross += active.T @ (target - active @ down.T)
    return gram, cross


def _squared_error(judging: Batch, down: Tensor) -> float:
    active, target = judging
    return float((active @ down.T - target).double().square().sum())
