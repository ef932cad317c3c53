"""Documents as windows of token ids, the same ones for every model of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from expertweaver.calibration.documents import Document
from expertweaver.errors import CalibrationError, Problem, RecipeError
from expertweaver.evaluation.loading import Candidate, abbreviate

DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class TokenizedDocument:
    """A document cut into windows, each of at least two token ids; `label` is how messages name it."""

    label: str
    domain: str
    windows: tuple[tuple[int, ...], ...]


def cut_windows(token_ids: Sequence[int], context: int) -> tuple[tuple[int, ...], ...]:
    """Cut ids into consecutive windows of `context` tokens; a last window of one token is left out.

    The first token of a window is not predicted, so n tokens give n - ceil(n / context) predictions.
    """
    windows = (tuple(token_ids[start : start + context]) for start in range(0, len(token_ids), context))
    return tuple(window for window in windows if len(window) > 1)


def window_length(candidates: Sequence[Candidate], context: int | None) -> int:
    """Tokens of a window: what was asked for, or the smallest of 2048 and what the models have positions for.

    Raises:
        RecipeError: More than a model's max_position_embeddings.
    """
    lengths = {c.name: getattr(c.config.get_text_config(), "max_position_embeddings", None) for c in candidates}
    known = {name: length for name, length in lengths.items() if length is not None}
    if context is None:
        return min([DEFAULT_CONTEXT, *known.values()])
    for name, length in known.items():
        if context > length:
            expected = f"at most {length}, the max_position_embeddings of {name}"
            raise RecipeError(Problem("context", expected, str(context), "Lower it or leave it out."))
    return context


def require_free_domains(documents: Sequence[Document], taken: Sequence[str]) -> None:
    """Refuse documents of a domain whose name stands for a sum of domains.

    Raises:
        CalibrationError: There is one.
    """
    for name in taken:
        if any(document.domain == name for document in documents):
            found = "a domain of that name in the text"
            raise CalibrationError(
                Problem(f"domain '{name}'", "free for the sum of several domains", found, "Rename it.")
            )


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False)["input_ids"])


def tokenize_documents(
    documents: Sequence[Document], candidates: Sequence[Candidate], *, context: int, max_tokens: int | None
) -> list[TokenizedDocument]:
    """Tokenize with the first model's tokenizer and require that all others give the same ids.

    The special tokens are those that the tokenizer adds by itself: one that adds no begin-of-sequence token leaves
    the first token of a document unpredicted.

    Raises:
        CalibrationError: Models with different vocabularies, or documents of fewer than two tokens.
    """
    _require_same_vocab_size(candidates)
    labels = [_label(number, document) for number, document in enumerate(documents, start=1)]
    ids = [_token_ids(candidates[0].tokenizer, document.text) for document in documents]
    for candidate in candidates[1:]:
        for label, document, expected in zip(labels, documents, ids, strict=True):
            _require_same_ids(candidates[0], candidate, label, expected, _token_ids(candidate.tokenizer, document.text))
    _require_two_tokens(labels, ids)
    return [
        TokenizedDocument(label, document.domain, cut_windows(token_ids[:max_tokens], context))
        for label, document, token_ids in zip(labels, documents, ids, strict=True)
    ]


def _label(number: int, document: Document) -> str:
    start = " ".join(document.text[:60].split())
    return f"document {number} (domain '{document.domain}', '{start[:40]}')"


def _require_same_vocab_size(candidates: Sequence[Candidate]) -> None:
    first = candidates[0]
    size = first.config.get_text_config().vocab_size
    for other in candidates[1:]:
        found = other.config.get_text_config().vocab_size
        if found != size:
            fix = "Losses per token compare only over one vocabulary; evaluate these models apart."
            expected = f"the vocab_size {size} of {first.name}"
            raise CalibrationError(Problem(other.name, expected, str(found), fix))


def _require_same_ids(first: Candidate, other: Candidate, label: str, expected: list[int], found: list[int]) -> None:
    if expected == found:
        return
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    at = min(len(expected), len(found)) if at is None else at
    raise CalibrationError(
        Problem(
            f"{label}, tokenized by {other.name}",
            f"the token ids of {first.name} ({expected[at : at + 3]} at position {at}, {len(expected)} in all)",
            f"{found[at : at + 3]} there, {len(found)} in all",
            "Give both models the same tokenizer files, or evaluate them apart.",
        )
    )


def _require_two_tokens(labels: Sequence[str], ids: Sequence[list[int]]) -> None:
    short = [f"{label}: {len(token_ids)}" for label, token_ids in zip(labels, ids, strict=True) if len(token_ids) < 2]
    if short:
        found = f"{len(short)} shorter: {abbreviate(short)}"
        fix = "Remove them: nothing can be predicted in them."
        raise CalibrationError(Problem("text", "at least 2 tokens in every document", found, fix))
