"""One function a figure, from values to a Plotly figure, in the colours of the light page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from expertweaver.evaluation.results import Evaluation, ModelQuality
from expertweaver.report import palette, words
from expertweaver.report.compare import ALL, domains_of
from expertweaver.report.conversion import NUM_CV_QUANTILES, NUM_FREQUENCY_QUANTILES, CvSpread, LayerPlan
from expertweaver.report.usage import UsagePanel

LIGHT = 0
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_GAPS = {"xgap": 0.5, "ygap": 0.5}
_NO_LINES = {"showgrid": False, "showline": False, "ticks": ""}
_CV_PLACE = {share: round(share * (NUM_CV_QUANTILES - 1)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)}


def plain(text: object) -> str:
    """Make text from data safe in a figure, where Plotly would otherwise read tags and entities."""
    return escape(" ".join(str(text).split()), quote=False)


def shortened(text: str, length: int = 18) -> str:
    """Cut a long name, so that labels leave room for the figure on a phone; tables and hovers have it whole."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def quality_by_domain(evaluation: Evaluation) -> go.Figure:
    """Nats per token of every model in every domain, with its interval."""
    domains = domains_of(evaluation)
    figure = go.Figure()
    for index, model in enumerate(evaluation.models):
        entries = [(place, model.quality(domain)) for place, domain in enumerate(domains)]
        bounds = [entry.interval or (entry.nats_per_token, entry.nats_per_token) for _, entry in entries]
        values = [entry.nats_per_token for _, entry in entries]
        hover = [
            f"{words.decimal(entry.nats_per_token)} nats per token<br>95 % interval {words.interval(entry.interval)}"
            for _, entry in entries
        ]
        trace = _domain_marks(evaluation, index, domains, values, hover)
        trace.error_x = {
            "type": "data",
            "symmetric": False,
            "array": [high - value for (_, high), value in zip(bounds, values, strict=True)],
            "arrayminus": [value - low for (low, _), value in zip(bounds, values, strict=True)],
            "thickness": 1.5,
            "width": 0,
            "color": palette.model_color(index, evaluation.has_dense)[LIGHT],
        }
        figure.add_trace(trace)
    return domain_layout(figure, domains, len(evaluation.models), "nats per token (lower is better)")


def difference_by_domain(evaluation: Evaluation) -> go.Figure:
    """What every converted model loses against the dense one, in nats per token and domain."""
    domains = domains_of(evaluation)
    dense = evaluation.models[0]
    figure = go.Figure()
    for index, model in enumerate(evaluation.models[1:], start=1):
        values = [model.quality(d).nats_per_token - dense.quality(d).nats_per_token for d in domains]
        hover = [f"{words.signed(value)} nats per token" for value in values]
        trace = _domain_marks(evaluation, index, domains, values, hover)
        trace.error_x = {
            "type": "data",
            "symmetric": False,
            "array": [0.0] * len(values),
            "arrayminus": values,
            "thickness": 1.5,
            "width": 0,
            "color": palette.model_color(index, True)[LIGHT],
        }
        figure.add_trace(trace)
    domain_layout(figure, domains, len(evaluation.models), "difference to dense in nats per token")
    figure.add_vline(x=0, line={"color": palette.DENSE[LIGHT], "width": 1.5})
    return figure


def _domain_marks(
    evaluation: Evaluation, index: int, domains: Sequence[str], values: Sequence[float], hover: Sequence[str]
) -> go.Scatter:
    """Markers of one model, one a domain, a little below those of the model before it."""
    model: ModelQuality = evaluation.models[index]
    step = 0.62 / max(1, len(evaluation.models) - 1)
    offset = -0.31 + step * index if len(evaluation.models) > 1 else 0.0
    return go.Scatter(
        x=list(values),
        y=[place + offset for place in range(len(domains))],
        mode="markers",
        name=plain(model.name),
        text=[f"<b>{plain(model.name)}</b>, {plain(d)}<br>{h}" for d, h in zip(domains, hover, strict=True)],
        hoverinfo="text",
        marker={
            "symbol": palette.model_mark(index, evaluation.has_dense)[0],
            "size": 9,
            "color": palette.model_color(index, evaluation.has_dense)[LIGHT],
            "line": {"color": palette.SURFACE[LIGHT], "width": 1},
        },
    )


def domain_layout(figure: go.Figure, domains: Sequence[str], num_models: int, title: str) -> go.Figure:
    """Rows of domains with room for the marks of so many models."""
    labels = [f"<b>{d}</b>" if d == ALL else plain(shortened(d)) for d in domains]
    layout = quiet_layout(90 + len(domains) * max(34, 15 * num_models + 8))
    layout["xaxis"] |= {"title": axis_title(title), "showgrid": True}
    layout["yaxis"] |= {
        "tickvals": list(range(len(domains))),
        "ticktext": labels,
        "range": [len(domains) - 0.45, -0.55],
        "showgrid": False,
        "ticks": "",
        "showline": False,
    }
    figure.update_layout(**layout)
    for place in range(1, len(domains)):
        figure.add_hline(y=place - 0.5, line={"color": palette.GRID[LIGHT], "width": 1}, layer="below")
    return figure


def slices_per_layer(layers: Sequence[LayerPlan]) -> go.Figure:
    """Share of each layer's slices that is shared, routed and active, or skipped for a token."""
    parts = (
        ("shared", palette.SHARED, [layer.num_shared for layer in layers]),
        ("routed, active", palette.ROUTED, [layer.num_active_routed for layer in layers]),
        ("skipped", palette.SKIPPED, [layer.num_skipped for layer in layers]),
    )
    figure = go.Figure()
    for name, color, counts in parts:
        figure.add_trace(
            go.Bar(
                x=[layer.layer for layer in layers],
                y=[count / layer.num_slices for count, layer in zip(counts, layers, strict=True)],
                name=name,
                text=[
                    f"layer {layer.layer}: {count} of {layer.num_slices} slices {name}"
                    for count, layer in zip(counts, layers, strict=True)
                ],
                textposition="none",
                hoverinfo="text",
                marker={"color": color[LIGHT], "line": {"color": palette.SURFACE[LIGHT], "width": 1}},
            )
        )
    layout = quiet_layout(300)
    layout["xaxis"] |= {"title": axis_title("layer"), "showgrid": False, **_whole_ticks(len(layers))}
    layout["yaxis"] |= {"title": axis_title("share of the slices"), "range": [0, 1], "tickformat": ".0%"}
    figure.update_layout(barmode="stack", bargap=0.18, **layout)
    return figure


def cv_spread(layers: Sequence[LayerPlan]) -> go.Figure:
    """Coefficient of variation of each layer's neurons as box and whiskers, with the threshold tau."""
    known: list[tuple[int, CvSpread]] = [(layer.layer, layer.cv) for layer in layers if layer.cv is not None]
    places = [layer for layer, _ in known]
    ends = {share: [cv.quantiles[place] for _, cv in known] for share, place in _CV_PLACE.items()}
    figure = go.Figure(
        go.Box(
            x=places,
            q1=ends[0.25],
            median=ends[0.5],
            q3=ends[0.75],
            lowerfence=ends[0.05],
            upperfence=ends[0.95],
            name="neurons",
            line={"color": palette.ACCENT[LIGHT], "width": 1.25},
            fillcolor=palette.DEPTHS[0][LIGHT],
            whiskerwidth=0,
            hoverinfo="skip",
        )
    )
    taus = [cv.tau for _, cv in known]
    figure.add_trace(
        go.Scatter(
            x=places,
            y=taus,
            name="tau",
            mode="lines" if len(places) > 1 else "markers",
            hoverinfo="skip",
            line={"color": palette.MODELS[1][LIGHT], "width": 2, "dash": "6px,4px", "shape": "hvh"},
            marker={"color": palette.MODELS[1][LIGHT], "symbol": "line-ew-open", "size": 24},
        )
    )
    figure.add_trace(_cv_hover(known))
    layout = quiet_layout(300)
    layout["xaxis"] |= {"title": axis_title("layer"), "showgrid": False, **_whole_ticks(len(layers))}
    layout["yaxis"] |= {"title": axis_title("coefficient of variation"), "rangemode": "tozero"}
    figure.update_layout(boxgap=0.35, **layout)
    return figure


def _cv_hover(known: Sequence[tuple[int, CvSpread]]) -> go.Scatter:
    """Invisible marks on the medians that tell a box's numbers; Plotly's own words would call 95 % the maximum."""
    texts = []
    for layer, cv in known:
        low, first, median, third, high = (words.decimal(cv.quantiles[place], 2) for place in _CV_PLACE.values())
        texts.append(
            f"layer {layer}: median {median}<br>middle half {first} to {third}<br>5 % to 95 %: {low} to {high}"
            f"<br>tau {cv.tau:g}"
        )
    return go.Scatter(
        x=[layer for layer, _ in known],
        y=[cv.quantiles[_CV_PLACE[0.5]] for _, cv in known],
        name="numbers",
        mode="markers",
        text=texts,
        hoverinfo="text",
        marker={"opacity": 0, "size": 22, "color": palette.ACCENT[LIGHT]},
    )


def activation_frequency(layers: Sequence[LayerPlan]) -> go.Figure:
    """How often the neurons of each layer are among the strongest, from the rarest to the most frequent."""
    known = [layer for layer in layers if layer.activation_frequency is not None]
    last = max(1, len(known) - 1)
    percentiles = [place / (NUM_FREQUENCY_QUANTILES - 1) for place in range(NUM_FREQUENCY_QUANTILES)]
    figure = go.Figure()
    for index, layer in enumerate(known):
        figure.add_trace(
            go.Scatter(
                x=percentiles,
                y=list(layer.activation_frequency or ()),
                mode="lines",
                name=f"layer {layer.layer}",
                line={"color": palette.depth_color(index / last)[LIGHT], "width": 1.5},
                hovertemplate=f"layer {layer.layer}<br>%{{x:.0%}} of neurons below %{{y:.1%}} of tokens<extra></extra>",
            )
        )
    layout = quiet_layout(320)
    layout["xaxis"] |= {
        "title": axis_title("neurons, from rarest to most frequent"),
        "tickformat": ".0%",
        "range": [0, 1],
    }
    layout["yaxis"] |= {"title": axis_title("share of tokens"), "tickformat": ".0%", "rangemode": "tozero"}
    figure.update_layout(**layout)
    return figure


def expert_usage(panel: UsagePanel) -> go.Figure:
    """One domain's use of the experts beside the even spread: layers from top to bottom, one cell an expert."""
    width = max(map(len, panel.expert_ids), default=0)
    steps = len(palette.LESS_TO_MORE) - 1
    figure = go.Figure()
    figure.add_trace(
        _cells(
            [[None if value is None else round(value, 3) for value in row] for row in panel.ratio_log2],
            width,
            (-panel.limit, panel.limit),
            [[place / steps, color[LIGHT]] for place, color in enumerate(palette.LESS_TO_MORE)],
            customdata=_usage_facts(panel, width),
            hovertemplate="layer %{y}, expert %{customdata[0]}<br>%{customdata[1]:.1%} of tokens, "
            "%{customdata[2]:.2f}× the even spread<extra></extra>",
        )
    )
    always = [[1 if value is None else None for value in row] for row in panel.ratio_log2]
    if any(value for row in always for value in row):
        scale = [[place, palette.ALWAYS_ON[LIGHT]] for place in (0, 1)]
        hover = "layer %{y}<br>always on<extra></extra>"
        figure.add_trace(_cells(always, width, (0, 1), scale, name="always on", hovertemplate=hover))
    num_layers = len(panel.expert_ids)
    layout = quiet_layout(max(150, min(420, 64 + 9 * num_layers)))
    layout["margin"] = {"l": 34, "r": 4, "t": 4, "b": 34}
    layout["xaxis"] |= {"title": axis_title("experts, most used first"), "showticklabels": False, **_NO_LINES}
    layout["yaxis"] |= {"autorange": "reversed", **_whole_ticks(num_layers), **_NO_LINES}
    figure.update_layout(**layout)
    return figure


def _cells(
    values: Sequence[Sequence[float | None]], width: int, ends: tuple[float, float], scale: list[Any], **more: Any
) -> go.Heatmap:
    """Cells of a heat map; shorter rows end in gaps."""
    padded = [[*row, *[None] * (width - len(row))] for row in values]
    return go.Heatmap(
        z=padded, zmin=ends[0], zmax=ends[1], colorscale=scale, showscale=False, hoverongaps=False, **_GAPS, **more
    )


def _usage_facts(panel: UsagePanel, width: int) -> list[list[list[float]]]:
    """Per cell the expert, its share of the tokens, and that share over the even one."""
    rows = []
    for ids, shares, even in zip(panel.expert_ids, panel.share, panel.even_share, strict=True):
        cells = [
            [e, round(share, 4), round(share / even, 3) if even else 1] for e, share in zip(ids, shares, strict=True)
        ]
        rows.append(cells + [[0, 0, 0]] * (width - len(cells)))
    return rows


def axis_title(text: str) -> dict[str, Any]:
    """The title of an axis."""
    return {"text": text, "font": {"size": 12, "color": palette.INK_SOFT[LIGHT]}, "standoff": 10}


def _whole_ticks(num_layers: int) -> dict[str, Any]:
    """Ticks on whole layers, about ten of them."""
    step = next((step for step in (1, 2, 4, 5, 8, 10, 16, 20) if num_layers <= 12 * step), 32)
    return {"tick0": 0, "dtick": step}


def quiet_layout(height: int) -> dict[str, Any]:
    """What all figures share: transparent, quiet axes, no title (the page writes it), no drag (phones scroll)."""
    axis = {
        "gridcolor": palette.GRID[LIGHT],
        "linecolor": palette.LINE[LIGHT],
        "tickcolor": palette.LINE[LIGHT],
        "tickfont": {"size": 12, "color": palette.INK_FAINT[LIGHT]},
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
    }
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 8, "r": 24, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": palette.INK[LIGHT]},
        "showlegend": False,
        "dragmode": False,
        "hoverlabel": {
            "bgcolor": palette.SURFACE[LIGHT],
            "bordercolor": palette.LINE[LIGHT],
            "font": {"family": FONT, "size": 12, "color": palette.INK[LIGHT]},
            "align": "left",
        },
        "xaxis": {**axis, "ticks": "outside", "ticklen": 4},
        "yaxis": {**axis, "ticks": ""},
    }
