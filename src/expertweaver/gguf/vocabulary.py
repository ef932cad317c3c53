"""A tokenizer as llama.cpp reads it: tokens, types, merges or scores, special ids, the name of its word rule.

What llama.cpp would tokenize differently without a word is refused; smaller differences are remarks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from expertweaver.calibration.tokenizer import load_tokenizer
from expertweaver.checkpoint.record import read_json
from expertweaver.errors import CheckpointError, Problem, listed
from expertweaver.gguf.architectures.base import KeyValues, Value
from expertweaver.gguf.pretokenizers import NAMES, steps_of
from expertweaver.gguf.sentencepiece import as_scores, check_pieces, prefixes_space

FIX = "Serve this model with transformers or vLLM; for llama.cpp it would need a rule that this writer does not know."
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


class TokenType(IntEnum):
    """llama.cpp's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Everything that the file says of the tokenizer.

    Attributes:
        tokens: Text of every token, by id; as many as the embeddings have rows.
        types: Kind of every token.
        model: The keys of the merging rule, its word rule and its merges or scores.
        special: Ids of bos, eos, eot, eom, unk and pad, where there are such.
        switches: Whether bos and eos are added, and a space before the text.
        chat_template: Jinja source, if the tokenizer has one.
        remarks: Where llama.cpp may differ a little.
    """

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    model: Mapping[str, Value]
    special: Mapping[str, int]
    switches: Mapping[str, bool]
    chat_template: str | None
    remarks: tuple[str, ...]

    @property
    def key_values(self) -> KeyValues:
        """The keys under `tokenizer.`."""
        keys = {f"tokenizer.ggml.{key}": value for key, value in self.model.items()}
        keys["tokenizer.ggml.tokens"] = list(self.tokens)
        keys["tokenizer.ggml.token_type"] = [int(kind) for kind in self.types]
        keys |= {f"tokenizer.ggml.{name}_token_id": token for name, token in self.special.items()}
        keys |= {f"tokenizer.ggml.{name}": wanted for name, wanted in self.switches.items()}
        return keys | ({"tokenizer.chat_template": self.chat_template} if self.chat_template else {})


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Read a model folder's tokenizer as transformers loads it, and bring it into llama.cpp's terms.

    Args:
        folder: The model.
        vocab_size: Rows of the embeddings; ids that the tokenizer has no token for become unused tokens.

    Raises:
        CheckpointError: No tokenizer, or one that llama.cpp would apply differently.
    """
    tokenizer = load_tokenizer(folder)
    where = str(folder / "tokenizer.json")
    if not hasattr(tokenizer, "backend_tokenizer"):
        fix = "Save the tokenizer as tokenizer.json (save_pretrained of a fast tokenizer does)."
        raise CheckpointError(Problem(where, "a fast tokenizer", type(tokenizer).__name__, fix))
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, types = _tokens(values, vocab_size, where)
    model, switches, remarks = _model(values, tokens, types, where)
    special, more = _special_ids(tokenizer, folder, where)
    template, template_remarks = _chat_template(tokenizer)
    return Vocabulary(
        tokens=tuple(tokens),
        types=tuple(types),
        model=model,
        special=special,
        switches=switches | _added_around(tokenizer, where),
        chat_template=template,
        remarks=(*remarks, *_added_token_remarks(values), *more, *template_remarks),
    )


def _tokens(values: Mapping[str, Any], vocab_size: int, where: str) -> tuple[list[str], list[TokenType]]:
    """Text and kind of every id."""
    vocabulary: Mapping[str, int] = values["model"]["vocab"] if isinstance(values["model"].get("vocab"), dict) else {}
    added = {token["id"]: token for token in values["added_tokens"]}
    texts = {token: text for text, token in vocabulary.items()} | {i: token["content"] for i, token in added.items()}
    if texts and max(texts) >= vocab_size:
        fix = "Use the tokenizer that belongs to these weights."
        raise CheckpointError(Problem(where, f"token ids below {vocab_size}", f"id {max(texts)}", fix))
    unknown, in_bytes = values["model"].get("unk_token"), bool(values["model"].get("byte_fallback"))
    tokens, types = [], []
    for token in range(vocab_size):
        tokens.append(texts.get(token, f"[UNUSED_{token}]"))
        types.append(_type(token, texts.get(token), added.get(token), unknown, in_bytes))
    if twice := [text for text, times in Counter(tokens).items() if times > 1]:
        raise CheckpointError(Problem(where, "a text of its own for every token", f"twice {listed(twice, 5)}", FIX))
    return tokens, types


def _type(token: int, text: str | None, added: Mapping[str, Any] | None, unknown: Any, in_bytes: bool) -> TokenType:
    if text is None:
        return TokenType.UNUSED
    if in_bytes and text == unknown:
        return TokenType.UNKNOWN
    if added is not None:
        return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return TokenType.BYTE if in_bytes and text in BYTES else TokenType.NORMAL


def _model(
    values: Mapping[str, Any], tokens: Sequence[str], types: Sequence[TokenType], where: str
) -> tuple[dict[str, Value], dict[str, bool], list[str]]:
    """The merging rule: byte pairs by rank (GPT-2's kind) or pieces by score (SentencePiece's kind)."""
    from tokenizers.pre_tokenizers import ByteLevel

    model = values["model"]
    if model["type"] != "BPE":
        raise CheckpointError(Problem(where, "a tokenizer of type BPE", model["type"], FIX))
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise CheckpointError(Problem(f"{where}: {key}", "none", repr(model[key]), FIX))
    if model.get("byte_fallback"):
        normal = {text for text, kind in zip(tokens, types, strict=True) if kind is TokenType.NORMAL}
        check_pieces(values, merges, normal, set(tokens), where)
        switches, remarks = prefixes_space(values, where)
        scores = as_scores(merges, tokens)
        return {"model": "llama", "pre": "default", "scores": scores}, switches, remarks
    pre, remarks = _word_rule(values, where)
    if not merges:
        raise CheckpointError(Problem(f"{where}: merges", "at least one", "none", FIX))
    if missing := [byte for byte in ByteLevel.alphabet() if byte not in model["vocab"]]:
        remarks.append(f"{len(missing)} of 256 bytes have no token; llama.cpp drops them from a text")
    return {"model": "gpt2", "pre": pre, "merges": [" ".join(pair) for pair in merges]}, {}, remarks


def _word_rule(values: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """llama.cpp's name of the rule that cuts text into words."""
    steps, whole = steps_of(values["pre_tokenizer"]), bool(values["model"].get("ignore_merges"))
    if (steps, whole) not in NAMES:
        found = f"{' then '.join(steps) or 'none'} (ignore_merges {str(whole).lower()})"
        expected = f"a word rule that llama.cpp has built in ({', '.join(NAMES.values())})"
        raise CheckpointError(Problem(f"{where}: pre_tokenizer", expected, found, FIX))
    normalizer = values["normalizer"]
    if normalizer is None:
        return NAMES[steps, whole], []
    if normalizer == {"type": "NFC"}:
        remark = "the tokenizer brings text into Unicode form NFC first, llama.cpp does not: give it text in that form"
        return NAMES[steps, whole], [remark]
    raise CheckpointError(Problem(f"{where}: normalizer", "none or NFC", json.dumps(normalizer), FIX))


def _special_ids(tokenizer: Any, folder: Path, where: str) -> tuple[dict[str, int], list[str]]:
    """Ids by llama.cpp's names; what else ends a generation becomes eot and eom."""
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {long: getattr(tokenizer, f"{short}_token_id") for short, long in names.items()}
    if ids["eos"] is None:  # llama.cpp would take token 11 or 2 for it
        fix = "Name the tokenizer's eos_token in tokenizer_config.json."
        raise CheckpointError(Problem(where, "a token that ends a text", "none", fix))
    ends = [token for token in _generation_ends(folder) if token != ids["eos"]]
    ids |= dict(zip(("eot", "eom"), ends, strict=False))
    remarks = [f"token {token} also ends a generation; the file has no place to say so" for token in ends[2:]]
    return {name: token for name, token in ids.items() if token is not None}, remarks


def _generation_ends(folder: Path) -> list[int]:
    """Ids that end a generation, by generation_config.json or else config.json."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        ends = read_json(file).get("eos_token_id") if file.is_file() else None
        if ends is not None:
            return list(dict.fromkeys(ends)) if isinstance(ends, list) else [ends]
    return []


def _added_around(tokenizer: Any, where: str) -> dict[str, bool]:
    """Whether the tokenizer puts bos before a text and eos after it; anything else is refused."""
    inner = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for before in ([], [bos]):
        for after in ([], [eos]):
            if whole == [*before, *inner, *after]:
                return {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    found = ", ".join(map(str, whole))
    raise CheckpointError(Problem(where, "at most bos before and eos after a text", f"ids {found} for 'a'", FIX))


def _added_token_remarks(values: Mapping[str, Any]) -> list[str]:
    """Added tokens that swallow spaces or need word borders, which the file cannot say."""
    flags = ("lstrip", "rstrip", "single_word")
    names = [token["content"] for token in values["added_tokens"] if any(token[flag] for flag in flags)]
    if not names:
        return []
    return [f"spaces around {', '.join(names[:5])}{' and others' if len(names) > 5 else ''} may be read differently"]


def _chat_template(tokenizer: Any) -> tuple[str | None, list[str]]:
    template = tokenizer.chat_template
    if not isinstance(template, dict):
        return template, []
    others = sorted(set(template) - {"default"})
    return template.get("default"), [f"chat templates that were left out: {', '.join(others)}"] if others else []
