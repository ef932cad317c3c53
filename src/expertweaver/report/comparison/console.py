"""The tables of a comparison for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from expertweaver.comparison.results import Comparison
from expertweaver.comparison.summary import Standing
from expertweaver.report import words
from expertweaver.report.comparison import rows
from expertweaver.report.comparison.rows import BudgetRow, budget_rows, domain_names

METHOD_WIDTH = 24
DOMAIN_WIDTH = 13


def render_comparison_table(comparison: Comparison) -> Table:
    """Lay out the loss over dense of every method and budget; the dense model's own losses come first."""
    caption = (
        "Nats per token over dense, mean over seeds. The last column is the paired difference to "
        f"{comparison.reference} over all documents with its 95 % interval."
    )
    table = Table(box=box.SIMPLE_HEAD, caption=Text(caption), caption_justify="left", pad_edge=False)
    table.add_column("", overflow="fold", max_width=METHOD_WIDTH)
    for domain in domain_names(comparison):
        table.add_column(Text(domain), justify="right", overflow="fold", max_width=DOMAIN_WIDTH)
    table.add_column(Text(f"to {comparison.reference}"), justify="right", overflow="fold")
    by_budget = budget_rows(comparison)
    first = next(iter(by_budget.values()))[0]
    table.add_row("dense", *(words.decimal(standing.dense_nats_per_token) for standing in first.standings), "")
    for mlp_sparsity, table_rows in by_budget.items():
        table.add_section()
        table.add_row(Text(f"mlp_sparsity {words.exact_percent(mlp_sparsity)}", style="bold"))
        for row in table_rows:
            table.add_row(*_cells(row))
    return table


def _cells(row: BudgetRow) -> list[Text | str]:
    name = row.method.label + (" (oracle)" if row.method.is_oracle else "")
    losses = [_loss(standing) for standing in row.standings]
    return [Text(name, style="italic" if row.method.is_oracle else ""), *losses, rows.to_reference(row.standings[0])]


def _loss(standing: Standing) -> str:
    return words.signed(standing.over_dense)
