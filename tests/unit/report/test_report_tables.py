from __future__ import annotations

from dataclasses import replace

from support.pages import rows
from support.reports import evaluation, manifest, speed

from expertweaver.report import tables
from expertweaver.report.conversion import read_conversions


def test_every_model_stands_beside_dense_in_every_domain() -> None:
    found = rows(tables.quality_table(evaluation()))
    assert found[0][:4] == ["model", "nats/token", "95 % interval", "difference to dense"]
    assert found[1] == ["all domains240 documents, 122,640 tokens"]
    assert found[2] == ["◆Qwen3-0.6B", "2.406", "2.326 to 2.491", "–", "11.09", "–", "–"]
    assert found[3] == ["●expertweaver-25", "2.497", "2.417 to 2.582", "+0.091", "12.15", "0.077", "97.0 %"]
    assert len(found) == 1 + 7 * (1 + 4)


def test_without_a_dense_model_no_difference_is_claimed() -> None:
    whole = evaluation()
    found = rows(tables.quality_table(replace(whole, models=whole.models[1:], has_dense=False)))
    assert {row[3] for row in found[1:] if len(row) > 1} == {"–"}


def test_budget_has_a_column_a_conversion() -> None:
    conversions = read_conversions([manifest(0.25), manifest(0.5)])
    found = {row[0]: row[1:] for row in rows(tables.budget_table(conversions, ["a", "b"]))}
    assert found["mlp_sparsity"] == ["25 %", "50 %"]
    assert found["num_params"] == ["597,884,928", "597,884,928"]
    assert found["num_active_params"] == ["531,824,640", "465,764,352"]
    assert found["slices of an FFN"] == ["64 × 48 neurons"] * 2
    assert found["num_experts_per_tok"] == ["29", "13"]


def test_layers_show_their_plan_and_leave_out_what_is_unknown() -> None:
    raw = manifest(0.5)
    raw["layers"][1] |= {"alpha": None, "cv": None, "router_scale_log2": None, "max_abs_router_logit": None}
    (conversion,) = read_conversions([raw])
    found = rows(tables.layer_table(conversion.layers, "plan"))
    assert found[1][:4] == ["0", "31", "33", "1"]
    assert found[1][9:] == ["2−9", "0.0041", "shared slices 40 -> 31"]
    assert [found[2][column] for column in (4, 6, 7, 8, 9, 10)] == ["–"] * 6


def test_speed_shows_ideal_beside_measured_and_survives_gaps() -> None:
    found = rows(tables.speed_table({**speed(), "partial": {"decode_tokens_per_second": 3.25}}))
    assert found[2][:6] == ["expertweaver-25", "23.9", "0.90×", "371", "1.08×", "0.89×"]
    assert found[4] == ["partial", "3.25", "–", "–", "–", "–", "–"]


def test_the_speed_bar_is_in_scale() -> None:
    written = tables.speed_table({"a": {"decode_ratio": 1.0, "ideal_ratio": 2.0, "prefill_ratio": None}})
    assert "width:50.00%" in written
    assert "left:100.00%" in written


def test_calibration_sums_up() -> None:
    (conversion,) = read_conversions([manifest()])
    assert conversion.calibration is not None
    found = rows(tables.calibration_table(conversion.calibration, "text"))
    assert found[1] == ["code", "40", "20,480"]
    assert found[-1] == ["all", "240", "122,880"]
