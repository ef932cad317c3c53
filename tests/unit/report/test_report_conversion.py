from __future__ import annotations

import pytest
from support.reports import manifest

from expertweaver.errors import CheckpointError
from expertweaver.report.conversion import conversion_labels, read_conversions


def test_all_missing_keys_are_reported_at_once() -> None:
    broken = manifest()
    del broken["budget"]["num_active_params"]
    del broken["layers"][3]["num_shared"]
    with pytest.raises(CheckpointError) as caught:
        read_conversions([manifest(), broken])
    places = [problem.where for problem in caught.value.problems]
    assert places == ["conversions[1].budget.num_active_params", "conversions[1].layers.3.num_shared"]


def test_a_wrong_number_of_quantiles_is_named() -> None:
    broken = manifest()
    broken["layers"][0]["cv"]["quantiles"] = [0.1, 0.2]
    with pytest.raises(CheckpointError, match=r"layers\.0\.cv\.quantiles.*21 items"):
        read_conversions([broken])


def test_optional_parts_may_be_absent_and_unknown_ones_present() -> None:
    bare = manifest()
    bare |= {"future": {"key": 1}, "calibration": None}
    bare["layers"] = [
        {key: layer[key] for key in ("layer", "num_shared", "num_routed", "num_active_routed")}
        for layer in bare["layers"]
    ]
    (conversion,) = read_conversions([bare])
    assert conversion.layers[0].cv is None
    assert conversion.layers[0].num_skipped == 16
    assert conversion.layers[0].num_slices == 64


def test_labels_are_distinct() -> None:
    named = manifest() | {"name": "mine"}
    conversions = read_conversions([manifest(0.25), manifest(0.5), manifest(0.25), named, manifest(0.125), manifest()])
    labels = [label.replace("\u00a0", " ") for label in conversion_labels(conversions)]
    assert labels == [
        "mlp_sparsity 25 %",
        "mlp_sparsity 50 %",
        "mlp_sparsity 25 % #2",
        "mine",
        "mlp_sparsity 12.5 %",
        "mlp_sparsity 25 % #3",
    ]
