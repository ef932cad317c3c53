"""How a method looks, the same in every figure and table: its place decides, the dense model has a look of its own."""

from __future__ import annotations

from expertweaver.comparison.results import Comparison
from expertweaver.report import palette
from expertweaver.report.markup import Html, tag


def color(index: int) -> str:
    """The light page's colour of a method."""
    return palette.model_color(index + 1, True)[0]


def symbol(index: int) -> str:
    """The marker of a method, as Plotly names it."""
    return palette.model_mark(index + 1, True)[0]


def method_name(comparison: Comparison, index: int) -> Html:
    """A method's marker and name; oracles say that they are."""
    method = comparison.methods[index]
    style = f"color:var({palette.model_variable(index + 1, True)})"
    mark = tag("span", palette.model_mark(index + 1, True)[1], class_="mark", style=style, aria_hidden="true")
    aside = tag("span", "oracle", class_="aside") if method.is_oracle else Html("")
    return tag("span", mark, tag("span", method.label, class_="name"), aside, class_="model")
