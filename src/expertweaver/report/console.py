"""The result as a table for the terminal: one column a model, so that six domains fit in 120 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from expertweaver.evaluation.results import Evaluation, ModelQuality
from expertweaver.report import words
from expertweaver.report.compare import ALL, difference_to_dense, domains_of

MODEL_WIDTH = 20


def render_table(evaluation: Evaluation, speed: Mapping[str, Mapping[str, Any]] | None = None) -> Table:
    """Lay out parameters, quality per domain and speed beside the dense model.

    Args:
        evaluation: Its models become columns, in their order.
        speed: As in `Report.speed`, by model name; models without an entry show a dash.
    """
    caption = "Domains: nats per token (perplexity)." + (
        " Time / dense: measured (ideal); below 1 is faster." if speed else ""
    )
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    table.add_column("", no_wrap=False, overflow="fold", max_width=MODEL_WIDTH)
    for model in evaluation.models:
        table.add_column(Text(model.name), justify="right", overflow="fold", max_width=MODEL_WIDTH)
    models = evaluation.models
    table.add_row("parameters", *(words.short_count(model.num_params) for model in models))
    table.add_row("active parameters", *(words.short_count(model.num_active_params) for model in models))
    table.add_section()
    if not models:
        return table
    for domain in (name for name in domains_of(evaluation) if name != ALL):
        table.add_row(Text(domain), *(_quality(model, domain) for model in models))
    table.add_row(Text(ALL, style="bold"), *(_quality(model, ALL, style="bold") for model in models))
    if evaluation.has_dense:
        table.add_row(
            "difference to dense", *(words.signed(difference_to_dense(evaluation, model, ALL)) for model in models)
        )
    if speed:
        table.add_section()
        for kind in ("decode", "prefill"):
            rates = (speed.get(model.name, {}).get(f"{kind}_tokens_per_second") for model in models)
            table.add_row(f"{kind} tokens/s", *map(words.rate, rates))
            table.add_row(f"{kind} time / dense", *(_ratio(speed.get(model.name, {}), kind) for model in models))
    return table


def _quality(model: ModelQuality, domain: str, style: str = "") -> Text:
    entry = model.quality(domain)
    return Text(f"{words.decimal(entry.nats_per_token)} ({words.perplexity(entry.perplexity)})", style=style)


def _ratio(entry: Mapping[str, Any], kind: str) -> str:
    measured, ideal = entry.get(f"{kind}_ratio"), entry.get("ideal_ratio")
    return words.times(measured) + (f" ({words.times(ideal)})" if measured is not None and ideal is not None else "")
