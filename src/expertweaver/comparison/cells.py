"""The cells of a comparison: each is designed, scored beside the dense model, and kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.choosing import format_problems
from expertweaver.comparison.candidate import ffn_weights, reached_mlp_sparsity, with_layers
from expertweaver.comparison.folder import ComparisonFolder
from expertweaver.comparison.request import Request
from expertweaver.comparison.results import Cell
from expertweaver.comparison.statistics import ThinnedStatistics
from expertweaver.comparison.texts import Texts
from expertweaver.errors import CheckpointError, ExpertWeaverError, Problem
from expertweaver.evaluation.scoring import Score, score_documents
from expertweaver.formats.base import Format, load_format
from expertweaver.machine import available_memory, forget_peak_memory, peak_memory
from expertweaver.modeling.values import GLUWeights
from expertweaver.partition.budget import SliceBudget
from expertweaver.planning import STORED_DTYPES
from expertweaver.progress import Progress
from expertweaver.recipe.schema import MethodSection
from expertweaver.weaving import WovenLayer, weave_model

MAX_TOGETHER = 4
"""Cells scored in one pass of the dense model; a stop loses at most so many designs."""

DENSE = "dense"


@dataclass(frozen=True)
class Job:
    """One cell to be computed.

    Attributes:
        label: Of the method.
        mlp_sparsity: The budget.
        seed: None where there is only one run.
        method: Its options, with the seed.
        options: All that decides the result beyond the folder's identity, as JSON values.
    """

    label: str
    mlp_sparsity: float
    seed: int | None
    method: MethodSection
    options: dict[str, Any]

    @property
    def key(self) -> tuple[str, float, int | None]:
        """What tells cells apart."""
        return self.label, self.mlp_sparsity, self.seed


@dataclass(frozen=True)
class _Designed:
    """A cell that lacks its scores."""

    job: Job
    layers: list[WovenLayer]
    reached: float
    seconds: float
    peak: int | None

    @property
    def num_bytes(self) -> int:
        kept = sum(t.nbytes for layer in self.layers for t in (layer.design.down, layer.design.bias) if t is not None)
        return 2 * kept  # as designed and as stored

    def cell(self, scores: Sequence[Score]) -> Cell:
        return Cell(*self.job.key, self.reached, self.seconds, self.peak, tuple(scores))


class Bench:
    """The loaded dense model with everything a cell needs."""

    def __init__(
        self,
        request: Request,
        texts: Texts,
        statistics: Sequence[LayerStatistics],
        model: PreTrainedModel,
        folder: ComparisonFolder,
        progress: Progress,
    ) -> None:
        self.request, self.texts, self.statistics = request, texts, statistics
        self.model, self.folder, self.progress = model, folder, progress
        self.weights: list[GLUWeights] = ffn_weights(model, request.dense)

    def fill(self, jobs: Sequence[Job]) -> None:
        """Design the cells, and score them in groups that fit into memory.

        Raises:
            ExpertWeaverError: A cell that diverges, by name; the cells before it are kept.
        """
        group: list[_Designed] = []
        room = min(available_memory(), available_memory(self.request.device)) // 4  # designs stay in host memory
        for number, job in enumerate(jobs, start=1):
            try:
                group.append(self._design(job, f"{number}/{len(jobs)} {job.label}"))
            except ExpertWeaverError as error:
                if group:
                    self._score(group)
                raise _blamed_on(job, error) from error
            size = sum(designed.num_bytes for designed in group)
            if len(group) == MAX_TOGETHER or size + group[-1].num_bytes > room:
                self._score(group)
                group = []
        if group or "dense" not in self.folder.find_shared():
            self._score(group)

    def _design(self, job: Job, title: str) -> _Designed:
        budget = self.request.budgets[job.mlp_sparsity]
        statistics = ThinnedStatistics(self.statistics, job.method.num_probes)
        is_measured = forget_peak_memory()
        start = time.perf_counter()
        layers = weave_model(
            self.request.dense,
            self.texts.calibration,
            statistics,
            job.method,
            budget,
            compute_dtype=getattr(torch, self.request.recipe.calibration.compute_dtype),
            scratch=self.folder.scratch_of(job.key),
            stored_as=self._stored_as(job.method, budget),
            device=self.request.device,
            progress=_Titled(self.progress, title),
        )
        seconds = round(time.perf_counter() - start, 3)
        peak = peak_memory() if is_measured else None
        reached = reached_mlp_sparsity(layers, self.weights, self.statistics)
        return _Designed(job, layers, reached, seconds, peak)

    def _stored_as(self, method: MethodSection, budget: SliceBudget) -> tuple[Format, torch.dtype] | None:
        """What `convert` would write, so that a cell has the number of the checkpoint; None where it would refuse."""
        dense, name = self.request.dense, self.request.recipe.output.format
        dtype = STORED_DTYPES[dense.dtype]
        problems = format_problems(name, dense, dtype, method, budget)
        return None if problems else (load_format(name), getattr(torch, dtype))

    def _score(self, group: Sequence[_Designed]) -> None:
        """Score cells beside the dense model; where one of several fails, one by one, so that the others are kept."""
        try:
            self._score_together(group)
        except CheckpointError as error:
            if len(group) == 1:
                raise _blamed_on(group[0].job, error) from error
            if not group:
                raise
            failures = [failure for designed in group if (failure := self._failure(designed)) is not None]
            if failures:
                raise CheckpointError(*(problem for failure in failures for problem in failure.problems)) from error

    def _failure(self, designed: _Designed) -> CheckpointError | None:
        try:
            self._score([designed])
        except CheckpointError as error:
            return error
        return None

    def _score_together(self, group: Sequence[_Designed]) -> None:
        models = {DENSE: self.model}
        for number, designed in enumerate(group):
            name = f"{designed.job.label} ({number})"
            models[name] = with_layers(self.model, self.weights, designed.layers)
        dense, *others = score_documents(models, self.texts.documents, first_is_dense=True, progress=self.progress)
        if "dense" not in self.folder.find_shared():
            self.folder.save_shared(dense=tuple(dense.documents))
        for designed, scores in zip(group, others, strict=True):
            self.folder.save(designed.cell(scores.documents), designed.job.options)
            shutil.rmtree(self.folder.scratch_of(designed.job.key), ignore_errors=True)


def _blamed_on(job: Job, error: ExpertWeaverError) -> ExpertWeaverError:
    """The error with the cell's name, unless it is the dense model's own."""
    fix = "Leave this entry out of the methods and repeat the command: what is finished is kept."

    def named(problem: Problem) -> Problem:
        if problem.where.startswith(f"{DENSE} on "):
            return problem
        return replace(problem, where=f"{job.label} at mlp_sparsity {job.mlp_sparsity:g}, {problem.where}", fix=fix)

    return type(error)(*map(named, error.problems))


class _Titled(Progress):
    """Passes stages on under a longer title."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        with self.progress.stage(f"{self.title}: {title}", total) as step:
            yield step

    def note(self, message: str) -> None:
        self.progress.note(message)
