"""The quality table as Markdown, for model cards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from expertweaver.evaluation.results import Evaluation, ModelQuality
from expertweaver.report import words
from expertweaver.report.compare import difference_to_dense, domains_of

_SPECIAL = re.compile(r"([\\`*\[\]|~])")
_HEAD = ("domain", "model", "nats/token", "95 % interval", "difference to dense", "perplexity", "KL to dense", "top-1")


def quality_markdown(evaluation: Evaluation) -> str:
    """Write parameters and quality of every model, per domain, as two Markdown tables."""
    counts = [
        (plain(model.name), words.count(model.num_params), words.count(model.num_active_params))
        for model in evaluation.models
    ]
    rows = [_row(evaluation, model, domain) for domain in domains_of(evaluation) for model in evaluation.models]
    text = [f"Measured on {plain(words.listed(evaluation.text))}.", ""] if evaluation.text else []
    return "\n".join(
        [*text, *_table(("model", "num_params", "num_active_params"), counts), "", *_table(_HEAD, rows), ""]
    )


def _row(evaluation: Evaluation, model: ModelQuality, domain: str) -> tuple[str, ...]:
    entry = model.quality(domain)
    return (
        plain(domain),
        plain(model.name),
        words.decimal(entry.nats_per_token),
        words.interval(entry.interval),
        words.signed(difference_to_dense(evaluation, model, domain)),
        words.perplexity(entry.perplexity),
        words.decimal(entry.kl_to_dense),
        words.percent(entry.top1_agreement, 1),
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    num_words = sum(name in ("domain", "model") for name in head)
    rule = [":--" if column < num_words else "--:" for column in range(len(head))]
    return [markdown_row(cells) for cells in (head, tuple(rule), *rows)]


def markdown_row(cells: Sequence[str]) -> str:
    """Write one row of a table; the cells are Markdown already."""
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", escape(" ".join(text.split()), quote=False))
