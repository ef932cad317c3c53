"""Least-squares repair of down_proj: the active neurons learn what the skipped ones would have added."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from expertweaver.distributed import ALONE, Group

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0)
FIRST_RIDGE = 1e-2
"""Where the search begins, with a neighbour on each side."""

BLOCK = 128
"""Rows of the Gram matrix that are updated at a time; only those parts from the diagonal on are computed and kept."""

OUTPUTS = 64
"""Rows of down_proj that are solved for at a time."""

Batch = tuple[Tensor, Tensor]
"""Activations of the neurons that run [t, F] and the output they should give together [t, H]."""


@dataclass(frozen=True)
class Repair:
    """A repaired down_proj and what it gained.

    Attributes:
        down: [H, F] float32.
        ridge: The ridge that the judging tokens chose, relative to the mean diagonal; None if no repair helped.
        singular: Ridges that were passed over because the matrix could not be factored.
        error_before: Squared error of the output on the judging tokens, relative to the target's power.
        error_after: The same with the repaired weights.
    """

    down: Tensor
    ridge: float | None
    singular: tuple[float, ...]
    error_before: float
    error_after: float

    def measures(self, source: Tensor) -> dict[str, float | None]:
        """Numbers for a layer's record; `source` is the down_proj before the repair [H, F]."""
        return {
            "repair_ridge": self.ridge,
            "repair_ridges_singular": float(len(self.singular)),
            "error_before": self.error_before,
            "error": self.error_after,
            "down_change": float((self.down - source).norm() / source.norm().clamp_min(1e-30)),
        }


def repair_down(
    fitting: Iterable[Batch],
    judging: Callable[[], Iterable[Batch]],
    down: Tensor,
    *,
    num_fitting: int,
    ridges: Sequence[float] = RIDGES,
    group: Group = ALONE,
) -> Repair:
    """Fit down_proj so that the active neurons alone give the wanted output.

    Minimises ||A down' - target||^2 + ridge * tr(A'A)/F * ||down' - down||^2 on the fitting tokens, for the ridge of
    least error on the judging tokens; no change is among the candidates. The ridges are walked from `FIRST_RIDGE`
    downhill until both neighbours of the best are worse. Neurons that never ran keep their weights. With fewer tokens
    than neurons the ridge pulls towards the source. A ridge too small to make the matrix positive definite is passed
    over and named in the result.

    The work grows with min(F, T): the system has F unknowns, or T where tokens are fewer than neurons. In memory are
    one and a half matrices of that size squared in float64 (two where T < F, and all of A), a batch, and down_proj a
    few times.

    Several processes add up their products, and their errors on judging tokens; the leader solves.

    Args:
        fitting: Batches of A, the neuron activations with those of skipped neurons set to zero, [t, F], and the output
            wanted on the same tokens, [t, H]. Read once.
        judging: Gives the same of tokens held back from the fit; read at every step of the walk.
        down: down_proj [H, F].
        num_fitting: T, the fitting tokens of all processes.
        ridges: Candidates, rising, relative to the mean diagonal of the Gram matrix.
        group: The processes that have batches.

    Source: docs/concepts.md, weave step 7; products of a batch in float32, their sums and the Cholesky in float64.
    """
    make_system = _neuron_system if num_fitting >= down.shape[1] else _token_system
    system = make_system(fitting, down, group)
    errors: dict[float | None, float] = {}
    candidates: dict[float | None, Tensor] = {None: down}
    chosen, power, best = min(ridges, key=lambda ridge: abs(ridge - FIRST_RIDGE)), 0.0, None
    while ahead := [ridge for ridge in _around(chosen, ridges) if ridge not in errors]:
        solved = {ridge: group.lead(lambda ridge=ridge: system.solution(ridge)) for ridge in ahead}
        candidates |= {ridge: found for ridge, found in solved.items() if found is not None}
        unjudged = [trial for trial in candidates if trial not in errors]
        found, power = _judge(judging(), [candidates[trial] for trial in unjudged], group)
        errors |= dict.fromkeys(ahead, math.inf) | dict(zip(unjudged, found, strict=True))
        best = min(candidates, key=lambda trial: errors[trial])
        candidates = {None: down, best: candidates[best]}
        chosen = min((ridge for ridge in errors if ridge is not None), key=lambda ridge: (errors[ridge], -ridge))
    singular = tuple(sorted(ridge for ridge, error in errors.items() if ridge is not None and error == math.inf))
    return Repair(candidates[best], best, singular, errors[None] / power, errors[best] / power)


def _around(ridge: float, ridges: Sequence[float]) -> Sequence[float]:
    """A ridge and its neighbours."""
    place = ridges.index(ridge)
    return ridges[max(0, place - 1) : place + 2]


class _System(Protocol):
    """The equations of one layer."""

    def solution(self, ridge: float) -> Tensor | None:
        """The down_proj [H, F] float32 of one ridge; None where the matrix cannot be factored."""
        ...


@dataclass(frozen=True)
class _NeuronSystem:
    """down' (A'A + w) = target'A + w down, one unknown a neuron.

    Attributes:
        gram: A'A by blocks of rows from the diagonal on, [b, F - start] float64 each.
        cross: A'target, [F, H] float64.
        down: [H, F].
    """

    gram: Sequence[Tensor]
    cross: Tensor
    down: Tensor

    def solution(self, ridge: float) -> Tensor | None:
        weight = ridge * _mean_diagonal(torch.cat([block.diagonal() for block in self.gram]), self.down)
        factor = _factor(self._below_diagonal(), weight)
        if factor is None:
            return None
        solution = torch.empty_like(self.down, dtype=torch.float32)
        parts = (solution.split(OUTPUTS), self.down.split(OUTPUTS), self.cross.split(OUTPUTS, dim=1))
        for found, down, cross in zip(*parts, strict=True):  # cholesky_solve would copy the factor
            half = torch.linalg.solve_triangular(factor, cross + weight * down.T.double(), upper=False)
            found.copy_(torch.linalg.solve_triangular(factor.mT, half, upper=True).T)
        return solution

    def _below_diagonal(self) -> Tensor:
        """The Gram matrix on and below the diagonal, column by column; above it is whatever was in memory."""
        neurons, start = len(self.cross), 0
        lower = torch.empty(neurons, neurons, dtype=torch.float64, device=self.cross.device).mT
        for block in self.gram:
            stop = start + len(block)
            lower[start:stop, start:stop] = block[:, : len(block)]
            lower[stop:, start:stop] = block[:, len(block) :].T
            start = stop
        return lower


@dataclass(frozen=True)
class _TokenSystem:
    """down' = down + residual' (AA' + w)^-1 A, one unknown a token: the same solution, for fewer tokens than neurons.

    Attributes:
        active: A, [T, F] float32.
        gram: AA', [T, T] float64.
        residual: target - A down', [T, H] float64.
        down: [H, F].
    """

    active: Tensor
    gram: Tensor
    residual: Tensor
    down: Tensor

    def solution(self, ridge: float) -> Tensor | None:
        weight = ridge * _mean_diagonal(self.gram.diagonal(), self.down)
        factor = _factor(torch.empty_like(self.gram).mT.copy_(self.gram), weight)
        if factor is None:
            return None
        return self.down + torch.cholesky_solve(self.residual, factor).float().T @ self.active


def _mean_diagonal(diagonal: Tensor, down: Tensor) -> float:
    """tr(A'A) / F, which is tr(AA') / F."""
    return max(float(diagonal.sum()) / down.shape[1], 1e-30)


def _factor(lower: Tensor, weight: float) -> Tensor | None:
    """Lower Cholesky factor of a matrix plus a weight on its diagonal; None if that is not positive definite.

    Args:
        lower: The matrix on and below its diagonal, its columns one after the other in memory; the factor takes its
            place.
        weight: Added to the diagonal.
    """
    lower.diagonal().add_(weight)
    factor, failed = torch.linalg.cholesky_ex(lower, out=(lower, lower.new_empty((), dtype=torch.int32)))
    return None if failed else factor


def _neuron_system(fitting: Iterable[Batch], down: Tensor, group: Group) -> _NeuronSystem:
    hidden, neurons = down.shape
    starts = range(0, neurons, BLOCK)
    gram = [down.new_zeros(min(BLOCK, neurons - at), neurons - at, dtype=torch.float64) for at in starts]
    cross = down.new_zeros(neurons, hidden, dtype=torch.float64)
    for active, target in fitting:
        for start, block in zip(starts, gram, strict=True):
            block += active[:, start : start + BLOCK].T @ active[:, start:]
        cross += active.T @ target
        del active, target  # or they would be there beside the next ones
    for part in (cross, *gram):
        group.sum(part)
    return _NeuronSystem(gram, cross, down)


def _token_system(fitting: Iterable[Batch], down: Tensor, group: Group) -> _TokenSystem:
    none = (down.new_empty(0, down.shape[1]), down.new_empty(0, len(down), dtype=torch.float64))
    parts = [none, *((active, target.double() - (active @ down.T).double()) for active, target in fitting)]
    active, residual = (group.rows(torch.cat(part)) for part in zip(*parts, strict=True))
    return _TokenSystem(active, (active @ active.T).double(), residual, down)


def _judge(judging: Iterable[Batch], candidates: Sequence[Tensor], group: Group) -> tuple[list[float], float]:
    """Squared error of each candidate, and the squared norm of the target."""
    errors, power = [0.0] * len(candidates), 0.0
    for active, target in judging:
        power += float(target.double().square().sum())
        for number, down in enumerate(candidates):
            errors[number] += float((active @ down.T - target).double().square().sum())
        del active, target
    power, *errors = group.sum(torch.tensor([power, *errors], dtype=torch.float64)).tolist()
    return errors, max(power, 1e-30)
