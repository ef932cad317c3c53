"""Every model in the repository still converts to what it did when its golden was written."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.goldens import (
    BOUND,
    GOLDENS,
    METHODS,
    TOLERANCES,
    converted,
    differences,
    facts,
    golden_file,
    models,
)

CASES = list(product(sorted(models()), METHODS))


def golden(name: str) -> dict[str, Any]:
    return json.loads(golden_file(name).read_text("utf-8"))


def is_within(method: str, expected: dict[str, Any], found: dict[str, Any]) -> bool:
    pairs = zip(differences(expected, found), TOLERANCES[method], strict=True)
    return all(difference <= tolerance for difference, tolerance in pairs)


def test_every_model_has_a_golden_and_every_golden_is_read() -> None:
    assert sorted(models()) == ["babyllama361", "mix7m", "stories260K"]
    assert sorted(path.stem for path in GOLDENS.glob("*.json")) == sorted(models())


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_small_conversion_is_its_golden(name: str, method: str, tmp_path: Path) -> None:
    expected, found = golden(name), facts(converted(name, method, tmp_path).path)
    assert is_within(method, expected[method], found), differences(expected[method], found)
    assert found["dense_nats_per_token"] == pytest.approx(expected[method]["dense_nats_per_token"], abs=1e-4)
    if method == "weave":
        assert 0 < found["loss_over_dense"] < BOUND * expected["static"]["loss_over_dense"]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_tolerance_sees_any_layer_without_repair(name: str, method: str) -> None:
    expected = golden(name)[method]
    for number, layer in enumerate(expected["layers"]):
        layers = list(expected["layers"])
        layers[number] = {**layer, "error": layer["error_before"]}
        assert not is_within(method, expected, {**expected, "layers": layers}), number


@pytest.mark.parametrize("name", sorted(models()))
def test_the_tolerance_sees_a_weave_that_only_prunes(name: str) -> None:
    expected = golden(name)
    loss = expected["static"]["loss_over_dense"]
    assert not is_within("weave", expected["weave"], {**expected["weave"], "loss_over_dense": loss})
