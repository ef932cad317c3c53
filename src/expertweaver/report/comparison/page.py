"""The page of a comparison: the same look as every report, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from expertweaver.comparison.results import Comparison
from expertweaver.report import sections, tables, words
from expertweaver.report.comparison import figures, marks, rows
from expertweaver.report.comparison.rows import BudgetRow, budget_rows, domain_names
from expertweaver.report.embed import plot
from expertweaver.report.markup import Html, join, tag
from expertweaver.report.page import fill_template
from expertweaver.report.tables import RowGroup

_ORACLES = " Dashed lines are oracles: they look at what they would have to skip, and bound what routing could reach."


def render_comparison(comparison: Comparison) -> str:
    """Put a comparison into the page template."""
    by_budget = budget_rows(comparison)
    lead = (
        f"{words.listed(method.label for method in comparison.methods)}: the same calibration tokens, the same "
        "budgets, the same text. Nothing was trained."
    )
    return fill_template(
        title=f"Methods compared on {comparison.source}",
        lead=tag("p", lead, class_="lead"),
        top=Html(""),
        parts=[
            ("notes", "Notes", sections.notes(comparison.notes)),
            ("quality", "Quality against budget", _quality(comparison, by_budget)),
            ("domains", "Domains", _domains(comparison, by_budget)),
            ("tables", "Tables", _tables(comparison, by_budget)),
            ("setup", "Setup", tables.facts(rows.facts(comparison))),
            ("options", "Options", _options(comparison)),
        ],
    )


def _legend(comparison: Comparison) -> Html:
    return sections.legend_list(marks.method_name(comparison, index) for index in range(len(comparison.methods)))


def _quality(comparison: Comparison, by_budget: dict[float, list[BudgetRow]]) -> Html:
    has_oracle = any(method.is_oracle for method in comparison.methods)
    caption = (
        "The line at zero is the dense model; lower is better. Bars are the range over seeds."
        f"{_ORACLES if has_oracle else ''}"
    )
    drawn = [
        plot(
            figures.quality_by_budget(comparison, by_budget, place),
            f"quality-{place}",
            caption if place == 0 else f"The same on the documents of {domain} alone.",
            f"Loss over dense, {'all domains' if place == 0 else domain}",
        )
        for place, domain in enumerate(domain_names(comparison))
    ]
    return join(_legend(comparison), drawn[0], tag("div", *drawn[1:], class_="pair"))


def _domains(comparison: Comparison, by_budget: dict[float, list[BudgetRow]]) -> Html:
    drawn = [
        plot(
            figures.loss_by_domain(comparison, table),
            f"domains-{place}",
            "Every method in every domain; further left is better, and the line at zero is the dense model.",
            f"mlp_sparsity {words.exact_percent(mlp_sparsity)}",
        )
        for place, (mlp_sparsity, table) in enumerate(by_budget.items())
    ]
    return join(_legend(comparison), tag("div", *drawn, class_="pair"))


def _tables(comparison: Comparison, by_budget: dict[float, list[BudgetRow]]) -> Html:
    reference = f"to {comparison.reference}, all"
    head = ["method", *domain_names(comparison), reference, "seconds", "peak memory", "sparsity reached", "exportable"]
    first = next(iter(by_budget.values()))[0]
    dense = [words.decimal(standing.dense_nats_per_token) for standing in first.standings]
    groups = [RowGroup("", [("dense, nats per token", *dense, *[words.NOTHING] * 5)])]
    groups += [
        RowGroup(f"mlp_sparsity {words.exact_percent(mlp_sparsity)}", [_row(comparison, row) for row in table])
        for mlp_sparsity, table in by_budget.items()
    ]
    reasons = [
        tag("li", f"{method.label}: {method.beyond_stock}")
        for method in comparison.methods
        if method.beyond_stock is not None
    ]
    listed = join(tag("p", "No stock checkpoint holds:"), tag("ul", *reasons)) if reasons else Html("")
    return join(
        tag("p", rows.EXPLANATION),
        tables.table("Loss over dense of every method at every budget", head, groups),
        listed,
        tag("h3", f"Paired differences to {comparison.reference}"),
        _paired(comparison, by_budget),
    )


def _row(comparison: Comparison, row: BudgetRow) -> Sequence[object]:
    return (
        marks.method_name(comparison, row.index),
        *(rows.loss(standing) for standing in row.standings),
        rows.to_reference(row.standings[0]),
        rows.seconds(row.seconds),
        rows.memory(row.peak_memory),
        words.percent(row.reached, 1),
        "yes" if row.method.beyond_stock is None else "no",
    )


def _paired(comparison: Comparison, by_budget: dict[float, list[BudgetRow]]) -> Html:
    groups = [
        RowGroup(
            f"mlp_sparsity {words.exact_percent(mlp_sparsity)}",
            [
                (marks.method_name(comparison, row.index), *(rows.to_reference(standing) for standing in row.standings))
                for row in table
                if row.method.label != comparison.reference
            ],
        )
        for mlp_sparsity, table in by_budget.items()
    ]
    title = f"Paired differences to {comparison.reference} in every domain"
    return tables.table(title, ["method", *domain_names(comparison)], groups)


def _options(comparison: Comparison) -> Html:
    return join(
        *(
            sections.fold(
                method.label,
                tables.facts([("method", method.name), *((k, str(v)) for k, v in method.options.items())]),
            )
            for method in comparison.methods
        )
    )
