"""A stand-in: designs every layer of a model from statistics alone; sequential methods come with its replacement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from expertweaver.calibration.samples import CalibrationSet
from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.dense.model import DenseModel
from expertweaver.methods.base import load_method
from expertweaver.modeling.values import LayerDesign
from expertweaver.partition.budget import SliceBudget
from expertweaver.progress import Progress
from expertweaver.recipe.schema import MethodSection

_REPAIR_THEMSELVES = ("weave", "static")


def design_model(
    dense: DenseModel,
    calibration: CalibrationSet,
    statistics: Sequence[LayerStatistics],
    method: MethodSection,
    budget: SliceBudget,
    *,
    compute_dtype: torch.dtype,
    scratch: Path,
    progress: Progress,
) -> list[LayerDesign]:
    """Design every layer by one method."""
    if method.is_sequential and method.name not in _REPAIR_THEMSELVES:
        raise NotImplementedError(f"{method.name} converts layer after layer")
    module = load_method(method.name)
    allocations = module.allocate(method, statistics, budget)
    designs = []
    with progress.stage("weaving", len(allocations)) as step:
        for layer, allocation in enumerate(allocations):
            weights = dense.read_ffn(layer)
            designs.append(module.design(method, layer, statistics[layer], weights, allocation, budget))
            step()
    return designs
