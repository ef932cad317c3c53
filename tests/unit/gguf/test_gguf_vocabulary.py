"""Vocabularies: ids, types, word rules, special tokens; and what llama.cpp would read differently is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.models import edit_json
from support.tokenizers import BYTE_TOKENS, MERGES, byte_level, pieces, save, texts_by_id
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Sequence, Split

from expertweaver.errors import CheckpointError
from expertweaver.gguf.pretokenizers import GPT4O, LLAMA3, NAMES, QWEN2, TEKKEN
from expertweaver.gguf.vocabulary import TokenType, read_vocabulary

SIZE = 600


def split(pattern: str) -> Any:
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


WORD_RULES = {
    "gpt-2": (ByteLevel(add_prefix_space=False), False),
    "smollm": (Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]), False),
    "llama-bpe": (split(LLAMA3), True),
    "dbrx": (split(LLAMA3), False),
    "qwen2": (split(QWEN2), False),
    "tekken": (split(TEKKEN), True),
    "gpt-4o": (split(GPT4O), False),
}


def refused(folder: Path, words: str, size: int = SIZE) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_vocabulary(folder, size)


def test_every_word_rule_is_tried() -> None:
    assert set(WORD_RULES) == set(NAMES.values())


@pytest.mark.parametrize("name", WORD_RULES)
def test_a_word_rule_gets_the_name_that_llama_cpp_gave_it(name: str, tmp_path: Path) -> None:
    rule, whole = WORD_RULES[name]
    folder = save(byte_level(pre_tokenizer=rule, ignore_merges=whole), tmp_path)
    vocabulary = read_vocabulary(folder, SIZE)
    assert vocabulary.model["model"] == "gpt2"
    assert vocabulary.model["pre"] == name
    assert vocabulary.model["merges"] == [" ".join(pair) for pair in MERGES]
    assert vocabulary.remarks == ()


@pytest.mark.parametrize(
    "rule",
    [
        ByteLevel(add_prefix_space=True),
        split(LLAMA3.replace("{1,3}", "{1,2}")),
        Sequence([Digits(individual_digits=False), ByteLevel(add_prefix_space=False)]),
        Sequence([Split(Regex(QWEN2), "removed"), ByteLevel(add_prefix_space=False, use_regex=False)]),
        pre_tokenizers.Whitespace(),
    ],
)
def test_a_word_rule_that_llama_cpp_has_no_name_for_is_refused(rule: Any, tmp_path: Path) -> None:
    refused(save(byte_level(pre_tokenizer=rule), tmp_path), "pre_tokenizer: expected a word rule that llama.cpp has")


def test_taking_words_whole_is_part_of_the_rule(tmp_path: Path) -> None:
    refused(save(byte_level(pre_tokenizer=split(QWEN2), ignore_merges=True), tmp_path), "ignore_merges true")


def test_ids_and_types_are_the_tokenizers(tmp_path: Path) -> None:
    added = [AddedToken("<|tool|>", special=True), AddedToken("==>", special=False, normalized=False)]
    folder = save(byte_level(), tmp_path, added=added)
    texts = texts_by_id(folder)
    vocabulary = read_vocabulary(folder, SIZE)
    assert len(vocabulary.tokens) == len(vocabulary.types) == SIZE
    assert dict(enumerate(vocabulary.tokens[: len(texts)])) == texts
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert kinds["<s>"] is kinds["</s>"] is kinds["<|tool|>"] is TokenType.CONTROL
    assert kinds["==>"] is TokenType.USER_DEFINED
    assert kinds["Ġthe"] is kinds["a"] is TokenType.NORMAL
    assert set(vocabulary.types[len(texts) :]) == {TokenType.UNUSED}


def test_special_ids_and_what_else_ends_a_generation(tmp_path: Path) -> None:
    specials = ("<s>", "</s>", "<|im_end|>", "<|x|>", "<|y|>", "<pad>")
    folder = save(byte_level(specials=specials), tmp_path, pad_token="<pad>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1, 3, 4]}), "utf-8")
    vocabulary = read_vocabulary(folder, SIZE)
    assert vocabulary.special == {"bos": 0, "eos": 1, "padding": 5, "eot": 2, "eom": 3}
    assert vocabulary.remarks == ("token 4 also ends a generation; the file has no place to say so",)
    assert vocabulary.key_values["tokenizer.ggml.padding_token_id"] == 5


def test_a_beginning_that_the_tokenizer_adds_is_added(tmp_path: Path) -> None:
    plain = save(byte_level(), tmp_path / "plain")
    assert read_vocabulary(plain, SIZE).switches == {"add_bos_token": False, "add_eos_token": False}
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    both = save(tokenizer, tmp_path / "both")
    assert read_vocabulary(both, SIZE).switches == {"add_bos_token": True, "add_eos_token": True}
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    refused(save(tokenizer, tmp_path / "odd"), "at most bos before and eos after a text")


def test_the_chat_template_is_kept(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path)
    edit_json(folder / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    vocabulary = read_vocabulary(folder, SIZE)
    assert vocabulary.key_values["tokenizer.chat_template"] == "{{ messages[0].content }}"


def test_small_differences_are_told(tmp_path: Path) -> None:
    tokenizer = byte_level(symbols=["a", "t", "h", "e", "Ġ", "1", "2"])
    tokenizer.normalizer = normalizers.NFC()
    folder = save(tokenizer, tmp_path, added=[AddedToken("<mask>", lstrip=True)])
    first, second, third = read_vocabulary(folder, SIZE).remarks
    assert "NFC" in first
    assert second.startswith("249 of 256 bytes have no token")
    assert "<mask>" in third


def test_what_changes_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    refused(save(tokenizer, tmp_path / "lower"), "normalizer: expected none or NFC")
    refused(save(byte_level(merges=[]), tmp_path / "none"), "merges: expected at least one")
    refused(save(byte_level(end_of_word_suffix="</w>"), tmp_path / "suffix"), "end_of_word_suffix: expected none")
    unigram = Tokenizer(models.Unigram([("<s>", 0.0), ("</s>", 0.0), ("a", -1.0)], unk_id=0))
    refused(save(unigram, tmp_path / "unigram"), "a tokenizer of type BPE, found Unigram")
    refused(save(byte_level(), tmp_path / "large"), "token ids below 100, found id", size=100)
    refused(save(byte_level(), tmp_path / "endless", eos_token=None), "a token that ends a text")


def test_two_tokens_of_one_text_are_refused(tmp_path: Path) -> None:
    folder = save(byte_level(specials=("<s>", "</s>", "[UNUSED_599]")), tmp_path)
    refused(folder, r"a text of its own for every token, found twice \[UNUSED_599\]")


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_pieces_get_the_order_of_their_merges_as_scores(tmp_path: Path) -> None:
    merges = [("t", "h"), ("h", "e"), ("th", "e"), ("t", "he")]
    folder = save(pieces(merges=merges), tmp_path, unk_token="<unk>")
    vocabulary = read_vocabulary(folder, SIZE)
    scores: Any = vocabulary.model["scores"]
    by_text = dict(zip(vocabulary.tokens, scores, strict=True))
    assert vocabulary.model["model"] == "llama"
    assert (by_text["th"], by_text["he"], by_text["the"], by_text["t"]) == (-1.0, -2.0, -3.0, 0.0)
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert kinds["<unk>"] is TokenType.UNKNOWN
    assert {kinds[name] for name in BYTE_TOKENS} == {TokenType.BYTE}
    assert vocabulary.switches == {"add_space_prefix": True, "add_bos_token": True, "add_eos_token": False}
    assert vocabulary.special == {"bos": 1, "eos": 2, "unknown": 0}


@pytest.mark.parametrize(
    ("changes", "prefix", "num_remarks"),
    [
        ({"normalizer": normalizers.Replace(" ", "▁")}, False, 0),
        ({"normalizer": None, "pre_tokenizer": Metaspace(prepend_scheme="never", split=False)}, False, 0),
        ({"normalizer": None, "pre_tokenizer": Metaspace(prepend_scheme="always", split=False)}, True, 1),
        ({"normalizer": None, "pre_tokenizer": Metaspace(prepend_scheme="first", split=False)}, True, 2),
    ],
)
def test_a_space_before_the_text(changes: dict[str, Any], prefix: bool, num_remarks: int, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(save(pieces(merges=[("t", "h")], **changes), tmp_path), SIZE)
    assert vocabulary.switches["add_space_prefix"] is prefix
    assert len(vocabulary.remarks) == num_remarks


def test_pieces_that_scores_would_merge_differently_are_refused(tmp_path: Path) -> None:
    refused(save(pieces(merges=[("t", "h"), ("h", "e"), ("th", "e")]), tmp_path / "a"), "1 tokens that scores would")
    scattered = [("t", "h"), ("h", "e"), ("th", "e"), ("▁", "t"), ("t", "he")]
    refused(save(pieces(merges=scattered), tmp_path / "b"), "all merges that make a token in a row, found others")
    refused(save(pieces(byte_tokens=BYTE_TOKENS[:-1]), tmp_path / "c"), "none for <0xFF>")
    lower = pieces(normalizer=normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")]))
    refused(save(lower, tmp_path / "d"), "spaces replaced by '▁' and nothing else")
