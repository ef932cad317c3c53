"""The tables of a comparison as Markdown, one a budget."""

from __future__ import annotations

from expertweaver.comparison.results import Comparison
from expertweaver.report import words
from expertweaver.report.comparison import rows
from expertweaver.report.comparison.rows import BudgetRow, budget_rows, domain_names
from expertweaver.report.markdown import markdown_row, plain


def comparison_markdown(comparison: Comparison) -> str:
    """Write what was compared, the dense model's losses, and a table for every budget."""
    lines = [f"# Methods compared on {plain(comparison.source)}", ""]
    lines += [f"* {name}: {plain(value)}" for name, value in rows.facts(comparison)]
    lines += ["", rows.EXPLANATION, ""]
    lines += [f"* Note: {plain(note)}" for note in comparison.notes]
    for mlp_sparsity, table in budget_rows(comparison).items():
        lines += ["", f"## mlp_sparsity {words.exact_percent(mlp_sparsity)}", ""]
        lines += _table(comparison, table)
    return "\n".join([*lines, ""])


def _table(comparison: Comparison, table: list[BudgetRow]) -> list[str]:
    domains = domain_names(comparison)
    extra = [f"to {plain(comparison.reference)} (all)", "seconds", "peak memory", "sparsity reached", "exportable"]
    head = ["method", *map(plain, domains), *extra]
    rule = [":--", *["--:"] * (len(domains) + 4), ":--"]
    lines = [markdown_row(head), markdown_row(rule), markdown_row(_dense_row(table[0], len(extra)))]
    return [*lines, *(markdown_row(_row(row)) for row in table)]


def _dense_row(row: BudgetRow, num_extra: int) -> list[str]:
    losses = [words.decimal(standing.dense_nats_per_token) for standing in row.standings]
    return ["dense (nats per token)", *losses, *[words.NOTHING] * num_extra]


def _row(row: BudgetRow) -> list[str]:
    name = plain(row.method.label) + (" (oracle)" if row.method.is_oracle else "")
    return [
        name,
        *(rows.loss(standing) for standing in row.standings),
        rows.to_reference(row.standings[0]),
        rows.seconds(row.seconds),
        rows.memory(row.peak_memory),
        words.percent(row.reached, 1),
        plain(rows.exportable(row.method)),
    ]
