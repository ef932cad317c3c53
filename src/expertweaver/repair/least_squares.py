"""Least-squares repair of down_proj: the active neurons learn what the skipped ones would have added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0)
BLOCK = 1024
"""Columns of the Gram matrix that are updated at a time; only blocks on and above the diagonal are computed."""

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
    fitting: Iterable[Batch], judging: Callable[[], Iterable[Batch]], down: Tensor, *, ridges: Sequence[float] = RIDGES
) -> Repair:
    """Fit down_proj so that the active neurons alone give the wanted output.

    Minimises ||A down' - target||^2 + ridge * tr(A'A)/F * ||down' - down||^2 for each ridge on the fitting tokens, and
    keeps the one of least error on the judging tokens; no change is among the candidates. Neurons that never ran keep
    their weights. With fewer tokens than neurons the ridge pulls towards the source. A ridge too small to make the
    matrix positive definite is passed over and named in the result. In memory: two F x F matrices in float64, a batch,
    and a down_proj for each ridge.

    Args:
        fitting: Batches of A, the neuron activations with those of skipped neurons set to zero, [t, F], and the output
            wanted on the same tokens, [t, H]. Read once.
        judging: Gives the same of tokens held back from the fit.
        down: down_proj [H, F].
        ridges: Candidates, relative to the mean diagonal of the Gram matrix.

    Source: METHODS, weave step 5; products of a batch in float32, their sums and the Cholesky in float64.
    """
    gram, cross = _normal_equations(fitting, down)
    solved = dict(_solutions(gram, cross, down, ridges))
    del gram, cross
    candidates = {None: down, **{ridge: found for ridge, found in solved.items() if found is not None}}
    errors, power = _judge(judging(), list(candidates.values()))
    ridge = min(zip(errors, candidates, strict=True), key=lambda pair: pair[0])[1]
    best = min(errors)
    singular = tuple(ridge for ridge, found in solved.items() if found is None)
    return Repair(candidates[ridge], ridge, singular, errors[0] / power, best / power)


def _normal_equations(fitting: Iterable[Batch], down: Tensor) -> tuple[Tensor, Tensor]:
    """A'A [F, F], its upper triangle mirrored, and A'target [F, H], summed in float64."""
    hidden, neurons = down.shape
    gram = torch.zeros(neurons, neurons, dtype=torch.float64)
    cross = torch.zeros(neurons, hidden, dtype=torch.float64)
    for active, target in fitting:
        for start in range(0, neurons, BLOCK):
            rows = slice(start, start + BLOCK)
            gram[rows, start:] += active[:, rows].T @ active[:, start:]
        cross += active.T @ target
    for start in range(0, neurons, BLOCK):
        stop = start + BLOCK
        gram[stop:, start:stop] = gram[start:stop, stop:].T
    return gram, cross


def _solutions(
    gram: Tensor, cross: Tensor, down: Tensor, ridges: Sequence[float]
) -> Iterator[tuple[float, Tensor | None]]:
    """Each ridge and its down_proj [H, F] float32; None where the matrix cannot be factored."""
    scale = float(gram.diagonal().mean().clamp_min(1e-30))
    diagonal = gram.diagonal().clone()
    for ridge in ridges:
        gram.diagonal().copy_(diagonal + ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            yield ridge, None
            continue
        right = cross + ridge * scale * down.T.double()  # two triangular solves: cholesky_solve would copy the factor
        half = torch.linalg.solve_triangular(factor, right, upper=False)
        del right
        yield ridge, torch.linalg.solve_triangular(factor.mT, half, upper=True).T.float().contiguous()
        del factor


def _judge(judging: Iterable[Batch], candidates: Sequence[Tensor]) -> tuple[list[float], float]:
    """Squared error of each candidate, and the squared norm of the target."""
    errors, power = [0.0] * len(candidates), 0.0
    for active, target in judging:
        power += float(target.double().square().sum())
        for number, down in enumerate(candidates):
            errors[number] += float((active @ down.T - target).double().square().sum())
    return errors, max(power, 1e-30)
