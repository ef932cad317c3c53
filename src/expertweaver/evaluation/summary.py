"""From one score per document to one entry per domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np

from expertweaver.evaluation.results import ALL, DomainQuality
from expertweaver.evaluation.scoring import Score

NUM_RESAMPLES = 2000
MIN_DOCUMENTS = 10
SEED = 0
PERCENTILES = (2.5, 97.5)
MAX_EXPONENT = 709.0  # exp of more does not fit a float


def summarize(domains: Sequence[str], scores: Sequence[Score]) -> tuple[DomainQuality, ...]:
    """Sum up the documents of each domain, in order of first appearance, then of all as 'all'.

    Args:
        domains: The domain of each document.
        scores: Its score.
    """
    groups = {name: [s for d, s in zip(domains, scores, strict=True) if d == name] for name in dict.fromkeys(domains)}
    return tuple(_domain_quality(name, group) for name, group in [*groups.items(), (ALL, list(scores))])


def _domain_quality(domain: str, scores: Sequence[Score]) -> DomainQuality:
    total = reduce(add, scores)
    nats = total.nats / total.num_tokens
    return DomainQuality(
        domain=domain,
        num_documents=len(scores),
        num_tokens=total.num_tokens,
        nats_per_token=nats,
        interval=bootstrap_interval([s.nats for s in scores], [s.num_tokens for s in scores]),
        perplexity=math.exp(nats) if nats < MAX_EXPONENT else math.inf,
        kl_to_dense=None if total.kl_to_dense is None else total.kl_to_dense / total.num_tokens,
        top1_agreement=None if total.num_agreed is None else total.num_agreed / total.num_tokens,
    )


def bootstrap_interval(nats: Sequence[float], num_tokens: Sequence[int]) -> tuple[float, float] | None:
    """95 % percentile interval of sum(nats) / sum(num_tokens) when documents are drawn again with replacement.

    The seed is fixed. Tokens of one document are not independent, hence documents are drawn. None with fewer than
    ten documents.
    """
    if len(nats) < MIN_DOCUMENTS:
        return None
    loss, weight = np.asarray(nats, dtype=np.float64), np.asarray(num_tokens, dtype=np.float64)
    generator = np.random.default_rng(SEED)
    draws = (generator.integers(0, len(loss), len(loss)) for _ in range(NUM_RESAMPLES))
    ratios = [loss[drawn].sum() / weight[drawn].sum() for drawn in draws]
    low, high = np.percentile(ratios, PERCENTILES)
    return float(low), float(high)
