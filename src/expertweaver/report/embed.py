"""A figure inside the page: its place, its values as JSON that cannot end the script, and its caption."""

from __future__ import annotations

import json
import math
from typing import Any

import plotly.graph_objects as go

from expertweaver.report.markup import Html, tag

_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def inline_json(value: Any) -> Html:
    """Write JSON for a script element: no character of it can close the element, no number is NaN."""
    return Html(json.dumps(_finite(value), allow_nan=False, separators=(",", ":")).translate(_UNSAFE))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plot(figure: go.Figure, name: str, caption: str, title: str, *, level: int = 3) -> Html:
    """Write a figure with its heading and caption; the page's script draws it from the JSON beside it."""
    data = figure.to_plotly_json()
    spec = {"data": data["data"], "layout": data["layout"]}
    height = f"min-height:{figure.layout.height}px"  # pyright: ignore[reportAttributeAccessIssue]
    described = {"aria_label": title, "aria_describedby": f"caption-{name}"}
    return tag(
        "figure",
        tag(f"h{level}", title, class_="figure-title"),
        tag("div", id=f"plot-{name}", class_="plot", style=height, role="img", **described),
        tag("script", inline_json(spec), type="application/json", id=f"data-{name}"),
        tag("figcaption", caption, id=f"caption-{name}"),
    )
