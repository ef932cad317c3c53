"""Readings of an evaluation that several parts of the report share."""

from __future__ import annotations

from expertweaver.evaluation.results import Evaluation, ModelQuality

ALL = "all"


def domains_of(evaluation: Evaluation) -> list[str]:
    """Domains in the evaluation's order, after the entry over all tokens."""
    names = [entry.domain for entry in evaluation.models[0].domains] if evaluation.models else []
    return sorted(names, key=lambda name: name != ALL)


def difference_to_dense(evaluation: Evaluation, model: ModelQuality, domain: str) -> float | None:
    """What a model loses against the dense one, in nats per token; None for the dense model and without one."""
    dense = evaluation.models[0]
    if not evaluation.has_dense or model is dense:
        return None
    return model.quality(domain).nats_per_token - dense.quality(domain).nats_per_token
