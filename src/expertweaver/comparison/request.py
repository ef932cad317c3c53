"""The request of a comparison, checked completely before a weight or a text is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from expertweaver.calibration.documents import check_paths
from expertweaver.calibration.request import CalibrationRequest
from expertweaver.calibration.tokenizer import require_tokenizer
from expertweaver.comparison.entries import Entry, parse_entries
from expertweaver.comparison.folder import check_folder
from expertweaver.dense.model import DenseModel, open_dense
from expertweaver.errors import Attempts, CalibrationError, ExpertWeaverError, Problem, RecipeError
from expertweaver.evaluation.loading import DTYPES
from expertweaver.machine import compute_device
from expertweaver.partition.budget import SliceBudget, slice_budget, slice_count
from expertweaver.planning import few_tokens
from expertweaver.recipe.loading import SHORTHANDS, make_recipe
from expertweaver.recipe.schema import Recipe
from expertweaver.registry import require_known

SETTABLE = ("calibration", "source", "evaluate")
"""Sections of the recipe that `--set` may change: the rest is what is compared."""


@dataclass(frozen=True)
class Request:
    """A comparison that can be run.

    Attributes:
        recipe: Source, calibration and evaluation text.
        dense: The opened source.
        entries: The methods; the first is the reference.
        budgets: Slices of each mlp_sparsity, ascending.
        num_seeds: Runs of a method that draws random numbers.
        dtype: What the dense model is loaded as for scoring.
        device: Where layers are computed and models judged.
        drop_overlapping: Leave out evaluation documents that share a span with the calibration text.
        out: The folder.
    """

    recipe: Recipe
    dense: DenseModel
    entries: tuple[Entry, ...]
    budgets: Mapping[float, SliceBudget]
    num_seeds: int
    dtype: str
    device: torch.device
    drop_overlapping: bool
    out: Path

    @property
    def num_slices(self) -> int:
        """Slices of an FFN, the same for every budget."""
        return next(iter(self.budgets.values())).num_slices

    @property
    def calibration(self) -> CalibrationRequest:
        """The calibration text that was asked for."""
        return CalibrationRequest(self.recipe.calibration, self.dense)

    def notes(self) -> list[str]:
        """What the user should know before the first number."""
        notes = [
            f"{entry.label} was added: every table carries it as a control" for entry in self.entries if entry.is_added
        ]
        notes += self.calibration.notes()
        repaired = [entry.label for entry in self.entries if entry.method.repair]
        few = few_tokens(self.calibration.max_tokens, self.dense.dims.intermediate_size) if repaired else []
        notes += [f"{', '.join(repaired)}: {text}" for text in few]
        return notes


def make_request(
    source: str | Path,
    *,
    methods: str | Sequence[str],
    mlp_sparsities: Sequence[float],
    num_slices: int | Literal["auto"],
    seeds: int,
    calibration: Sequence[str],
    text: Sequence[str],
    out: str | Path,
    settings: Mapping[str, Any],
    dtype: str,
    device: str,
    drop_overlapping: bool,
) -> Request:
    """Check everything that configuration, shapes and paths can tell, and raise all problems together.

    Raises:
        ExpertWeaverError: Of the kind of the first problem found.
    """
    attempt = Attempts()
    entries = attempt(lambda: parse_entries(methods))
    attempt(lambda: _check_counts(mlp_sparsities, seeds))
    attempt(lambda: require_known("dtype", dtype, DTYPES))
    where = attempt(lambda: compute_device(device))
    recipe = attempt(lambda: _recipe(source, calibration, text, settings))
    attempt(lambda: _check_text(calibration, text))
    dense = attempt(lambda: open_dense(str(source)))
    budgets: dict[float, SliceBudget] = {}
    if dense is not None:
        attempt(lambda: require_tokenizer(dense.folder.path))
        attempt(lambda: check_folder(Path(out), source=dense.folder.path))
        width = dense.dims.intermediate_size
        count = slice_count(width, mlp_sparsities=mlp_sparsities, num_slices=num_slices)
        found = attempt(lambda: _budgets(width, mlp_sparsities, count))
        budgets = found or {}
    attempt.finish()
    assert entries is not None
    assert recipe is not None
    assert dense is not None
    assert where is not None
    return Request(recipe, dense, entries, budgets, seeds, dtype, where, drop_overlapping, Path(out))


def _check_counts(mlp_sparsities: Sequence[float], seeds: int) -> None:
    problems = []
    if not mlp_sparsities:
        problems.append(Problem("--mlp-sparsity", "at least one value", "none", "Write for instance 0.25,0.5."))
    if seeds < 1:
        problems.append(Problem("--seeds", "1 or more", str(seeds), "Random methods need a first seed."))
    if problems:
        raise RecipeError(*problems)


def _recipe(source: str | Path, calibration: Sequence[str], text: Sequence[str], settings: Mapping[str, Any]) -> Recipe:
    dotted = {SHORTHANDS.get(key, key): value for key, value in settings.items()}
    foreign = [key for key in dotted if key.split(".")[0] not in SETTABLE]
    if foreign:
        fix = "Options of a method stand in --methods (NAME:KEY=VALUE); budgets have options of their own."
        expected = f"keys of {', '.join(SETTABLE)}"
        raise RecipeError(*(Problem(f"--set {key}", expected, f"'{key}'", fix) for key in foreign))
    given = {"calibration.paths": list(calibration)} if calibration else {}
    return make_recipe(source, settings={**given, "evaluate.text": list(text), **dotted})


def _check_text(calibration: Sequence[str], text: Sequence[str]) -> None:
    if not text:
        fix = "Give text that no method was fitted on."
        raise CalibrationError(Problem("--text", "at least one file, folder or data set", "none", fix))
    check_paths([*calibration, *text])


def _budgets(intermediate_size: int, mlp_sparsities: Sequence[float], num_slices: int) -> dict[float, SliceBudget]:
    budgets: dict[float, SliceBudget] = {}
    problems: list[Problem] = []
    for value in sorted(set(mlp_sparsities)):
        try:
            budgets[value] = slice_budget(intermediate_size, mlp_sparsity=value, num_slices=num_slices)
        except ExpertWeaverError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise RecipeError(*problems)
    return budgets
