"""How many slices an FFN has, how wide they are, how many run per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from expertweaver.errors import PartitionError, Problem

MIN_ROUTED = 2
"""The stock router scores groups by their two best experts, so fewer than two routed slices cannot run."""

ENGINE_BLOCK = 32
"""Quantised kernels work in blocks of 32 columns; narrower or odd expert widths cannot use them."""

GROUPED_BLOCK = 8
"""Grouped matrix kernels want rows of whole 16-byte blocks: 8 neurons in bfloat16."""

FAST_WIDTH = 128
"""Expert width from which CPU kernels come near the speed of a dense FFN; docs/speed.md has the measurements."""


WANTED_SLICES = 64
FEW_SLICES, MANY_SLICES = 16, 256
"""Fewer slices leave little to choose, more make experts that are too narrow; an automatic count keeps between."""


@dataclass(frozen=True)
class SliceBudget:
    """The budget in slices; the same in every layer.

    Attributes:
        num_slices: Equal slices of the FFN.
        slice_width: Neurons a slice (F / num_slices).
        active_slices: Slices run per token, shared and routed together (k).
    """

    num_slices: int
    slice_width: int
    active_slices: int

    @property
    def max_shared(self) -> int:
        """Largest number of shared slices that leaves something to route."""
        return min(self.active_slices - 1, self.num_slices - MIN_ROUTED)

    @property
    def mlp_sparsity(self) -> float:
        """1 - (S + K*I) / F."""
        return 1 - self.active_slices / self.num_slices


def slice_count(intermediate_size: int, *, mlp_sparsities: Sequence[float], num_slices: int | Literal["auto"]) -> int:
    """The count that was asked for, or the one near 64 that suits the FFN and every budget.

    It divides the FFN and leaves a whole number of slices active. Widths in whole blocks of quantised kernels go before
    widths in whole blocks of grouped kernels, and these before all others; then the nearest to 64 by ratio is taken.
    Where no count makes every budget whole, it is the divisor nearest to 64, and `slice_budget` says what would work.
    """
    if num_slices != "auto":
        return num_slices

    def is_whole(count: int) -> bool:
        return all(_is_whole((1 - sparsity) * count) for sparsity in mlp_sparsities)

    divisors = _divisors(intermediate_size)
    counts = [count for count in divisors if is_whole(count)] or divisors
    usual = [count for count in counts if FEW_SLICES <= count <= MANY_SLICES]
    for block in (ENGINE_BLOCK, GROUPED_BLOCK):
        if fitting := [count for count in usual if intermediate_size // count % block == 0]:
            return _nearest(fitting)
    return _nearest(usual or counts)


def _nearest(counts: Sequence[int]) -> int:
    return min(counts, key=lambda count: (abs(math.log(count / WANTED_SLICES)), count))


def _is_whole(active: float) -> bool:
    """Whether so many active slices can be."""
    return abs(active - round(active)) <= 1e-6 and round(active) >= 1


def slice_budget(intermediate_size: int, *, mlp_sparsity: float, num_slices: int) -> SliceBudget:
    """Turn the request into whole slices.

    Raises:
        PartitionError: `num_slices` does not divide F, or `mlp_sparsity` is not a multiple of a slice or leaves no
            slice active; the message names the nearest values that work.
    """
    problems = []
    if num_slices < MIN_ROUTED or intermediate_size % num_slices:
        near = ", ".join(map(str, _near_divisors(intermediate_size, num_slices)))
        expected = f"a divisor of intermediate_size {intermediate_size}, at least {MIN_ROUTED}"
        problems.append(Problem("budget.num_slices", expected, str(num_slices), f"The nearest that work: {near}."))
    active = (1 - mlp_sparsity) * num_slices
    if not _is_whole(active):
        candidates = sorted({min(max(int(active) + step, 1), num_slices) for step in (0, 1)}, reverse=True)
        near = " or ".join(f"{1 - k / num_slices:g} ({k} active slices)" for k in candidates)
        expected = f"a whole number of active slices (steps of 1/{num_slices}), at least one"
        found = f"{mlp_sparsity:g}, which leaves {active:g} of {num_slices} slices"
        problems.append(Problem("budget.mlp_sparsity", expected, found, f"The nearest that work: {near}."))
    if problems:
        raise PartitionError(*problems)
    return SliceBudget(num_slices, intermediate_size // num_slices, round(active))


def _near_divisors(number: int, wanted: int, count: int = 4) -> list[int]:
    return sorted(sorted(_divisors(number), key=lambda d: (abs(d - wanted), d))[:count])


def _divisors(number: int) -> list[int]:
    """Of which there can be as many slices."""
    divisors = {d for i in range(1, int(number**0.5) + 1) if number % i == 0 for d in (i, number // i)}
    return [d for d in divisors if d >= MIN_ROUTED]
