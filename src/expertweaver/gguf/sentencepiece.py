"""Byte pairs with byte fallback as SentencePiece's scored pieces, which is how llama.cpp merges them.

llama.cpp merges any two neighbours whose joined text is a token, best score first. That is the same as merging by rank
if every such pair is a merge and the merges that make one token follow each other; otherwise it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expertweaver.errors import CheckpointError, Problem, listed

SPACE = "▁"
FIX = "Serve this model with transformers or vLLM: llama.cpp would cut some texts into other tokens."
REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
METASPACE_REMARK = (
    "the tokenizer puts no space before text that begins with one (nor after a special token), llama.cpp always does"
)
FIRST_REMARK = "the tokenizer puts a space before the first word only, llama.cpp also after every special token"

Merge = tuple[str, ...]


def as_scores(merges: Sequence[Merge], tokens: Sequence[str]) -> list[float]:
    """Score of every token: minus the rank of the first merge that makes it; zero for what no merge makes."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks[text] + 1) if text in ranks else 0.0 for text in tokens]


def check_pieces(
    values: Mapping[str, Any], merges: Sequence[Merge], normal: set[str], every: set[str], where: str
) -> None:
    """Refuse a vocabulary that scores would merge differently from ranks.

    Args:
        values: The tokenizer.json.
        merges: Pairs by rank.
        normal: Texts of the ordinary tokens.
        every: Texts of all tokens.
        where: The file, for messages.

    Raises:
        CheckpointError: Bytes without a token, a word rule, or merges that do not follow from scores.
    """
    problems = []
    if missing := [name for name in (f"<0x{byte:02X}>" for byte in range(256)) if name not in every]:
        problems.append(Problem(where, "a token for each of the 256 bytes", f"none for {listed(missing)}", FIX))
    known = {pair for pair in merges if len(pair) == 2}
    foreign = [text for text in sorted(normal) if any(pair not in known for pair in _splits(text, normal))]
    if foreign:
        found = f"{len(foreign)} tokens that scores would also merge in other ways: {listed(foreign, 5)}"
        problems.append(Problem(f"{where}: merges", "every pair of tokens that makes a token", found, FIX))
    if scattered := _scattered(merges):
        found = f"others between those of {listed(scattered, 5)}"
        problems.append(Problem(f"{where}: merges", "all merges that make a token in a row", found, FIX))
    if problems:
        raise CheckpointError(*problems)


def prefixes_space(values: Mapping[str, Any], where: str) -> tuple[dict[str, bool], list[str]]:
    """Whether a space is put before a text, from the tokenizer's normalizer and word rule, and remarks."""
    normalizer, pre = values["normalizer"], values["pre_tokenizer"]
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if pre is None and steps == [PREPEND, REPLACE_SPACES]:
        return {"add_space_prefix": True}, []
    if pre is None and steps == [REPLACE_SPACES]:
        return {"add_space_prefix": False}, []
    match pre:
        case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False} if steps == [None]:
            if scheme == "never":
                return {"add_space_prefix": False}, []
            return {"add_space_prefix": True}, [METASPACE_REMARK, *([FIRST_REMARK] if scheme == "first" else [])]
    found = f"normalizer {normalizer}, pre_tokenizer {pre}"
    raise CheckpointError(Problem(where, "spaces replaced by '▁' and nothing else before merging", found, FIX))


def _splits(text: str, normal: set[str]) -> list[Merge]:
    pairs = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
    return [pair for pair in pairs if pair[0] in normal and pair[1] in normal]


def _scattered(merges: Sequence[Merge]) -> list[str]:
    """Tokens whose merges have another token's between them."""
    seen: set[str] = set()
    scattered, previous = [], None
    for made in ("".join(pair) for pair in merges):
        if made != previous and made in seen:
            scattered.append(made)
        seen.add(made)
        previous = made
    return scattered
