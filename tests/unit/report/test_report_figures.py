from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go
import pytest
from support.reports import HOSTILE, LOSS, NUM_LAYERS, evaluation, full_report, hostile_report, manifest, routing

from expertweaver.report import captions, figures, palette
from expertweaver.report.conversion import read_conversions
from expertweaver.report.usage import usage_panels

LAYERS = read_conversions([manifest(0.25)])[0].layers


def traces(figure: go.Figure) -> list[dict[str, Any]]:
    return list(figure.to_plotly_json()["data"])


def test_quality_has_a_mark_for_every_model_and_domain() -> None:
    drawn = traces(figures.quality_by_domain(evaluation()))
    assert [trace["name"] for trace in drawn] == [model.name for model in evaluation().models]
    assert {len(trace["x"]) for trace in drawn} == {len(LOSS) + 1}
    assert drawn[1]["x"][0] == evaluation().models[1].quality("all").nats_per_token
    assert drawn[1]["error_x"]["arrayminus"][1] == pytest.approx(0.06)
    assert len({(trace["marker"]["symbol"], trace["marker"]["color"]) for trace in drawn}) == 4


def test_differences_start_at_dense() -> None:
    drawn = traces(figures.difference_by_domain(evaluation()))
    assert len(drawn) == 3
    assert drawn[0]["x"][1] == pytest.approx(0.083 * 1.5)
    assert drawn[0]["error_x"]["arrayminus"] == drawn[0]["x"]


def test_slices_fill_every_layer() -> None:
    shared, active, skipped = traces(figures.slices_per_layer(LAYERS))
    sums = [sum(parts) for parts in zip(shared["y"], active["y"], skipped["y"], strict=True)]
    assert sums == pytest.approx([1.0] * NUM_LAYERS)
    assert skipped["y"] == pytest.approx([0.25] * NUM_LAYERS)
    assert "skips 25\u00a0% for a token" in captions.slices(LAYERS)


def test_cv_boxes_take_the_quantiles_they_name() -> None:
    box, tau, numbers = traces(figures.cv_spread(LAYERS))
    cv = LAYERS[4].cv
    assert cv is not None
    drawn = [box[key][4] for key in ("lowerfence", "q1", "median", "q3", "upperfence")]
    assert drawn == [cv.quantiles[place] for place in (1, 5, 10, 15, 19)]
    assert set(tau["y"]) == {0.6}
    assert numbers["y"] == box["median"]
    assert f"median {cv.quantiles[10]:.2f}" in numbers["text"][4]


def test_frequency_has_a_line_a_layer() -> None:
    drawn = traces(figures.activation_frequency(LAYERS))
    assert len(drawn) == NUM_LAYERS
    assert drawn[0]["x"][-1] == 1.0
    assert tuple(drawn[0]["y"]) == LAYERS[0].activation_frequency


def test_usage_shows_every_cell_once() -> None:
    panel = usage_panels(routing(48))[0]
    use, always = traces(figures.expert_usage(panel))
    filled = [
        [a is not None, b is not None]
        for r, s in zip(use["z"], always["z"], strict=True)
        for a, b in zip(r, s, strict=True)
    ]
    assert all(sum(cell) == 1 for cell in filled)
    assert len(filled) == NUM_LAYERS * 56


def test_every_color_of_a_figure_has_a_dark_partner() -> None:
    known = palette.dark_of_light() | {"rgba(0,0,0,0)": ""}
    panel = usage_panels(routing(48))[0]
    drawn = [figures.quality_by_domain(evaluation()), figures.difference_by_domain(evaluation())]
    drawn += [figures.slices_per_layer(LAYERS), figures.cv_spread(LAYERS), figures.activation_frequency(LAYERS)]
    for figure in [*drawn, figures.expert_usage(panel)]:
        colors = set(_colors(figure.to_plotly_json()))
        assert colors
        assert colors <= known.keys()


def _colors(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value.startswith(("#", "rgb")) else []
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [color for child in children for color in _colors(child)]


def test_no_light_color_has_two_partners() -> None:
    light = [pair[0] for pair in palette.all_pairs()]
    assert len(light) == len(set(light))


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("ink", [palette.INK, palette.INK_SOFT, palette.INK_FAINT, palette.ACCENT, palette.WARNING])
def test_text_is_legible_on_every_ground(ink: palette.Pair, scheme: int) -> None:
    for ground in (palette.PAGE, palette.SURFACE, palette.WARNING_WASH):
        assert contrast(ink[scheme], ground[scheme]) >= 4.5


@pytest.mark.parametrize("scheme", [0, 1])
def test_marks_stand_out_from_the_ground(scheme: int) -> None:
    for pair in (palette.DENSE, *palette.MODELS, palette.SHARED):
        assert contrast(pair[scheme], palette.SURFACE[scheme]) >= 3


def contrast(first: str, second: str) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    parts = [byte / 255 for byte in bytes.fromhex(color[1:])]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_names_are_text_in_figures_too() -> None:
    hostile = hostile_report().evaluation
    assert hostile is not None
    written = json.dumps(figures.quality_by_domain(hostile).to_plotly_json())
    assert "<script" not in written
    assert "&lt;script&gt;alert(1)" in written
    assert figures.plain(f"a\n{HOSTILE}") == "a &lt;script&gt;alert(1)&lt;/script&gt;"


def test_one_layer_is_enough() -> None:
    for draw in (figures.slices_per_layer, figures.cv_spread, figures.activation_frequency):
        assert traces(draw(LAYERS[:1]))
    assert full_report().title
