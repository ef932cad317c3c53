from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertweaver.calibration.documents import Document
from expertweaver.calibration.samples import PADDING, CalibrationSet, build_calibration_set
from expertweaver.errors import CalibrationError


def ids_of(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def document(start: int, length: int, domain: str = "a") -> Document:
    return Document(" ".join(str(start + i) for i in range(length)), domain)


def build(documents: list[Document], *, num: int = 100, length: int = 16, vocab: int = 10_000, seed: int = 0):
    return build_calibration_set(
        documents, ids_of, num_samples=num, sequence_length=length, vocab_size=vocab, seed=seed
    )


def samples_of(found: CalibrationSet) -> list[list[int]]:
    return [found.token_ids[found.sample_ids == sample].tolist() for sample in range(found.num_samples)]


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(8, 60), min_size=2, max_size=12), length=st.integers(8, 20))
def test_every_token_is_there_once_and_samples_stay_whole(lengths: list[int], length: int) -> None:
    documents = [document(1000 * (i + 1), n, "ab"[i % 2]) for i, n in enumerate(lengths)]
    found = build(documents, length=length, vocab=100_000)
    expected = sorted(
        ids[start : start + length]
        for ids in (ids_of(d.text) for d in documents)
        for start in range(0, len(ids), length)
        if len(ids) - start >= 8
    )
    assert sorted(samples_of(found)) == expected
    assert found.num_tokens == sum(map(len, expected))
    for row_ids in found.sample_ids.tolist():  # a sample is one contiguous run; rows keep to one domain
        real = [i for i in row_ids if i != PADDING]
        assert row_ids == real + [PADDING] * (len(row_ids) - len(real))
        assert len([i for i, j in zip([None, *real], real, strict=False) if i != j]) == len(set(real))
        assert len({found.sample_domains[i] for i in set(real)}) <= 1


def test_domains_are_drawn_evenly_and_a_small_one_gives_all_it_has() -> None:
    documents = [document(100 * i, 16, "big") for i in range(1, 30)] + [document(5000, 16, "small")]
    found = build(documents, num=10)
    assert found.domains == {
        "big": {"num_samples": 9, "num_tokens": 144},
        "small": {"num_samples": 1, "num_tokens": 16},
    }


def test_first_windows_of_all_documents_come_before_second_ones() -> None:
    documents = [document(1000 * i, 48) for i in range(1, 5)]
    starts = {sample[0] for sample in samples_of(build(documents, num=4))}
    assert starts == {1000, 2000, 3000, 4000}


def test_the_seed_chooses_the_samples() -> None:
    documents = [document(100 * i, 16) for i in range(1, 40)]
    first, again, other = (build(documents, num=5, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


def test_too_little_text_is_told_with_both_numbers() -> None:
    with pytest.raises(CalibrationError, match="at least one sequence of 16 tokens, found 10 tokens in all"):
        build([document(1, 10)])


def test_a_single_sample_is_not_enough() -> None:
    with pytest.raises(CalibrationError, match="at least 2 samples, found 1"):
        build([document(1, 16)])


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(CalibrationError, match="vocab_size 50, found the id 131"):
        build([document(1, 16), document(100, 32)], vocab=50)


def test_probes_are_valid_tokens_evenly_spread_whatever_their_number() -> None:
    found = build([document(100 * i, 11) for i in range(1, 9)])
    valid = found.sample_ids != PADDING
    assert torch.equal(found.probe_mask(10_000), valid)
    few = found.probe_mask(8)
    assert int(few.sum()) == 8
    assert not bool((few & ~valid).any())
    assert sorted(found.sample_ids[few].tolist()) == list(range(8))  # one of each sample


def test_no_more_is_tokenized_than_is_drawn() -> None:
    asked: list[str] = []

    def tokenize(text: str) -> list[int]:
        asked.append(text)
        return ids_of(text)

    documents = [document(100 * i, 16, "ab"[i % 2]) for i in range(1, 200)]
    build_calibration_set(documents, tokenize, num_samples=6, sequence_length=16, vocab_size=10**6, seed=0)
    assert len(asked) == 6
