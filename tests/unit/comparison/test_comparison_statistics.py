from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.comparisons import Ground

from expertweaver.calibration.capture import profile_layers
from expertweaver.calibration.statistics import StatisticsFolder
from expertweaver.comparison.request import make_request
from expertweaver.comparison.statistics import ThinnedStatistics, shared_gradients, shared_probes, shared_statistics
from expertweaver.comparison.texts import read_texts
from expertweaver.progress import SILENT
from expertweaver.recipe.schema import MethodSection


class Fitting(MethodSection):
    """A method that fits on so many tokens."""

    name: str = "fitting"
    tokens: int
    traffic: bool = False
    gradients: int = 0

    @property
    def num_probes(self) -> int:
        return self.tokens

    @property
    def reads_traffic(self) -> bool:
        return self.traffic

    @property
    def needs_gradients(self) -> bool:
        return self.gradients > 0

    @property
    def gradient_tokens(self) -> int:
        return self.gradients


def test_each_method_sees_what_a_pass_of_its_own_would_keep(ground: Ground, tmp_path: Path) -> None:
    arguments = ground.request()
    arguments["mlp_sparsities"] = [0.5]
    request = make_request(ground.source, **arguments, dtype="float32", device="cpu", drop_overlapping=False)
    calibration = read_texts(request).calibration
    methods = [Fitting(tokens=40), Fitting(tokens=10_000)]
    assert shared_probes(methods, calibration) == calibration.num_tokens
    shared = shared_statistics(request, calibration, methods, tmp_path / "shared", SILENT)
    alone = StatisticsFolder(tmp_path / "alone", len(shared))
    profile_layers(request.dense, calibration, alone, compute_dtype=torch.float32, num_probes=40, scratch=tmp_path)
    thinned = ThinnedStatistics(shared, 40)
    assert len(thinned) == len(shared) == 2
    for layer in range(2):
        assert len(thinned[layer].probe_inputs) == 40 < len(shared[layer].probe_inputs)
        torch.testing.assert_close(thinned[layer].probe_inputs, alone[layer].probe_inputs, rtol=0, atol=0)
        assert torch.equal(thinned[layer].probe_domains, alone[layer].probe_domains)
    assert torch.equal(ThinnedStatistics(shared, 10_000)[0].probe_inputs, shared[0].probe_inputs)


def test_methods_that_read_traffic_keep_nothing(ground: Ground) -> None:
    request = make_request(ground.source, **ground.request(), dtype="float32", device="cpu", drop_overlapping=False)
    calibration = read_texts(request).calibration
    assert shared_probes([Fitting(tokens=5), Fitting(tokens=99, traffic=True)], calibration) == 5


@pytest.mark.parametrize(("wanted", "expected"), [((0, 0), {}), ((0, 64), {"gradient_tokens": 64})])
def test_gradients_are_taken_only_if_somebody_wants_them(wanted: tuple[int, ...], expected: dict[str, int]) -> None:
    assert shared_gradients([Fitting(tokens=1, gradients=count) for count in wanted]) == expected
