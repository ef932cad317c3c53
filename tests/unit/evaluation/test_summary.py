"""The bootstrap interval and the sums per domain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expertweaver.evaluation.scoring import Score
from expertweaver.evaluation.summary import bootstrap_interval, summarize


def sample(num_documents: int) -> tuple[list[float], list[int]]:
    generator = np.random.default_rng(7)
    lengths = generator.integers(20, 400, num_documents)
    return (lengths * generator.normal(3.0, 0.5, num_documents)).tolist(), lengths.tolist()


@pytest.mark.parametrize("num_documents", [10, 25, 100, 400])
def test_interval_contains_the_estimate(num_documents: int) -> None:
    nats, lengths = sample(num_documents)
    interval = bootstrap_interval(nats, lengths)
    assert interval is not None
    assert interval[0] < sum(nats) / sum(lengths) < interval[1]


def test_interval_shrinks_with_more_documents() -> None:
    widths = []
    for num_documents in (25, 100, 400):
        interval = bootstrap_interval(*sample(num_documents))
        assert interval is not None
        widths.append(interval[1] - interval[0])
    assert widths[0] > 1.4 * widths[1] > 1.4 * 1.4 * widths[2]


def test_interval_is_that_of_the_mean_for_equal_lengths() -> None:
    """With equal lengths the ratio is a mean, and its interval 2 * 1.96 standard errors wide."""
    losses = np.random.default_rng(3).normal(3.0, 0.5, 200)
    interval = bootstrap_interval((losses * 50).tolist(), [50] * 200)
    assert interval is not None
    assert interval[1] - interval[0] == pytest.approx(2 * 1.96 * losses.std() / math.sqrt(200), rel=0.06)


def test_interval_weighs_documents_by_their_tokens() -> None:
    """One long document dominates: an interval of the plain mean of document losses would lie near 1."""
    interval = bootstrap_interval([1.0] * 11 + [5000.0], [1] * 11 + [1000])
    assert interval is not None
    assert interval[1] > 4.9


def test_interval_is_reproducible_and_needs_ten_documents() -> None:
    assert bootstrap_interval(*sample(30)) == bootstrap_interval(*sample(30))
    assert bootstrap_interval(*sample(9)) is None
    assert bootstrap_interval(*sample(10)) is not None


def test_domains_keep_their_order_and_sums() -> None:
    scores = [Score(10, 20.0, 1.0, 5), Score(30, 30.0, 3.0, 30), Score(20, 80.0, 0.0, 1)]
    code, prose, everything = summarize(["code", "prose", "code"], scores)
    assert (code.domain, code.num_documents, code.num_tokens, code.nats_per_token) == ("code", 2, 30, 100 / 30)
    assert (code.kl_to_dense, code.top1_agreement) == (1 / 30, 6 / 30)
    assert (prose.domain, prose.nats_per_token, prose.perplexity) == ("prose", 1.0, math.e)
    assert (everything.domain, everything.num_tokens, everything.nats_per_token) == ("all", 60, 130 / 60)


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    [_, everything] = summarize(["d"], [Score(1, 5000.0, None, None)])
    assert everything.perplexity == math.inf
    assert everything.kl_to_dense is None
    assert everything.top1_agreement is None
