"""HTML that is escaped unless it says otherwise: whatever is not `Html` becomes text on its way into a tag."""

from __future__ import annotations

from html import escape
from typing import Any

_VOID = frozenset({"br", "hr", "meta", "link", "input"})


class Html(str):
    """A piece of finished HTML. An f-string of it is a plain string again, and is escaped again."""

    __slots__ = ()


def html(value: object) -> Html:
    """Escape a value, or pass finished HTML through."""
    return value if isinstance(value, Html) else Html(escape(str(value), quote=True))


def join(*parts: object, by: str = "") -> Html:
    """Put pieces one after the other, each escaped unless it is HTML."""
    return Html(by.join(html(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: Any) -> Html:
    """Write one element.

    Args:
        name: Of the element.
        children: Escaped unless they are HTML.
        attributes: `class_` gives class, `data_figure` gives data-figure; None and False are left out, True
            writes the bare name.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    opening = f"<{name}{written}>"
    return Html(opening) if name in _VOID else Html(f"{opening}{join(*children)}</{name}>")


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html(value)}"'
