"""The demonstration: the shipped dense model, converted, reloaded by stock transformers, measured and reported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from expertweaver.assets import shipped_heldout, shipped_model
from expertweaver.conversion import Conversion, convert
from expertweaver.evaluation.results import Evaluation
from expertweaver.progress import SILENT, Progress
from expertweaver.recipe.loading import make_recipe

SPARSITIES = (0.25, 0.5)
NUM_SLICES = 64
"""Narrow, for so small a model: engines would like half as many, quality likes these."""

METHODS = ("weave", "expertweaver", "static", "random")
"""Our method, the paper's, and the two baselines that every table carries."""


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration made: the conversions, their quality and speed, and the report."""

    conversions: tuple[Conversion, ...]
    evaluation: Evaluation
    speed: dict[str, dict[str, Any]]
    report: Path


def demo(out: str | Path = "demo", *, progress: Progress = SILENT) -> Demonstration:
    """Convert the shipped model at 25 % and 50 % mlp_sparsity by each method, measure all of them, write a report.

    Args:
        out: Folder for the models and the report; models of an earlier demonstration are replaced.
        progress: Hears of stages and warnings.

    Raises:
        CheckpointError: A folder of another kind is in the way, or the disk is full.
    """
    folder = Path(out)
    conversions = tuple(
        convert(
            make_recipe(
                shipped_model(), settings={"method": method, "mlp_sparsity": sparsity, "num_slices": NUM_SLICES}
            ),
            folder / f"{method}-{100 * sparsity:g}",
            overwrite=True,
            progress=progress,
        )
        for sparsity in SPARSITIES
        for method in METHODS
    )
    evaluation = _evaluate(conversions, progress)
    speed = _speed([c for c in conversions if c.manifest["method"] == METHODS[0]], progress)
    report = _report(folder / "report.html", conversions, evaluation, speed)
    return Demonstration(conversions, evaluation, speed, report)


def _evaluate(conversions: tuple[Conversion, ...], progress: Progress) -> Evaluation:
    from expertweaver.evaluation.quality import evaluate

    return evaluate(
        [done.path for done in conversions],
        text=[str(shipped_heldout())],
        against=shipped_model(),
        progress=progress,
    )


def _speed(conversions: list[Conversion], progress: Progress) -> dict[str, dict[str, Any]]:
    """Time the dense model and our method in turns; the other methods have the same shapes but for the shared share."""
    import torch
    from transformers import AutoModelForCausalLM

    from expertweaver.bench.speed import measure_speed

    folders = {shipped_model().name: shipped_model()} | {done.path.name: done.path for done in conversions}
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for name, folder in folders.items()
    }
    with progress.stage("timing", 1) as step:
        speed = {name: asdict(measured) for name, measured in measure_speed(models).items()}
        step()
    return speed


def _report(
    file: Path, conversions: tuple[Conversion, ...], evaluation: Evaluation, speed: dict[str, dict[str, Any]]
) -> Path:
    from expertweaver.report.contents import Report
    from expertweaver.report.page import write_report

    notes = (
        "The model has 7M parameters: at this size every step is dominated by fixed costs, so its speed says little "
        "about larger models. The ideal beside each ratio is what the skipped arithmetic would allow.",
        "static and random are the baselines: static pruning of the same neurons for every token, and a random split.",
    )
    manifests = tuple(done.manifest for done in conversions)
    return write_report(file, Report("ExpertWeaver demonstration", manifests, evaluation, speed, notes))
