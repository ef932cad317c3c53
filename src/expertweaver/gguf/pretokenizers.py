"""How llama.cpp calls the rules that cut text into words before byte pairs are merged.

llama.cpp does not read these rules from the file: it has them built in, under names. A wrong name gives other tokens
without a word, so a rule that is not in this table is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Steps = tuple[str, ...]
"""A pre-tokenizer's steps, each as a word with its pattern."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER_LOWER = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{END}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{END}"
)
_REST_WITH_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
TEKKEN = _UPPER_LOWER.replace("{END}", "") + r"|\p{N}" + _REST_WITH_SLASH
GPT4O = _UPPER_LOWER.replace("{END}", _CONTRACTIONS + "?") + r"|\p{N}{1,3}" + _REST_WITH_SLASH

NAMES: Mapping[tuple[Steps, bool], str] = {
    (("bytes with words",), False): "gpt-2",
    (("digits", "bytes with words"), False): "smollm",
    ((f"split {LLAMA3}", "bytes"), True): "llama-bpe",
    ((f"split {LLAMA3}", "bytes"), False): "dbrx",
    ((f"split {QWEN2}", "bytes"), False): "qwen2",
    ((f"split {TEKKEN}", "bytes"), True): "tekken",
    ((f"split {GPT4O}", "bytes"), False): "gpt-4o",
}
"""Name by the steps and by whether a word that is a token is taken whole (`ignore_merges`)."""


def steps_of(pre_tokenizer: Mapping[str, Any] | None) -> Steps:
    """A pre-tokenizer of tokenizer.json in the words of this table; a step that has no word keeps its JSON type."""
    if pre_tokenizer is None:
        return ()
    if pre_tokenizer["type"] == "Sequence":
        return tuple(word for step in pre_tokenizer["pretokenizers"] for word in steps_of(step))
    return (_word(pre_tokenizer),)


def _word(step: Mapping[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return "bytes with words" if regex else "bytes"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "bytes with words"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": pattern}}:
            return f"split {pattern}"
    return str({key: step[key] for key in sorted(step)})
