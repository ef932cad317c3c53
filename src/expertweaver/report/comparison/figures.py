"""The figures of a comparison for the page: quality against budget, and every domain at one budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from expertweaver.comparison.results import Comparison
from expertweaver.comparison.summary import Standing
from expertweaver.report import palette, words
from expertweaver.report.comparison import marks
from expertweaver.report.comparison.rows import BudgetRow, domain_names
from expertweaver.report.comparison.scale import root, root_ticks
from expertweaver.report.figures import LIGHT, axis_title, domain_layout, plain, quiet_layout

LOSS = "loss over dense in nats per token, square-root scale"
_DASHED = "5px,4px"


def quality_by_budget(comparison: Comparison, tables: dict[float, list[BudgetRow]], place: int) -> go.Figure:
    """Loss over dense of every method against the budget, in the table's domain number `place`."""
    figure = go.Figure()
    values: list[float] = []
    for index, method in enumerate(comparison.methods):
        points = [row.standings[place] for rows in tables.values() for row in rows if row.index == index]
        values += [value for point in points for value in _ends(point)]
        figure.add_trace(
            go.Scatter(
                x=[point.mlp_sparsity for point in points],
                y=[root(point.over_dense) for point in points],
                error_y=_seed_bars(points, marks.color(index)),
                mode="lines+markers",
                name=plain(method.label),
                text=[_hover(point, at=words.exact_percent(point.mlp_sparsity)) for point in points],
                hoverinfo="text",
                line={"color": marks.color(index), "width": 2, "dash": _DASHED if method.is_oracle else "solid"},
                marker=_marker(index),
            )
        )
    layout = quiet_layout(460)
    layout["xaxis"] |= {
        "title": axis_title("mlp_sparsity"),
        "tickvals": list(comparison.mlp_sparsities),
        "tickformat": ".4~p",
        "showgrid": False,
    }
    layout["yaxis"] |= {"title": axis_title(LOSS), "showgrid": True, **_root_axis(values)}
    figure.update_layout(**layout)
    figure.add_hline(y=0, line={"color": palette.DENSE[LIGHT], "width": 1.5})
    return figure


def loss_by_domain(comparison: Comparison, table: Sequence[BudgetRow]) -> go.Figure:
    """Loss over dense of every method in every domain of the table, at one budget."""
    domains = domain_names(comparison)
    figure = go.Figure()
    values = [standing.over_dense for row in table for standing in row.standings]
    step = 0.7 / max(1, len(table) - 1)
    for line, row in enumerate(table):
        offset = -0.35 + step * line if len(table) > 1 else 0.0
        figure.add_trace(
            go.Scatter(
                x=[root(standing.over_dense) for standing in row.standings],
                y=[place + offset for place in range(len(domains))],
                mode="markers",
                name=plain(row.method.label),
                text=[_hover(standing, at=plain(standing.domain)) for standing in row.standings],
                hoverinfo="text",
                marker=_marker(row.index),
            )
        )
    domain_layout(figure, domains, max(1, round(0.7 * len(table))), LOSS)
    figure.update_xaxes(**_root_axis(values))
    figure.add_vline(x=0, line={"color": palette.DENSE[LIGHT], "width": 1.5})
    return figure


def _root_axis(values: Sequence[float]) -> dict[str, Any]:
    ticks = root_ticks(values or [0.0])
    return {"tickvals": [root(tick) for tick in ticks], "ticktext": [f"{tick:g}".replace("-", "−") for tick in ticks]}


def _ends(point: Standing) -> tuple[float, float]:
    """The lowest and highest value of a point over its seeds."""
    return (
        point.over_dense if point.lowest is None else point.lowest,
        point.over_dense if point.highest is None else point.highest,
    )


def _seed_bars(points: Sequence[Standing], color: str) -> dict[str, Any]:
    ends = [_ends(point) for point in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": [root(high) - root(p.over_dense) for p, (_, high) in zip(points, ends, strict=True)],
        "arrayminus": [root(p.over_dense) - root(low) for p, (low, _) in zip(points, ends, strict=True)],
        "thickness": 1.5,
        "width": 0,
        "color": color,
    }


def _marker(index: int) -> dict[str, Any]:
    edge = {"color": palette.SURFACE[LIGHT], "width": 1}
    return {"symbol": marks.symbol(index), "size": 9, "color": marks.color(index), "line": edge}


def _hover(standing: Standing, *, at: str) -> str:
    interval = words.interval(standing.over_dense_interval)
    text = f"<b>{plain(standing.method)}</b>, {at}<br>{words.signed(standing.over_dense)} nats per token over dense"
    text += f"<br>95 % interval over documents {interval}"
    if standing.lowest is not None:
        text += f"<br>{standing.num_seeds} seeds: {words.signed(standing.lowest)} to {words.signed(standing.highest)}"
    return text
