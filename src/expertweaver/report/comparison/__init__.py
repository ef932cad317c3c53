"""What a comparison gave, for readers: JSON, a table of values, Markdown, one HTML file and a small figure."""

from __future__ import annotations

import json
from pathlib import Path

from expertweaver.checkpoint.folder import write_text
from expertweaver.comparison.results import Comparison


def write_comparison(out: Path, comparison: Comparison) -> None:
    """Write comparison.json, comparison.csv, comparison.md, quality.svg and report.html into a folder."""
    from expertweaver.report.comparison.markdown import comparison_markdown
    from expertweaver.report.comparison.page import render_comparison
    from expertweaver.report.comparison.svg import quality_svg
    from expertweaver.report.comparison.values import comparison_csv

    write_text(out / "comparison.json", json.dumps(comparison.to_json(), indent=1) + "\n")
    write_text(out / "comparison.csv", comparison_csv(comparison))
    write_text(out / "comparison.md", comparison_markdown(comparison))
    write_text(out / "quality.svg", quality_svg(comparison))
    write_text(out / "report.html", render_comparison(comparison))
