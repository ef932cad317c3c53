"""Documents become samples of tokens, drawn evenly from the domains and packed into rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expertweaver.calibration.documents import Document
from expertweaver.errors import CalibrationError, Problem

MIN_SAMPLE_TOKENS = 8
"""A shorter remainder of a document says little of a neuron's mean; it is left out."""

PADDING = -1

BATCH_TOKENS = 2048
"""Fixed, so that the same recipe computes the same bytes whatever the machine's memory."""


@dataclass(frozen=True)
class CalibrationSet:
    """Packed calibration tokens.

    Attributes:
        token_ids: [R, T] int64; zero where there is padding.
        sample_ids: [R, T] int64; the sample of each token, -1 for padding. A sample is a contiguous run in one row.
        sample_domains: Domain of each of the N samples.
    """

    token_ids: Tensor
    sample_ids: Tensor
    sample_domains: tuple[str, ...]

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.sample_domains)

    @property
    def num_tokens(self) -> int:
        """Valid tokens; padding is never counted."""
        return int((self.sample_ids != PADDING).sum())

    @property
    def domain_ids(self) -> Tensor:
        """Number of each sample's domain, in the order of their names, [N] int64."""
        names = sorted(set(self.sample_domains))
        return torch.tensor([names.index(domain) for domain in self.sample_domains])

    @property
    def domains(self) -> dict[str, dict[str, int]]:
        """Samples and tokens per domain."""
        tokens = torch.bincount(self.sample_ids[self.sample_ids != PADDING], minlength=self.num_samples)
        table: dict[str, dict[str, int]] = {}
        for sample, domain in enumerate(self.sample_domains):
            entry = table.setdefault(domain, {"num_samples": 0, "num_tokens": 0})
            entry["num_samples"] += 1
            entry["num_tokens"] += int(tokens[sample])
        return table

    def rows(self, rows: slice) -> CalibrationSet:
        """Some of the rows; samples keep their numbers and domains."""
        return replace(self, token_ids=self.token_ids[rows], sample_ids=self.sample_ids[rows])

    def probe_mask(self, num_probes: int) -> Tensor:
        """Choose at most `num_probes` valid tokens, evenly spread, whatever the batching: [R, T] bool."""
        valid = (self.sample_ids != PADDING).flatten().nonzero().squeeze(-1)
        count = min(num_probes, len(valid))
        chosen = valid[torch.arange(count) * len(valid) // count]
        mask = torch.zeros(self.sample_ids.numel(), dtype=torch.bool)
        mask[chosen] = True
        return mask.view_as(self.sample_ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over tokens, packing and domains."""
        digest = hashlib.sha256(repr((tuple(self.token_ids.shape), self.sample_domains)).encode())
        digest.update(self.token_ids.numpy().tobytes())
        digest.update(self.sample_ids.numpy().tobytes())
        return digest.hexdigest()


def build_calibration_set(
    documents: Sequence[Document],
    tokenize: Callable[[str], list[int]],
    *,
    num_samples: int,
    sequence_length: int,
    vocab_size: int,
    seed: int,
) -> CalibrationSet:
    """Cut documents into samples, draw them evenly from the domains, pack them into rows.

    A document longer than `sequence_length` tokens gives several samples; first samples of all documents of a
    domain are drawn before second ones. Fewer than `num_samples` are used where there are not enough.

    Raises:
        CalibrationError: Less text than one sequence, fewer than two samples, or token ids outside the vocabulary.
    """
    domains: dict[str, list[Document]] = {}
    for document in documents:
        domains.setdefault(document.domain, []).append(document)
    generator = torch.Generator().manual_seed(seed)
    shuffled = {domain: _shuffled(domains[domain], generator) for domain in sorted(domains)}
    streams = {domain: _sample_stream(part, tokenize, sequence_length) for domain, part in shuffled.items()}
    drawn = _draw_evenly(streams, num_samples)
    _check_samples(drawn, sequence_length, vocab_size)
    return _pack(drawn, sequence_length)


def row_batches(rows: Tensor) -> Iterator[slice]:
    """Slices of packed rows [R, T] of about BATCH_TOKENS tokens."""
    num_rows, length = rows.shape
    step = max(1, BATCH_TOKENS // length)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def _windows(token_ids: list[int], length: int) -> list[list[int]]:
    windows = [token_ids[start : start + length] for start in range(0, len(token_ids), length)]
    return [window for window in windows if len(window) >= min(MIN_SAMPLE_TOKENS, length)]


def _shuffled(documents: list[Document], generator: torch.Generator) -> list[Document]:
    return [documents[i] for i in torch.randperm(len(documents), generator=generator).tolist()]


def _sample_stream(documents: list[Document], tokenize: Callable[[str], list[int]], length: int) -> Iterator[list[int]]:
    """The first sample of each document in order, then the second of each, ...; tokenized only as far as is drawn."""
    later: list[list[list[int]]] = []
    for document in documents:
        windows = _windows(tokenize(document.text), length)
        yield from windows[:1]
        later.append(windows[1:])
    for depth in range(max(map(len, later), default=0)):
        for rest in later:
            if depth < len(rest):
                yield rest[depth]


def _draw_evenly(streams: dict[str, Iterator[list[int]]], num_samples: int) -> list[tuple[str, list[int]]]:
    """Take samples from the domains in turn, so that a small domain's shortage is shared by the others."""
    drawn: list[tuple[str, list[int]]] = []
    while streams and len(drawn) < num_samples:
        for domain in list(streams):
            sample = next(streams[domain], None) if len(drawn) < num_samples else []
            if sample is None:
                del streams[domain]
            elif sample:
                drawn.append((domain, sample))
    return drawn


def _check_samples(drawn: list[tuple[str, list[int]]], length: int, vocab_size: int) -> None:
    total = sum(len(window) for _, window in drawn)
    if total < length:
        fix = "Give more text, or lower calibration.sequence_length."
        found = f"{total} tokens in all"
        raise CalibrationError(Problem("calibration text", f"at least one sequence of {length} tokens", found, fix))
    if len(drawn) < 2:
        fix = "Give more documents or lower calibration.sequence_length: statistics compare samples with each other."
        raise CalibrationError(Problem("calibration text", "at least 2 samples", str(len(drawn)), fix))
    largest = max(max(window) for _, window in drawn)
    if largest >= vocab_size:
        fix = "Tokenizer and model do not belong together."
        expected = f"token ids below the model's vocab_size {vocab_size}"
        raise CalibrationError(Problem("calibration text", expected, f"the id {largest}", fix))


@dataclass
class _Row:
    domain: str
    room: int
    content: list[tuple[int, list[int]]]


def _pack(drawn: list[tuple[str, list[int]]], length: int) -> CalibrationSet:
    """First-fit: each sample goes into the first row of its domain with room; rows keep to one domain."""
    rows: list[_Row] = []
    for sample, (domain, window) in enumerate(drawn):
        row = next((r for r in rows if r.domain == domain and r.room >= len(window)), None)
        if row is None:
            row = _Row(domain, length, [])
            rows.append(row)
        row.content.append((sample, window))
        row.room -= len(window)
    token_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    sample_ids = torch.full((len(rows), length), PADDING, dtype=torch.int64)
    for index, row in enumerate(rows):
        start = 0
        for sample, window in row.content:
            token_ids[index, start : start + len(window)] = torch.tensor(window)
            sample_ids[index, start : start + len(window)] = sample
            start += len(window)
    return CalibrationSet(token_ids, sample_ids, tuple(domain for domain, _ in drawn))
