"""What a plan says a conversion will need: by hand, and how it grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from shapes import SHAPES, Shape, save_hollow

from expertweaver import make_recipe, plan
from expertweaver.estimate import Needs, Speed
from expertweaver.planning import Plan

SMALL = Shape(64, 256, 2, 4, 2, 1000)
UNIT = Speed(1.0, 1.0, 1.0)


def planned(folder: Path, shape: Shape, **settings: object) -> Plan:
    save_hollow(folder, shape)
    budget = {"mlp_sparsity": 0.25, "num_slices": 8}
    return plan(make_recipe(folder, settings={**budget, **settings}), estimate_time=False)


def needs(of: Plan, num_tokens: int) -> Needs:
    return Needs(of.dense, of.recipe, of.budget, num_tokens)


def test_a_pass_and_a_repair_counted_by_hand(tmp_path: Path) -> None:
    """H 64, F 256, 2 of 4 heads for keys and values, 2 layers, 1,000 tokens."""
    settings = {"method.name": "static", "method.repair": True}
    parts = needs(planned(tmp_path, SMALL, **settings), 1000).seconds(UNIT)
    attention, ffn, norms = 64 * 64 * 3, 3 * 64 * 256, 2 * 64
    layer = attention + ffn + norms
    assert parts["passes"] == 2 * 1000 * (layer + layer + layer - ffn)  # statistics, dense, converted up to the FFN
    gram, solving = 1000 * 256 * 256 // 2, 3 * (256**3 // 6 + 256**2 * 64)
    assert parts["repair"] == 2 * (gram + 1000 * ffn + solving)
    assert parts["converted FFNs"] == 2 * 1000 * ffn
    assert set(parts) == {"passes", "repair", "converted FFNs"}


def test_each_part_runs_at_its_own_speed(tmp_path: Path) -> None:
    of = needs(planned(tmp_path, SMALL), 1000)
    slow, passes, single, double = (
        of.seconds(speed) for speed in (UNIT, Speed(2.0, 1, 1), Speed(1, 2.0, 1), Speed(1, 1, 2.0))
    )
    assert passes["passes"] == slow["passes"] / 2
    assert passes["design"] == slow["design"] == double["design"] == 2 * single["design"]
    assert slow["repair"] / 2 < single["repair"] < slow["repair"]
    assert slow["repair"] / 2 < double["repair"] < slow["repair"]


def test_time_grows_with_the_tokens_and_no_faster(tmp_path: Path) -> None:
    of = planned(tmp_path, SMALL)
    fixed = needs(of, 300_000).seconds(UNIT)
    double = needs(of, 600_000).seconds(UNIT)
    assert double["passes"] == 2 * fixed["passes"]
    assert double["design"] == fixed["design"], "it looks at 68 million activations at most"
    assert fixed["repair"] < double["repair"] < 2 * fixed["repair"]


@pytest.mark.parametrize("num_tokens", [16, 256, 291, 292, 100_000])
def test_the_repair_needs_no_more_than_two_square_matrices_of_the_smaller_kind(tmp_path: Path, num_tokens: int) -> None:
    of = needs(planned(tmp_path, SMALL, **{"method.name": "static", "method.repair": True}), num_tokens)
    without = replace(
        of, recipe=of.recipe.model_copy(update={"method": of.recipe.method.model_copy(update={"repair": False})})
    )
    assert without._repair_bytes() == 0
    fitting = num_tokens - num_tokens // 8
    assert (fitting >= 256) == (num_tokens >= 292)
    batch = 4 * (2048 * (256 + 4 * 64) + 4 * 256 * 256)
    by_neuron = max(4 * 256**2 + batch, 12 * 256**2) + 32 * 64 * 256
    by_token = 16 * fitting**2 + 8 * fitting * 256 + 56 * 64 * 256 + of._batch_bytes()
    assert of._repair_bytes() == (by_neuron if fitting >= 256 else by_token)
    assert of.memory_bytes() > without.memory_bytes()


def test_a_model_of_405_billion_parameters_is_planned_from_its_headers(tmp_path: Path) -> None:
    found = planned(tmp_path, SHAPES["405B"], num_slices=64)
    assert found.dense.num_params == pytest.approx(405.9e9, rel=1e-3)
    assert found.output_bytes == pytest.approx(2 * 405.9e9, rel=0.02)
    assert sum(file.stat().st_blocks for file in tmp_path.iterdir()) * 512 < 10e6, "nothing of it lies on the disk"
    layer = 4 * (3 * 16384 * 53248 + 2 * 16384**2 + 2 * 16384**2 // 16)
    assert found.memory_bytes > 2 * layer + 12 * 53248**2
    assert found.memory_bytes < 150e9
