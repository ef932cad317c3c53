from __future__ import annotations

import json

import pytest
from support.comparisons import cell, comparison, method

from expertweaver.comparison.results import Comparison
from expertweaver.comparison.summary import Standing, summarize, table_domains

METHODS = [method("m"), method("r")]


def of(standings: list[Standing], label: str, domain: str) -> Standing:
    [found] = [s for s in standings if (s.method, s.domain) == (label, domain)]
    return found


def test_domains_are_inside_where_the_calibration_has_them() -> None:
    mixed = comparison(METHODS, [cell("m", 0.5, [3.0] * 3)], ["a", "b", "a"])
    assert table_domains(mixed) == {
        "all": [0, 1, 2],
        "in-domain": [0, 2],
        "out-of-domain": [1],
        "a": [0, 2],
        "b": [1],
    }
    assert list(table_domains(comparison(METHODS, [], ["a", "a"]))) == ["all", "a"]
    assert list(table_domains(comparison(METHODS, [], ["b", "c"]))) == ["all", "b", "c"]


def test_losses_are_over_dense_and_means_over_seeds() -> None:
    cells = [cell("m", 0.5, [2.1, 2.3, 2.2], 0), cell("m", 0.5, [2.3, 2.3, 2.6], 1), cell("r", 0.5, [2.5] * 3)]
    table = summarize(comparison(METHODS, cells, ["a", "b", "a"]))
    whole = of(table, "m", "all")
    assert (whole.num_documents, whole.num_tokens, whole.num_seeds) == (3, 30, 2)
    assert whole.dense_nats_per_token == pytest.approx(2.0)
    assert (whole.lowest, whole.highest) == (pytest.approx(0.2), pytest.approx(0.4))
    assert whole.over_dense == pytest.approx(0.3)
    assert whole.nats_per_token == pytest.approx(2.3)
    assert whole.std is None, "two seeds are too few"
    assert (whole.kl_to_dense, whole.top1_agreement) == (pytest.approx(0.5), pytest.approx(0.5))
    assert of(table, "m", "in-domain").over_dense == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4)
    assert of(table, "m", "out-of-domain").over_dense == pytest.approx(0.3)
    assert whole.to_reference is None, "the first method is the reference"
    assert of(table, "r", "all").to_reference == pytest.approx(0.2)
    assert of(table, "r", "all").lowest is None


def test_three_seeds_have_a_standard_deviation() -> None:
    cells = [cell("m", 0.5, [loss], seed) for seed, loss in enumerate((2.1, 2.2, 2.6))]
    assert of(summarize(comparison(METHODS, cells, ["a"])), "m", "all").std == pytest.approx(0.2645751)


def test_json_and_back_is_the_same() -> None:
    cells = [cell("m", 0.25, [2.1] * 12, 0), cell("r", 0.25, [2.5] * 12)]
    before = comparison(METHODS, cells, ["a", "b"] * 6, notes=("one",))
    values = json.loads(json.dumps(before.to_json()))
    assert Comparison.from_json(values) == before
    assert len(values["table"]) == 2 * 5
    assert values["table"][5]["to_reference_interval"] == pytest.approx([0.4, 0.4])
