"""Both texts of a comparison: what the methods are fitted on, and what they are judged on; they share no span."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from expertweaver.calibration.documents import Document, read_documents
from expertweaver.calibration.overlap import SPAN_WORDS, Overlap, find_overlaps
from expertweaver.calibration.samples import CalibrationSet
from expertweaver.calibration.tokenizer import message_renderer
from expertweaver.comparison.request import Request
from expertweaver.comparison.summary import SUMS
from expertweaver.errors import CalibrationError, Problem
from expertweaver.evaluation.loading import Candidate, abbreviate, open_candidates
from expertweaver.evaluation.tokens import (
    TokenizedDocument,
    require_free_domains,
    tokenize_documents,
    window_length,
)


@dataclass(frozen=True)
class Texts:
    """Tokens to fit on and documents to judge on.

    Attributes:
        candidate: The dense model, without its weights.
        calibration: Packed samples.
        documents: The evaluation text in windows.
        context: Length of a window.
        num_dropped: Evaluation documents left out since they share a span with the calibration text.
    """

    candidate: Candidate
    calibration: CalibrationSet
    documents: list[TokenizedDocument]
    context: int
    num_dropped: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the evaluation documents: windows and domains."""
        return hashlib.sha256(repr([(d.domain, d.windows) for d in self.documents]).encode()).hexdigest()


def read_texts(request: Request) -> Texts:
    """Read both texts, check that they share no span, tokenize them.

    Raises:
        CalibrationError: Text that is unreadable, too short, outside the vocabulary or shared.
        RecipeError: A context longer than the model's positions.
    """
    trust = request.recipe.source.trust_remote_code
    [candidate] = open_candidates([request.recipe.source.model], trust_remote_code=trust, stock_class=True)
    section = request.recipe.evaluate
    context = window_length([candidate], section.context)
    render = message_renderer(candidate.tokenizer)
    fitted = read_documents(request.calibration.paths, render_messages=render)
    judged = read_documents(section.text, render_messages=render)
    require_free_domains(judged, SUMS)
    kept = _without_overlaps(judged, find_overlaps(judged, fitted), drop=request.drop_overlapping)
    documents = tokenize_documents(kept, [candidate], context=context, max_tokens=section.max_tokens_per_document)
    calibration = request.calibration.build(fitted, candidate.tokenizer)
    return Texts(candidate, calibration, documents, context, len(judged) - len(kept))


def _without_overlaps(documents: Sequence[Document], overlaps: Sequence[Overlap], *, drop: bool) -> list[Document]:
    if overlaps and not drop:
        raise _overlap_error(documents, overlaps, "Remove them from one text, or pass --drop-overlapping.")
    found = {overlap.index for overlap in overlaps}
    kept = [document for index, document in enumerate(documents) if index not in found]
    if not kept:
        raise _overlap_error(documents, overlaps, "Dropping them would leave nothing: give other text.")
    return kept


def _overlap_error(documents: Sequence[Document], overlaps: Sequence[Overlap], fix: str) -> CalibrationError:
    names = [f"document {overlap.index + 1} (domain '{documents[overlap.index].domain}')" for overlap in overlaps]
    expected = f"no span of {SPAN_WORDS} words that is in the calibration text too"
    found = (
        f"{len(overlaps)} of {len(documents)} documents with one: {abbreviate(names)}; the first: '{overlaps[0].span}'"
    )
    return CalibrationError(Problem("evaluation text", expected, found, fix))
