from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertweaver.errors import PartitionError
from expertweaver.partition.budget import ENGINE_BLOCK, SliceBudget, slice_budget, slice_count


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


@pytest.mark.parametrize(
    ("intermediate_size", "sparsities", "expected"),
    [
        (4864, [0.25], 76),  # Qwen2.5-0.5B: 64 neurons wide; 64 slices would be 76 wide
        (4864, [0.125], 152),
        (8960, [0.25], 56),  # Qwen2.5-1.5B: 70 slices of 128 have no whole quarter
        (18944, [0.25, 0.5], 148),  # Qwen2.5-7B
        (11008, [0.25], 172),  # Llama-2-7B
        (14336, [0.25], 64),  # Llama-3-8B: 224 wide
        (1024, [0.25], 32),  # the shipped model
        (352, [0.25, 0.5], 44),  # no width of whole blocks of 32: blocks of 8
        (172, [0.25], 172),  # no blocks at all
        (64, [0.25], 64),
        (4864, [], 76),
    ],
)
def test_an_automatic_count_is_near_64_and_suits_engines_and_budgets(
    intermediate_size: int, sparsities: list[float], expected: int
) -> None:
    assert slice_count(intermediate_size, mlp_sparsities=sparsities, num_slices="auto") == expected


@given(blocks=st.integers(16, 600), sparsity=st.sampled_from([0.125, 0.25, 0.5, 0.75]))
def test_an_automatic_count_makes_the_budget_whole_wherever_one_does(blocks: int, sparsity: float) -> None:
    count = slice_count(blocks * ENGINE_BLOCK, mlp_sparsities=[sparsity], num_slices="auto")
    assert slice_budget(blocks * ENGINE_BLOCK, mlp_sparsity=sparsity, num_slices=count).num_slices == count


def test_an_impossible_budget_is_refused_with_values_that_work() -> None:
    count = slice_count(4864, mlp_sparsities=[0.3], num_slices="auto")
    with pytest.raises(PartitionError, match=r"steps of 1/76.*The nearest that work: 0"):
        slice_budget(4864, mlp_sparsity=0.3, num_slices=count)


def test_a_given_count_is_kept() -> None:
    assert slice_count(4864, mlp_sparsities=[0.25], num_slices=64) == 64
