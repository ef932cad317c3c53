"""Numbers as readers see them: fractions become percent here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

NOTHING = "–"
_MINUS = "−"
_NO_BREAK = "\u00a0"


def count(value: int | None) -> str:
    """Write a whole number with thousands separators."""
    return NOTHING if value is None else f"{value:,}"


def extent(value: float | Sequence[Any]) -> str:
    """Write a number, or the smallest and the largest of several, also of lists of them: 4 to 12."""
    if isinstance(value, int | float):
        return f"{value:,}"
    flat = [number for item in value for number in (item if isinstance(item, Sequence) else [item])]
    return NOTHING if not flat else " to ".join(f"{number:,}" for number in sorted({min(flat), max(flat)}))


def short_count(value: int | None) -> str:
    """Write a large number with three digits and a letter: 596 M, 1.24 B."""
    if value is None:
        return NOTHING
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{_NO_BREAK}{letter}"
    return str(value)


def percent(value: float | None, digits: int = 0) -> str:
    """Write a fraction as percent."""
    return NOTHING if value is None else f"{decimal(value * 100, digits)}{_NO_BREAK}%"


def exact_percent(value: float | None) -> str:
    """Write a fraction as percent with the digits it needs: 12.5 %, 25 %."""
    return NOTHING if value is None else f"{value * 100:.4g}{_NO_BREAK}%"


def decimal(value: float | None, digits: int = 3) -> str:
    """Write a number with fixed digits and a true minus sign; very large ones as powers of ten."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{_MINUS if value < 0 else ''}∞"
    text = f"{value:.2e}" if abs(value) >= 1e7 else f"{value:,.{digits}f}"
    return text.replace("-", _MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """Write a difference with its sign."""
    if value is None or not math.isfinite(value):
        return decimal(value, digits)
    text = decimal(value, digits)
    if not any(character in "123456789" for character in text):
        return f"±{text.lstrip(_MINUS)}"
    return text if value < 0 else f"+{text}"


def perplexity(value: float | None) -> str:
    """Write a perplexity: two digits, none from a thousand."""
    return decimal(value, 0 if value is not None and value >= 1000 else 2)


def rate(value: float | None) -> str:
    """Write tokens per second with about three digits."""
    if value is None:
        return NOTHING
    return decimal(value, 2 if value < 10 else 1 if value < 100 else 0)


def times(value: float | None) -> str:
    """Write a ratio: 1.18×."""
    return NOTHING if value is None else f"{decimal(value, 2)}×"


def interval(bounds: tuple[float, float] | None) -> str:
    """Write a 95 % interval in nats."""
    return NOTHING if bounds is None else f"{decimal(bounds[0])} to {decimal(bounds[1])}"


def listed(words: Iterable[str]) -> str:
    """Write words as a list in a sentence: a, b and c."""
    *first, last = list(words) or [NOTHING]
    return f"{', '.join(first)} and {last}" if first else last


def plural(number: int, word: str) -> str:
    """Write a word for one or for several things."""
    return word if number == 1 else f"{word}s"
