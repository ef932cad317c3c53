"""One calibration pass for all methods; each still sees no more tokens than it asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from expertweaver.calibration.capture import profile_layers
from expertweaver.calibration.samples import CalibrationSet
from expertweaver.calibration.statistics import LayerStatistics, StatisticsFolder
from expertweaver.comparison.request import Request
from expertweaver.progress import Progress
from expertweaver.recipe.schema import MethodSection


class ThinnedStatistics(Sequence[LayerStatistics]):
    """Statistics with at most `num_probes` of the kept inputs, evenly spread, as a pass for one method would keep."""

    def __init__(self, statistics: Sequence[LayerStatistics], num_probes: int) -> None:
        self.statistics = statistics
        self.num_probes = num_probes

    def __len__(self) -> int:
        return len(self.statistics)

    def __getitem__(self, layer: int) -> LayerStatistics:  # type: ignore[override]
        full = self.statistics[layer]
        kept = len(full.probe_inputs)
        count = min(self.num_probes, kept)
        if count == kept:
            return full
        chosen = torch.arange(count) * kept // count
        return replace(full, probe_inputs=full.probe_inputs[chosen], probe_domains=full.probe_domains[chosen])


def shared_probes(methods: Sequence[MethodSection], calibration: CalibrationSet) -> int:
    """Inputs to keep for the method that fits on most of them; those that read traffic get theirs elsewhere."""
    wanted = [method.num_probes for method in methods if not method.reads_traffic]
    return min(max(wanted, default=MethodSection(name="none").num_probes), calibration.num_tokens)


def shared_gradients(methods: Sequence[MethodSection]) -> dict[str, int]:
    """Tokens to take gradients on, for the method that wants most of them; empty where none wants any."""
    wanted: list[int] = [getattr(method, "gradient_tokens") for method in methods if method.needs_gradients]  # noqa: B009
    return {"gradient_tokens": max(wanted)} if wanted else {}


def shared_statistics(
    request: Request, calibration: CalibrationSet, methods: Sequence[MethodSection], scratch: Path, progress: Progress
) -> StatisticsFolder:
    """Run the dense model once over the calibration tokens; layers that an earlier run measured are kept.

    Raises:
        CalibrationError: Activations that are not finite.
    """
    num_probes = shared_probes(methods, calibration)
    gradients = shared_gradients(methods)
    name = "-".join(["statistics", str(num_probes), *map(str, gradients.values())])
    num_layers = request.dense.dims.num_hidden_layers
    statistics = StatisticsFolder(scratch / name, num_layers)
    with progress.stage("calibrating", num_layers) as step:
        profile_layers(
            request.dense,
            calibration,
            statistics,
            compute_dtype=getattr(torch, request.recipe.calibration.compute_dtype),
            num_probes=num_probes,
            scratch=scratch,
            device=request.device,
            on_layer=lambda layer: step(),
            gradient_tokens=gradients.get("gradient_tokens"),
        )
    return statistics
