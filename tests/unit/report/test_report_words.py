from __future__ import annotations

import pytest

from expertweaver.report import words


def spaced(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (1_000, "1.00 k"),
        (7_312_000, "7.31 M"),
        (596_049_920, "596 M"),
        (999_800_000, "1.00 B"),
        (1_235_000_000, "1.24 B"),
        (70_540_000_000, "70.5 B"),
    ],
)
def test_short_counts_keep_three_digits(value: int | None, text: str) -> None:
    assert spaced(words.short_count(value)) == text


@pytest.mark.parametrize(("value", "text"), [(0.25, "25 %"), (0.125, "12.5 %"), (0, "0 %"), (None, "–")])
def test_fractions_become_percent_only_here(value: float | None, text: str) -> None:
    assert spaced(words.exact_percent(value)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0914, "+0.091"),
        (-0.0914, "−0.091"),
        (0.0, "±0.000"),
        (-0.0001, "±0.000"),
        (None, "–"),
        (float("nan"), "not a number"),
        (float("inf"), "∞"),
    ],
)
def test_differences_carry_their_sign(value: float | None, text: str) -> None:
    assert words.signed(value) == text


@pytest.mark.parametrize(("value", "text"), [(4.1, "4.10"), (1234.5, "1,234"), (3.2e9, "3.20e+09"), (None, "–")])
def test_perplexity_stays_short(value: float | None, text: str) -> None:
    assert words.perplexity(value) == text


@pytest.mark.parametrize(
    ("names", "text"), [([], "–"), (["a"], "a"), (["a", "b"], "a and b"), (list("abc"), "a, b and c")]
)
def test_lists_read_as_sentences(names: list[str], text: str) -> None:
    assert words.listed(names) == text
