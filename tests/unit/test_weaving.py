"""Designing in sequence: layers see what converted layers put out, and repair pays off through the whole model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from support.families import save_variant
from torch import Tensor

from expertweaver.calibration.capture import profile_layers
from expertweaver.calibration.samples import CalibrationSet
from expertweaver.calibration.statistics import LayerStatistics, StatisticsFolder
from expertweaver.calibration.traffic import Streams
from expertweaver.dense.model import DenseModel, open_dense
from expertweaver.modeling.values import GLUWeights
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection, method_options
from expertweaver.weaving import Loom, WovenLayer, weave_model

BUDGET = SliceBudget(num_slices=8, slice_width=8, active_slices=4)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> DenseModel:
    return open_dense(str(save_variant("llama", tmp_path_factory.mktemp("dense"))))


@pytest.fixture(scope="module")
def calibration() -> CalibrationSet:
    token_ids = torch.randint(2, 96, (24, 64), generator=torch.Generator().manual_seed(0))
    return CalibrationSet(token_ids, torch.arange(24)[:, None].expand(24, 64).contiguous(), ("a",) * 24)


@pytest.fixture(scope="module")
def statistics(
    dense: DenseModel, calibration: CalibrationSet, tmp_path_factory: pytest.TempPathFactory
) -> list[LayerStatistics]:
    folder = tmp_path_factory.mktemp("statistics")
    gathered = StatisticsFolder(folder, dense.dims.num_hidden_layers)
    profile_layers(dense, calibration, gathered, compute_dtype=torch.float32, num_probes=1000, scratch=folder)
    return list(gathered)


def section(name: str, **options: object) -> MethodSection:
    return method_options(name).model_validate({"name": name, **options})


def last_error(dense: DenseModel, calibration: CalibrationSet, layers: list[WovenLayer], scratch: Path) -> float:
    """Squared difference of the last layer's output to the dense model's, relative to the latter's power."""
    streams = Streams(dense, calibration, compute_dtype=torch.float32, scratch=scratch)
    for layer, woven in enumerate(layers):
        weights = dense.read_ffn(layer)
        streams.enter(layer, weights)
        streams.leave(woven.served(weights.to(torch.float32)))
    difference = streams.converted - streams.wanted
    return float(difference.square().sum() / streams.wanted.square().sum())


@pytest.mark.parametrize("name", ["static", "expertweaver", "moefication", "flap"])
def test_any_method_can_be_repaired(
    name: str, dense: DenseModel, calibration: CalibrationSet, statistics: list[LayerStatistics], tmp_path: Path
) -> None:
    plain, repaired = (
        weave_model(
            dense, calibration, statistics, section(name, repair=on), BUDGET,
            compute_dtype=torch.float32, scratch=tmp_path,
        )
        for on in (False, True)
    )  # fmt: skip
    assert all(layer.design.down is None for layer in plain)
    assert all(layer.design.down is not None for layer in repaired)
    for before, after in zip(plain, repaired, strict=True):
        assert torch.equal(before.design.partition.shared_neurons, after.design.partition.shared_neurons)
    errors = [last_error(dense, calibration, layers, tmp_path) for layers in (plain, repaired)]
    assert errors[1] < 0.8 * errors[0]


def test_a_method_that_reads_traffic_needs_no_statistics(
    dense: DenseModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    layers = weave_model(
        dense, calibration, (), section("weave"), BUDGET, compute_dtype=torch.float32, scratch=tmp_path
    )
    assert len(layers) == dense.dims.num_hidden_layers
    assert all((layer.design.measures["captured_energy"] or 0) > 0.5 for layer in layers)


def test_a_layer_sees_what_the_converted_layers_put_out(
    dense: DenseModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    seen: dict[float, Tensor] = {}
    for scale in (1.0, 3.0):
        loom = Loom(dense, calibration, section("weave"), BUDGET, compute_dtype=torch.float32, scratch=tmp_path)
        loom.layer(0, Allocation(1), (), _never, known=partial(scaled, scale=scale))
        assert loom.streams is not None
        seen[scale] = loom.streams.enter(1, dense.read_ffn(1)).sample(100).x
    assert not torch.allclose(seen[1.0], seen[3.0], atol=1e-2)


def scaled(weights: GLUWeights, *, scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: scale * x


def _never(*_: object) -> NoReturn:
    raise AssertionError("a layer that is known must not be designed again")
