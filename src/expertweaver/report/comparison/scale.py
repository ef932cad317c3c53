"""A square-root scale: small losses stay apart beside large ones, and zero keeps its place."""

from __future__ import annotations

import math
from collections.abc import Sequence

_STEPS = (1, 2, 5)
_MAX_TICKS = 7


def root(value: float) -> float:
    """The place of a loss: the square root of its size, with its sign."""
    return math.copysign(math.sqrt(abs(value)), value)


def root_ticks(values: Sequence[float]) -> list[float]:
    """Round losses to label: zero, and as many of 1, 2 and 5 times powers of ten as stay readably apart."""
    low, high = min(0.0, *values), max(0.0, *values)
    gap = (root(high) - root(low)) / _MAX_TICKS
    if gap == 0:
        return [0.0]
    sizes = [step * 10.0**power for power in range(3, -7, -1) for step in reversed(_STEPS)]
    kept = [0.0]
    for size in sizes:
        for value in (size, -size):
            if low <= value <= high and all(abs(root(value) - root(other)) >= gap for other in kept):
                kept.append(value)
    return sorted(kept)
