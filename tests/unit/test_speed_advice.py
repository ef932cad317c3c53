"""What `plan` advises about expert widths."""

from __future__ import annotations

from expertweaver.partition.budget import FAST_WIDTH
from expertweaver.planning import speed_advice


def test_wide_enough_experts_need_no_advice() -> None:
    assert speed_advice(4864, FAST_WIDTH) == []


def test_narrow_experts_get_the_counts_that_are_wide_enough() -> None:
    """4864 = 8 * 608 = 19 * 256 = 38 * 128; the next narrower are 64 wide, and fewer than 8 slices are no choice."""
    [advice] = speed_advice(4864, 64)
    assert "num_slices 8, 19, 38 gives widths of 128 and more" in advice
    assert "experts 64 neurons wide" in advice


def test_a_small_ffn_has_none_to_offer() -> None:
    assert speed_advice(64, 8) == []
