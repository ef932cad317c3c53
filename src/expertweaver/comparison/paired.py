"""Differences between two models on the same documents: far surer than the difference of two separate intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expertweaver.evaluation.scoring import Score
from expertweaver.evaluation.summary import bootstrap_interval


@dataclass(frozen=True)
class Difference:
    """Mean difference of nats per token; `interval` is its 95 % bootstrap interval over documents.

    The interval is None with fewer than ten documents.
    """

    nats_per_token: float
    interval: tuple[float, float] | None


def mean_over_seeds(runs: Sequence[Sequence[Score]]) -> list[float]:
    """Nats of each document, averaged over the runs of a method: seeds are no further documents."""
    return [sum(score.nats for score in scores) / len(scores) for scores in zip(*runs, strict=True)]


def paired_difference(
    runs: Sequence[Sequence[Score]], reference: Sequence[Sequence[Score]], documents: Sequence[int]
) -> Difference:
    """Compare a method with a reference on some of the documents.

    Every resample draws the same documents for both, so that what makes a document hard cancels.

    Args:
        runs: Scores of each document, one sequence a seed.
        reference: The same of the reference.
        documents: Places of the documents that count.
    """
    first, second = mean_over_seeds(runs), mean_over_seeds(reference)
    nats = [first[d] - second[d] for d in documents]
    num_tokens = [reference[0][d].num_tokens for d in documents]
    return Difference(sum(nats) / sum(num_tokens), bootstrap_interval(nats, num_tokens))
