"""What a conversion gave, for readers: one HTML file, a table for the terminal, a table for model cards.

The names load on first use, so that the terminal table does not pay for the figures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expertweaver.report.console import render_table
    from expertweaver.report.contents import Report
    from expertweaver.report.markdown import quality_markdown
    from expertweaver.report.page import write_report

__all__ = ["Report", "quality_markdown", "render_table", "write_report"]

_HOMES = {"Report": "contents", "quality_markdown": "markdown", "render_table": "console", "write_report": "page"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
