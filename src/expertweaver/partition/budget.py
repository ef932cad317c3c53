"""How many slices an FFN has, how wide they are, how many run per token."""

from __future__ import annotations

from dataclasses import dataclass

from expertweaver.errors import PartitionError, Problem

MIN_ROUTED = 2
"""The stock router scores groups by their two best experts, so fewer than two routed slices cannot run."""

ENGINE_BLOCK = 32
"""Quantised kernels work in blocks of 32 columns; narrower or odd expert widths cannot use them."""

GROUPED_BLOCK = 8
"""Grouped matrix kernels want rows of whole 16-byte blocks: 8 neurons in bfloat16."""

FAST_WIDTH = 128
"""Expert width from which CPU kernels come near the speed of a dense FFN; docs/speed.md has the measurements."""


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
    if abs(active - round(active)) > 1e-6 or round(active) < 1:
        candidates = sorted({min(max(int(active) + step, 1), num_slices) for step in (0, 1)}, reverse=True)
        near = " or ".join(f"{1 - k / num_slices:g} ({k} active slices)" for k in candidates)
        expected = f"a whole number of active slices (steps of 1/{num_slices}), at least one"
        found = f"{mlp_sparsity:g}, which leaves {active:g} of {num_slices} slices"
        problems.append(Problem("budget.mlp_sparsity", expected, found, f"The nearest that work: {near}."))
    if problems:
        raise PartitionError(*problems)
    return SliceBudget(num_slices, intermediate_size // num_slices, round(active))


def _near_divisors(number: int, wanted: int, count: int = 4) -> list[int]:
    divisors = {d for i in range(1, int(number**0.5) + 1) if number % i == 0 for d in (i, number // i)}
    usable = sorted((d for d in divisors if d >= MIN_ROUTED), key=lambda d: (abs(d - wanted), d))
    return sorted(usable[:count])
