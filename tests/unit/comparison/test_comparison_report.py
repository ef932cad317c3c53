"""What is written of a comparison: values, Markdown, the page, the drawing."""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.comparisons import cell, comparison, method
from support.pages import read, rows
from support.reports import HOSTILE, HOSTILE_END

from expertweaver.comparison.results import Comparison
from expertweaver.report import page as report_page
from expertweaver.report.comparison import write_comparison
from expertweaver.report.comparison.console import render_comparison_table
from expertweaver.report.comparison.figures import loss_by_domain, quality_by_budget
from expertweaver.report.comparison.markdown import comparison_markdown
from expertweaver.report.comparison.page import render_comparison
from expertweaver.report.comparison.rows import budget_rows
from expertweaver.report.comparison.scale import root, root_ticks
from expertweaver.report.comparison.svg import quality_svg, spread_out
from expertweaver.report.comparison.values import comparison_csv

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "get_plotlyjs", lambda: "/* drawing library */")


def example() -> Comparison:
    """Two budgets, an oracle that no checkpoint holds, two seeds of one method, domains of both kinds."""
    methods = [
        method("best"),
        method("flap:scope=global;bias=false"),
        method("bound", is_oracle=True, beyond_stock="it looks at every neuron"),
    ]
    losses = {("best", 0.25): 2.1, ("best", 0.5): 2.4, ("flap:scope=global;bias=false", 0.25): 2.16}
    losses |= {("flap:scope=global;bias=false", 0.5): 2.64, ("bound", 0.25): 2.01, ("bound", 0.5): 2.04}
    cells = [
        cell(label, budget, [loss + change] * 12, seed)
        for (label, budget), loss in losses.items()
        for seed, change in ([(0, -0.01), (1, 0.01)] if label == "best" else [(None, 0.0)])
    ]
    return comparison(methods, cells, ["a", "b"] * 6, notes=("a note",))


def hostile() -> Comparison:
    methods = [method(HOSTILE, beyond_stock=HOSTILE_END, options={HOSTILE: HOSTILE_END}), method(HOSTILE_END)]
    cells = [cell(m.label, 0.5, [2.5] * 12) for m in methods]
    return comparison(methods, cells, [HOSTILE, HOSTILE_END] * 6, source=HOSTILE, notes=(HOSTILE,), text=(HOSTILE_END,))


def test_every_file_is_written(tmp_path: Path) -> None:
    write_comparison(tmp_path, example())
    names = {"comparison.json", "comparison.csv", "comparison.md", "quality.svg", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_values_have_a_row_a_cell_and_domain() -> None:
    table = list(csv.DictReader(io.StringIO(comparison_csv(example()))))
    assert len(table) == 8 * 5
    row = next(r for r in table if (r["method"], r["seed"], r["domain"]) == ("best", "1", "out-of-domain"))
    assert (row["mlp_sparsity"], row["num_documents"], row["num_tokens"]) == ("0.25", "6", "60")
    assert float(row["over_dense"]) == pytest.approx(0.11)
    assert float(row["dense_nats_per_token"]) == pytest.approx(2.0)
    oracle = next(r for r in table if r["method"] == "bound")
    assert (oracle["seed"], oracle["is_oracle"], oracle["beyond_stock"]) == ("", "True", "it looks at every neuron")


def test_markdown_has_a_table_a_budget() -> None:
    text = comparison_markdown(example())
    assert re.findall(r"^## .*$", text, re.MULTILINE) == ["## mlp_sparsity 25\u00a0%", "## mlp_sparsity 50\u00a0%"]
    tables = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert len({len(cells) for cells in tables}) == 1
    assert tables[0][1:6] == ["all", "in-domain", "out-of-domain", "a", "b"]
    best = next(cells for cells in tables if cells[0] == "| best")
    assert best[1] == "+0.100 (+0.090 to +0.110)"
    assert best[6] == "–"
    flap = next(cells for cells in tables if cells[0].startswith("| flap"))
    assert flap[6] == r"+0.060 [+0.060, +0.060]"
    assert tables[-1][0] == "| bound (oracle)"
    assert tables[-1][-1] == "no: it looks at every neuron |"


def test_the_page_has_its_sections_figures_and_tables() -> None:
    text = render_comparison(example())
    found = read(text)
    names = ["notes", "quality", "domains", "tables", "setup", "options"]
    assert [section.attributes["id"] for section in found.all("section")] == names
    plots = [e.attributes["id"] for e in found.all("div") if e.attributes.get("class") == "plot"]
    assert plots == [*(f"plot-quality-{i}" for i in range(5)), "plot-domains-0", "plot-domains-1"]
    cells = [row for row in rows(text) if "best" in row[0] and len(row) == 11]
    assert [row[1] for row in cells] == ["+0.100 (+0.090 to +0.110)", "+0.400 (+0.390 to +0.410)"]
    bound = next(row for row in rows(text) if "bound" in row[0])
    assert bound[-1] == "no"
    assert "bound: it looks at every neuron" in text


def test_figures_hold_the_losses_on_their_scale() -> None:
    made = example()
    figure = quality_by_budget(made, budget_rows(made), 0).to_plotly_json()
    assert [list(trace["x"]) for trace in figure["data"]] == [[0.25, 0.5]] * 3
    assert list(figure["data"][1]["y"]) == pytest.approx([0.4, 0.8])
    assert [trace["line"]["dash"] for trace in figure["data"]] == ["solid", "solid", "5px,4px"]
    assert figure["data"][0]["error_y"]["array"] == pytest.approx([root(0.11) - root(0.1), root(0.41) - root(0.4)])
    rows_at_half = budget_rows(made)[0.5]
    points = loss_by_domain(made, rows_at_half).to_plotly_json()["data"]
    assert list(points[2]["x"]) == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("write", [render_comparison, quality_svg, comparison_markdown])
def test_names_stay_text(write: object) -> None:
    text = write(hostile())  # pyright: ignore[reportCallIssue]
    assert HOSTILE not in text
    assert HOSTILE_END not in text
    assert "<img" not in text
    if write is render_comparison:
        assert len(read(text).all("script")) == 3 + 3 + 1


def test_the_drawing_is_well_formed_and_its_labels_do_not_touch() -> None:
    methods = [method(f"method-{i}") for i in range(14)]
    cells = [
        cell(m.label, budget, [2.0 + budget * (1 + 0.001 * i)]) for i, m in enumerate(methods) for budget in (0.25, 0.5)
    ]
    drawing = ElementTree.fromstring(quality_svg(comparison(methods, cells, ["a"])))
    labels = [e for e in drawing.iter(f"{SVG}text") if (e.text or "").startswith("method-")]
    assert len(labels) == 14
    heights = sorted(float(e.attrib["y"]) for e in labels)
    assert min(b - a for a, b in pairwise(heights)) >= 16
    assert heights[0] > 50
    assert heights[-1] < float(drawing.attrib["height"]) - 40
    width = float(drawing.attrib["width"])
    assert all(float(e.attrib["x"]) + 6.5 * len(e.text or "") < width for e in labels)


def test_the_drawing_has_dense_at_zero_and_oracles_dashed() -> None:
    text = quality_svg(example())
    assert text.count("stroke-dasharray") == 1
    drawing = ElementTree.fromstring(text)
    places = {e.text: float(e.attrib["y"]) for e in drawing.iter(f"{SVG}text")}
    assert places["dense"] > places["bound +0.040"] > places["best +0.400"]


def test_places_move_apart_in_order_and_stay_inside() -> None:
    assert spread_out([25.0, 25.0, 50.0], 10, 0, 100) == [20, 30, 50], "around their mean"
    assert spread_out([5.0, 2.0, 50.0], 10, 0, 100) == [10, 0, 50], "not below the least place"
    assert spread_out([97.0, 98.0, 50.0], 10, 0, 100) == [90, 100, 50], "not above the largest"
    assert spread_out([30.0, 42.0, 42.0], 10, 0, 100) == pytest.approx([28, 38, 48]), "a group pushes the next"
    assert spread_out([1.0], 10, 0, 100) == [1]


def test_ticks_are_round_apart_and_hold_zero() -> None:
    ticks = root_ticks([-0.01, 0.04, 0.5])
    assert 0.0 in ticks
    assert ticks == sorted(ticks)
    assert min(root(b) - root(a) for a, b in pairwise(ticks)) >= (root(0.5) + root(0.01)) / 7
    assert len(ticks) >= 4
    assert max(ticks) == 0.5
    assert root_ticks([0.0]) == [0.0]


def test_the_terminal_table_has_a_section_a_budget() -> None:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=140).print(render_comparison_table(example()))
    text = stream.getvalue().replace("\u00a0", " ")
    assert (
        text.index("mlp_sparsity 25 %") < text.index("+0.100") < text.index("mlp_sparsity 50 %") < text.index("+0.400")
    )
    assert "bound (oracle)" in text
    assert "+0.060 [+0.060, +0.060]" in text
