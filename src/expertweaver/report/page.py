"""The page: sections put into the template, with everything it needs inside the one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from expertweaver.evaluation.results import Evaluation
from expertweaver.report import headline, palette, sections, words
from expertweaver.report.contents import Report
from expertweaver.report.conversion import Conversion, conversion_labels, read_conversions
from expertweaver.report.embed import inline_json
from expertweaver.report.markup import Html, html, join, tag


def write_report(path: str | Path, report: Report) -> Path:
    """Write a report as one HTML file that needs nothing else, no network included.

    Args:
        path: The file to write; an existing one is replaced, and its folder is made.
        report: What it shows.

    Returns:
        The file.

    Raises:
        CheckpointError: A manifest lacks a required key; lists all of them.
    """
    text = render_page(report)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="\n")
    return file


def render_page(report: Report) -> str:
    """Put a report into the page template."""
    conversions = read_conversions(report.conversions)
    return fill_template(
        title=report.title,
        lead=headline.lead(conversions),
        top=headline.cards(report.evaluation, conversions, conversion_labels(conversions)),
        parts=_sections(report, conversions),
    )


def fill_template(*, title: str, lead: Html, top: Html, parts: Sequence[tuple[str, str, Html]]) -> str:
    """Write a whole page.

    Args:
        title: Of the page.
        lead: The paragraph below the title.
        top: What comes before the sections.
        parts: Id, title and content of every section, in reading order; empty ones are left out.
    """
    shown = [(name, heading, content) for name, heading, content in parts if content]
    plotly, script = get_plotlyjs(), _asset("page.js")
    return Template(_asset("page.html")).substitute(
        policy=html(_policy(plotly, script)),
        title=html(title),
        style=palette.css_variables() + _asset("page.css"),
        lead=lead,
        navigation=_navigation(shown),
        headline=top,
        sections=join(*(tag("section", tag("h2", text), content, id=name) for name, text, content in shown), by="\n"),
        palette=inline_json(palette.dark_of_light()),
        plotly=plotly,
        script=script,
    )


def _sections(report: Report, conversions: tuple[Conversion, ...]) -> list[tuple[str, str, Html]]:
    """Id, title and content of every section, in reading order."""
    labels = conversion_labels(conversions)
    evaluation: Evaluation | None = report.evaluation if report.evaluation and report.evaluation.models else None
    count = sum(len(conversion.warnings) for conversion in conversions)
    given = bool(conversions)
    return [
        ("warnings", "Warning" if count == 1 else "Warnings", sections.warnings(conversions, labels)),
        ("notes", "Notes", sections.notes(report.notes)),
        ("quality", "Quality", sections.quality(evaluation) if evaluation else sections.EMPTY),
        ("speed", "Speed", sections.speed(report.speed) if report.speed else sections.EMPTY),
        ("budget", "Budget", sections.budget(conversions, labels) if given else sections.EMPTY),
        ("layers", "Layers", sections.layers(conversions, labels) if given else sections.EMPTY),
        ("usage", "Expert use", sections.usage(evaluation) if evaluation else sections.EMPTY),
        ("calibration", "Calibration", sections.calibration(conversions, labels)),
        ("recipe", words.plural(len(conversions), "Recipe"), sections.recipes(conversions, labels)),
    ]


def _navigation(shown: list[tuple[str, str, Html]]) -> Html:
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in shown]
    return tag("nav", tag("ul", *links), aria_label="Sections") if links else sections.EMPTY


def _asset(name: str) -> str:
    return files("expertweaver.report").joinpath(name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """A policy that lets the browser run these scripts only, and load nothing from anywhere."""
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
