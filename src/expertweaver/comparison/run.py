"""The verb `compare`: one calibration pass, then cells, each designed, scored beside the dense model and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from expertweaver.checkpoint.identity import code_fingerprint, package_versions, source_identity
from expertweaver.comparison.cells import Bench, Job
from expertweaver.comparison.folder import ComparisonFolder
from expertweaver.comparison.request import Request, make_request
from expertweaver.comparison.results import Calibration, ComparedMethod, Comparison
from expertweaver.comparison.statistics import shared_gradients, shared_probes, shared_statistics
from expertweaver.comparison.texts import Texts, read_texts
from expertweaver.evaluation.loading import load_model
from expertweaver.progress import SILENT, Progress


def compare(
    source: str | Path,
    *,
    methods: str | Sequence[str],
    mlp_sparsities: Sequence[float],
    text: Sequence[str],
    out: str | Path,
    num_slices: int | Literal["auto"] = "auto",
    seeds: int = 3,
    calibration: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    drop_overlapping: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Comparison:
    """Compare methods on one dense model at equal budgets, calibration tokens and text.

    Nothing is exported: every design replaces the FFNs of the dense model in memory. `static` and `random` are in
    every table. A stopped comparison continues when it is repeated, and methods, budgets and seeds may be added.

    Args:
        source: The dense model: a folder or a hub id.
        methods: Entries such as `weave`, `static+repair`, `expertweaver:tau=0.5;profile=signed`, as a sequence or
            separated by commas; the first is the reference that all others are compared with.
        mlp_sparsities: Shares of FFN neurons not run per token.
        text: What to judge on: files (.txt, .jsonl, .parquet), folders of such files, or hub data set ids. It must
            share no 13 words in a row with the calibration.
        out: Folder of the cells, tables and figures.
        num_slices: Equal slices of an FFN; auto: near 64, of widths that engines' kernels are made for.
        seeds: Runs of each method that draws random numbers.
        calibration: What to fit on; empty for the text that ships.
        settings: Recipe keys of `calibration`, `evaluate` and `source`.
        dtype: What the dense model is loaded as: float32, bfloat16 or float16.
        device: Where layers are computed and models judged: cpu, cuda or cuda:NUMBER; methods design on the CPU.
        drop_overlapping: Leave out evaluation documents that share a span of words with the calibration text.
        overwrite: Remove what an earlier comparison left in `out`.
        progress: Hears of stages and notes.

    Raises:
        RecipeError: Unknown methods or options, impossible budgets, a foreign setting.
        CheckpointError: An unusable model, or a folder that holds another comparison.
        CalibrationError: Unusable text, or texts that share a span.
    """
    request = make_request(
        source, methods=methods, mlp_sparsities=mlp_sparsities, num_slices=num_slices, seeds=seeds,
        calibration=calibration, text=text, out=out, settings=settings or {}, dtype=dtype, device=device,
        drop_overlapping=drop_overlapping,
    )  # fmt: skip
    texts = read_texts(request)
    notes = [*request.notes(), *_dropped(texts)]
    for note in notes:
        progress.note(note)
    with ComparisonFolder(request.out, _identity(request, texts), overwrite=overwrite) as folder:
        jobs = list(_jobs(request, texts))
        missing = [job for job in jobs if folder.find(job.key, job.options) is None]
        again = [job for job in missing if folder.holds(job.key)]
        if again:
            progress.note(f"{len(again)} cells of other options, or with other inputs kept, are computed again")
        if missing or "dense" not in folder.find_shared():
            _compute(request, texts, missing, folder, progress)
        comparison = _comparison(request, texts, jobs, folder, notes)
        _write(folder.out, comparison)
    return comparison


def _dropped(texts: Texts) -> list[str]:
    if texts.num_dropped == 0:
        return []
    return [
        f"{texts.num_dropped} of {texts.num_dropped + len(texts.documents)} evaluation documents were dropped: they "
        "share a span of words with the calibration text"
    ]


def _identity(request: Request, texts: Texts) -> dict[str, Any]:
    """What must be the same for cells to stand in one table; methods, budgets and seeds may be added."""
    return {
        **source_identity(request.dense),
        "calibration": texts.calibration.fingerprint,
        "compute_dtype": request.recipe.calibration.compute_dtype,
        "text": texts.fingerprint,
        "context": texts.context,
        "dtype": request.dtype,
        "device": request.device.type,
        "num_slices": request.num_slices,
        "versions": package_versions(),
        "code": code_fingerprint(),
    }


def _jobs(request: Request, texts: Texts) -> Iterator[Job]:
    methods = [entry.method for entry in request.entries]
    kept, gradients = shared_probes(methods, texts.calibration), shared_gradients(methods)
    for mlp_sparsity in request.budgets:
        for entry in request.entries:
            for seed, method in entry.runs(request.num_seeds):
                probes = {"kept": kept, "used": min(kept, method.num_probes)}
                options = {"method": method.model_dump(mode="json"), "probes": probes}
                options |= gradients if method.needs_gradients else {}
                yield Job(entry.label, mlp_sparsity, seed, method, options)


def _compute(
    request: Request, texts: Texts, missing: Sequence[Job], folder: ComparisonFolder, progress: Progress
) -> None:
    """Calibrate, load the dense model once, and fill the missing cells."""
    is_whole_pass = not any(folder.scratch.glob("statistics*"))
    start = time.perf_counter()
    methods = [entry.method for entry in request.entries]
    statistics = shared_statistics(request, texts.calibration, methods, folder.scratch, progress)
    if is_whole_pass:
        folder.save_shared(seconds=round(time.perf_counter() - start, 3))
    model = load_model(texts.candidate, dtype=request.dtype, trust_remote_code=False, device=request.device)
    Bench(request, texts, statistics, model, folder, progress).fill(missing)


def _comparison(
    request: Request, texts: Texts, jobs: Sequence[Job], folder: ComparisonFolder, notes: Sequence[str]
) -> Comparison:
    shared = folder.find_shared()
    cells = [cell for job in jobs if (cell := folder.find(job.key, job.options)) is not None]
    assert len(cells) == len(jobs)
    return Comparison(
        source=request.dense.folder.name,
        methods=tuple(_compared(request)),
        mlp_sparsities=tuple(request.budgets),
        num_slices=request.num_slices,
        calibration=Calibration(
            paths=request.recipe.calibration.paths,
            domains=texts.calibration.domains,
            num_tokens=texts.calibration.num_tokens,
            fingerprint=texts.calibration.fingerprint,
            seconds=shared.get("seconds"),
        ),
        text=request.recipe.evaluate.text,
        domains=tuple(document.domain for document in texts.documents),
        dense=shared["dense"],
        cells=tuple(cells),
        num_dropped=texts.num_dropped,
        context=texts.context,
        max_tokens_per_document=request.recipe.evaluate.max_tokens_per_document,
        dtype=request.dtype,
        device=request.device.type,
        versions=package_versions(),
        notes=tuple(notes),
    )


def _compared(request: Request) -> Iterator[ComparedMethod]:
    for entry in request.entries:
        method = entry.method
        options = {name: value for name, value in method.model_dump(mode="json").items() if name != "name"}
        yield ComparedMethod(entry.label, method.name, options, entry.is_added, method.is_oracle, method.beyond_stock)


def _write(out: Path, comparison: Comparison) -> None:
    from expertweaver.report.comparison import write_comparison

    write_comparison(out, comparison)
