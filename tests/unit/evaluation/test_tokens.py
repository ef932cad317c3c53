"""Windows of token ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertweaver.evaluation.tokens import cut_windows


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (7, [(0, 1, 2), (3, 4, 5)]),
        (8, [(0, 1, 2), (3, 4, 5), (6, 7)]),
        (3, [(0, 1, 2)]),
        (2, [(0, 1)]),
    ],
)
def test_a_last_window_of_one_token_is_left_out(length: int, expected: list[tuple[int, ...]]) -> None:
    assert list(cut_windows(range(length), 3)) == expected


@given(length=st.integers(2, 200), context=st.integers(2, 50))
def test_every_token_but_the_first_of_a_window_is_predicted_once(length: int, context: int) -> None:
    windows = cut_windows(range(length), context)
    predicted = [token for window in windows for token in window[1:]]
    assert predicted == [token for token in range(length) if token % context]
    assert len(predicted) == length - -(-length // context)
    assert all(2 <= len(window) <= context for window in windows)
