"""Do two texts share spans of words? What a model was fitted on must not be what it is judged on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from expertweaver.calibration.documents import Document

SPAN_WORDS = 13
"""Long enough that independent authors do not share a span by chance."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """A document that shares a span of words with another text.

    Attributes:
        index: Place of the document in its text, from 0.
        span: The first shared span, lower-cased words with single spaces.
    """

    index: int
    span: str


def find_overlaps(documents: Sequence[Document], others: Iterable[Document]) -> list[Overlap]:
    """Find the documents that share a span of 13 lower-cased words with any of the others.

    A document of fewer words counts as one span, so it is found where another document has just the same words.
    Time is linear in both texts, memory linear in the first.

    Args:
        documents: What is judged on, such as evaluation text.
        others: Whole documents of the other text, such as calibration text.
    """
    known = {hash(span) for document in documents for span in _spans(document.text)}
    shared = {span for other in others for span in _spans(other.text) if hash(span) in known}
    found = []
    for index, document in enumerate(documents):
        span = next((span for span in _spans(document.text) if span in shared), None)
        if span is not None:
            found.append(Overlap(index, " ".join(span)))
    return found


def _spans(text: str) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    if 0 < len(words) < SPAN_WORDS:
        yield tuple(words)
    for start in range(len(words) - SPAN_WORDS + 1):
        yield tuple(words[start : start + SPAN_WORDS])
