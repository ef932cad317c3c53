from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from support.pages import Reading, read
from support.reports import HOSTILE, HOSTILE_END, evaluation, full_report, hostile_report, manifest

from expertweaver.evaluation.results import Evaluation
from expertweaver.report import Report, page, write_report
from expertweaver.report.embed import inline_json
from expertweaver.report.markup import Html, join, tag

STUB = "/* drawing library */"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "get_plotlyjs", lambda: STUB)


def reading(report: Report) -> Reading:
    return read(page.render_page(report))


def test_every_section_is_there_once_and_in_order() -> None:
    found = reading(full_report())
    names = ["warnings", "notes", "quality", "speed", "budget", "layers", "usage", "calibration", "recipe"]
    assert [section.attributes["id"] for section in found.all("section")] == names
    assert [a.attributes["href"] for a in found.all("a")][1:] == [f"#{name}" for name in names]


def test_the_header_names_the_numbers_that_matter() -> None:
    cards = [
        e.text.replace("\u00a0", " ") for e in reading(full_report()).all("li") if e.attributes.get("class") == "card"
    ]
    assert len(cards) == 4
    assert "dense reference" in cards[0]
    assert "2.406" in cards[0]
    for expected in ("mlp_sparsity 25 %", "2.497", "+0.091", "532 M", "598 M"):
        assert expected in cards[1]
    assert "mlp_sparsity 50 %" in cards[3]


def test_figures_carry_words() -> None:
    found = reading(full_report())
    plots = [e for e in found.all("div") if e.attributes.get("class") == "plot"]
    captions = found.all("figcaption")
    assert len(plots) == len(captions) == 2 + 2 + 1 + 1 + 3 * 6
    for plot, caption in zip(plots, captions, strict=True):
        assert caption.text
        assert plot.attributes["aria-label"]
        assert plot.attributes["aria-describedby"] == caption.attributes["id"]
        name = (plot.attributes["id"] or "").replace("plot-", "data-")
        assert json.loads(found.by_id(name).text)["data"]


def test_headings_do_not_skip_a_level_and_the_language_is_set() -> None:
    found = reading(full_report())
    levels = [int(e.tag[1]) for e in found.elements if re.fullmatch(r"h\d", e.tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert found.all("html")[0].attributes["lang"] == "en"


def test_statistics_that_two_conversions_share_are_drawn_once() -> None:
    same = [e.attributes["id"] for e in reading(full_report()).all("div") if e.attributes.get("class") == "plot"]
    assert [name for name in same if name and name.startswith(("plot-cv", "plot-frequency"))] == [
        "plot-cv-0",
        "plot-frequency-0",
    ]
    other = manifest(0.5)
    for layer in other["layers"]:
        layer["cv"]["tau"] = 0.5
    text = page.render_page(Report("two", (manifest(0.25), other)))
    assert 'id="plot-cv-1"' in text
    assert 'id="plot-frequency-1"' not in text


def test_text_from_data_never_becomes_markup() -> None:
    text = page.render_page(hostile_report())
    found = read(text)
    plain = read(page.render_page(full_report()))
    scripts = found.all("script")
    assert [s.text for s in scripts if s.attributes.get("type") != "application/json"] == [STUB, page._asset("page.js")]
    assert not found.all("img")
    assert {e.tag for e in found.elements} <= {e.tag for e in plain.elements}
    assert not [e for e in found.elements if any(name.startswith("on") for name in e.attributes)]
    assert found.all("h1")[0].text == HOSTILE
    assert "<!--" not in text
    recipe = found.by_id("recipe").text
    assert HOSTILE in recipe
    assert HOSTILE_END in recipe
    assert "</pre><!--" in recipe


def test_inline_json_cannot_end_its_script() -> None:
    value = {"name": "</script><!-- \u2028 &amp;", "bad": [float("nan"), float("inf"), 1.5]}
    written = inline_json(value)
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == {"name": value["name"], "bad": [None, None, 1.5]}


def test_markup_escapes_unless_it_is_told_otherwise() -> None:
    inner = tag("b", "<i>")
    assert inner == "<b>&lt;i&gt;</b>"
    assert tag("p", inner, title='"<', hidden=True, id=None) == '<p title="&quot;&lt;" hidden><b>&lt;i&gt;</b></p>'
    assert join(f"{inner}") == "&lt;b&gt;&amp;lt;i&amp;gt;&lt;/b&gt;"
    assert isinstance(join(inner, "a"), Html)


def test_missing_parts_leave_no_empty_sections() -> None:
    only_quality = replace(full_report(), conversions=(), speed=None, notes=())
    assert [s.attributes["id"] for s in reading(only_quality).all("section")] == ["quality", "usage"]
    only_plan = Report("plan", (manifest(0.25) | {"calibration": None},))
    assert [s.attributes["id"] for s in reading(only_plan).all("section")] == ["budget", "layers", "recipe"]
    assert reading(Report("nothing", evaluation=Evaluation((), (), False))).all("section") == []


def test_lm_eval_results_are_shown() -> None:
    shown = replace(full_report(), evaluation=replace(evaluation(), lm_eval={"arc_easy": {"acc": 0.61}}))
    assert "arc_easy:\n  acc: 0.61" in reading(shown).by_id("quality").text


def test_the_file_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = write_report(tmp_path / "deep" / "report.html", full_report())
    text = path.read_text(encoding="utf-8")
    found = read(text)
    for element in found.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert not re.match(r"\s*(https?:)?//", element.attributes.get(name) or "")
    style = found.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    scripts = [s.text for s in found.all("script") if s.attributes.get("type") != "application/json"]
    assert "plotly.js v" in scripts[0][:100]
    assert len(scripts) == 2
    policy = found.all("meta")[1].attributes["content"] or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert len(text) < 12_000_000
