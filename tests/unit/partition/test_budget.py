from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertweaver.errors import PartitionError
from expertweaver.partition.budget import SliceBudget, slice_budget


def test_quarter_of_64_slices() -> None:
    budget = slice_budget(1024, mlp_sparsity=0.25, num_slices=64)
    assert budget == SliceBudget(num_slices=64, slice_width=16, active_slices=48)
    assert budget.mlp_sparsity == 0.25
    assert budget.max_shared == 47


def test_nothing_skipped_still_leaves_two_routed_slices() -> None:
    budget = slice_budget(64, mlp_sparsity=0.0, num_slices=8)
    assert (budget.active_slices, budget.max_shared) == (8, 6)


@given(slices=st.integers(2, 64), width=st.integers(1, 40), active=st.integers(1, 64))
def test_every_whole_number_of_slices_is_accepted(slices: int, width: int, active: int) -> None:
    active = min(active, slices)
    budget = slice_budget(slices * width, mlp_sparsity=1 - active / slices, num_slices=slices)
    assert (budget.active_slices, budget.slice_width) == (active, width)


def test_a_width_that_does_not_divide_names_the_nearest() -> None:
    with pytest.raises(PartitionError) as caught:
        slice_budget(4864, mlp_sparsity=0.25, num_slices=60)
    assert "The nearest that work: 32, 38, 64, 76" in str(caught.value)


def test_a_part_of_a_slice_names_both_neighbours() -> None:
    with pytest.raises(PartitionError, match=r"0\.28125 \(23 active slices\)") as caught:
        slice_budget(64, mlp_sparsity=0.3, num_slices=32)
    assert "0.3125 (22 active slices)" in str(caught.value)


def test_both_problems_are_told_at_once() -> None:
    with pytest.raises(PartitionError) as caught:
        slice_budget(100, mlp_sparsity=0.33, num_slices=30)
    assert len(caught.value.problems) == 2


def test_no_active_slice_is_refused() -> None:
    with pytest.raises(PartitionError, match="at least one"):
        slice_budget(64, mlp_sparsity=0.99999999, num_slices=4)
