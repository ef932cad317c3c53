"""Every model in the repository still converts to what it did when its golden was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.goldens import (
    GOLDENS,
    LOSS_TOLERANCE,
    MEASURE_TOLERANCE,
    converted,
    differences,
    facts,
    golden_file,
    models,
)


def test_every_model_has_a_golden_and_every_golden_is_read() -> None:
    assert sorted(models()) == ["babyllama361", "mix7m", "stories260K"]
    assert sorted(path.stem for path in GOLDENS.glob("*.json")) == sorted(models())


@pytest.mark.parametrize("name", sorted(models()))
def test_a_small_conversion_is_its_golden(name: str, tmp_path: Path) -> None:
    golden = json.loads(golden_file(name).read_text("utf-8"))
    found = facts(converted(name, tmp_path).path)
    loss, measure = differences(golden, found)
    assert loss <= LOSS_TOLERANCE
    assert measure <= MEASURE_TOLERANCE
    assert found["dense_nats_per_token"] == pytest.approx(golden["dense_nats_per_token"], abs=1e-4)


@pytest.mark.parametrize("name", sorted(models()))
def test_the_tolerance_sees_a_layer_without_repair(name: str) -> None:
    golden = json.loads(golden_file(name).read_text("utf-8"))
    layers = [{**layer, "error": layer["error_before"]} for layer in golden["layers"]]
    assert differences(golden, {**golden, "layers": layers})[1] > MEASURE_TOLERANCE
