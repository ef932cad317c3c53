"""Readings of a comparison that its tables and figures share; numbers become words here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from expertweaver.comparison.results import ComparedMethod, Comparison
from expertweaver.comparison.summary import Standing, table_domains
from expertweaver.report import words


@dataclass(frozen=True)
class BudgetRow:
    """One method at one budget: its standing in every domain of the table, and what its designs took.

    `index` is the method's place in the comparison; `seconds`, `peak_memory` and `reached` are means (the largest, for
    memory) over seeds.
    """

    index: int
    method: ComparedMethod
    standings: tuple[Standing, ...]
    seconds: float
    peak_memory: int | None
    reached: float


def budget_rows(comparison: Comparison) -> dict[float, list[BudgetRow]]:
    """The rows of every budget's table, in the order of the methods."""
    standings: dict[tuple[float, str], list[Standing]] = {}
    for standing in comparison.table:
        standings.setdefault((standing.mlp_sparsity, standing.method), []).append(standing)
    return {
        mlp_sparsity: [
            _row(comparison, index, method, mlp_sparsity, standings[mlp_sparsity, method.label])
            for index, method in enumerate(comparison.methods)
            if (mlp_sparsity, method.label) in standings
        ]
        for mlp_sparsity in comparison.mlp_sparsities
    }


def _row(
    comparison: Comparison, index: int, method: ComparedMethod, mlp_sparsity: float, standings: Sequence[Standing]
) -> BudgetRow:
    cells = comparison.cells_of(method.label, mlp_sparsity)
    peaks = [cell.peak_memory for cell in cells if cell.peak_memory is not None]
    return BudgetRow(
        index,
        method,
        tuple(standings),
        fmean(cell.seconds for cell in cells),
        max(peaks) if peaks else None,
        fmean(cell.reached_mlp_sparsity for cell in cells),
    )


def domain_names(comparison: Comparison) -> list[str]:
    """Domains of the table, sums first."""
    return list(table_domains(comparison))


def loss(standing: Standing) -> str:
    """Loss over dense with its spread over seeds: +0.031 ±0.002 (standard deviation), or the range of two seeds."""
    text = words.signed(standing.over_dense)
    if standing.std is not None:
        return f"{text} ±{words.decimal(standing.std)}"
    if standing.lowest is not None:
        return f"{text} ({words.signed(standing.lowest)} to {words.signed(standing.highest)})"
    return text


def to_reference(standing: Standing) -> str:
    """Paired difference to the reference with its interval."""
    if standing.to_reference is None:
        return words.NOTHING
    bounds = standing.to_reference_interval
    interval = "" if bounds is None else f" [{words.signed(bounds[0])}, {words.signed(bounds[1])}]"
    return words.signed(standing.to_reference) + interval


def seconds(value: float) -> str:
    """Write a time with about three digits."""
    return words.decimal(value, 2 if value < 10 else 1 if value < 100 else 0)


def memory(value: int | None) -> str:
    """Write bytes as megabytes."""
    return words.NOTHING if value is None else f"{value / 1e6:,.0f} MB"


def exportable(method: ComparedMethod) -> str:
    """Whether a stock checkpoint can hold what the method makes."""
    return "yes" if method.beyond_stock is None else f"no: {method.beyond_stock}"


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What was compared on what."""
    calibration = comparison.calibration
    inside = [name for name in dict.fromkeys(comparison.domains) if name in calibration.domains]
    outside = [name for name in dict.fromkeys(comparison.domains) if name not in calibration.domains]
    num_tokens = sum(score.num_tokens for score in comparison.dense)
    return [
        ("dense model", f"{comparison.source}, in {comparison.dtype} on {comparison.device}"),
        ("slices of an FFN", words.count(comparison.num_slices)),
        ("calibration", f"{words.count(calibration.num_tokens)} tokens of {words.listed(calibration.domains)}"),
        ("calibration text", ", ".join(calibration.paths) or "the text that ships with ExpertWeaver"),
        (
            "shared calibration pass",
            "not measured in one piece" if calibration.seconds is None else f"{seconds(calibration.seconds)} s",
        ),
        (
            "evaluation",
            f"{words.count(len(comparison.domains))} documents, {words.count(num_tokens)} predicted tokens, windows of "
            f"{words.count(comparison.context)}",
        ),
        ("evaluation text", ", ".join(comparison.text)),
        ("in-domain", words.listed(inside)),
        ("out-of-domain", words.listed(outside)),
        ("dropped for a shared span", words.count(comparison.num_dropped)),
        ("reference", comparison.reference),
        ("versions", ", ".join(f"{name} {version}" for name, version in comparison.versions.items())),
    ]


EXPLANATION = (
    "Losses are nats per predicted token over the dense model's (a mean over seeds, with their standard deviation, or "
    "their range where there are two). Differences to the reference are paired: 95 % bootstrap intervals draw the same "
    "documents for both. Seconds are those of designing all layers, beyond the calibration pass that all methods "
    "share. Peak memory is the largest resident memory of the whole process meanwhile, the loaded dense model included."
)
