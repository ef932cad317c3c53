"""Small tokenizers of the kinds that llama.cpp knows, saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("1", "2")]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(
    *,
    specials: Sequence[str] = ("<s>", "</s>"),
    merges: Sequence[tuple[str, str]] = MERGES,
    pre_tokenizer: Any = None,
    symbols: Sequence[str] | None = None,
    **options: Any,
) -> Tokenizer:
    """A GPT-2-like tokenizer: special tokens, one token a byte, and what the merges make."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) if symbols is None else symbols
    texts = [*specials, *symbols, *("".join(pair) for pair in merges)]
    vocabulary = {text: token for token, text in enumerate(dict.fromkeys(texts))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=list(merges), **options))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces(*, merges: Sequence[tuple[str, str]] = (), letters: str = "▁the", **changes: Any) -> Tokenizer:
    """A SentencePiece-like tokenizer: unknown, bos, eos, one token a byte, letters, and what the merges make."""
    texts = ["<unk>", "<s>", "</s>", *changes.pop("byte_tokens", BYTE_TOKENS), *letters]
    texts += ["".join(pair) for pair in merges]
    vocabulary = {text: token for token, text in enumerate(dict.fromkeys(texts))}
    model = models.BPE(vocabulary, merges=list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = changes.pop("normalizer", normalizers.Sequence([normalizers.Prepend("▁"), replace]))
    if pre_tokenizer := changes.pop("pre_tokenizer", None):
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, *, added: Sequence[AddedToken] = (), **names: Any) -> Path:
    """Save a tokenizer with its special tokens' names; `<s>` and `</s>` unless others are given."""
    tokenizer.add_tokens(list(added))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"bos_token": "<s>", "eos_token": "</s>", **names}
    )
    fast.save_pretrained(folder)
    return folder


def texts_by_id(folder: Path) -> Mapping[int, str]:
    """Every token's text as transformers names it."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    return {token: text for text, token in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])}
