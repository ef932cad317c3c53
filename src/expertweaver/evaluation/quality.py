"""Measure language models on the same text: loss, distance to the dense model, routing, benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from expertweaver.calibration.documents import read_documents
from expertweaver.calibration.tokenizer import message_renderer
from expertweaver.errors import Problem, RecipeError
from expertweaver.evaluation.harness import Harness, find_tasks
from expertweaver.evaluation.loading import DTYPES, Candidate, load_model, open_candidates
from expertweaver.evaluation.params import ParamCounts, count_params
from expertweaver.evaluation.results import ALL, Evaluation, ModelQuality
from expertweaver.evaluation.scoring import ModelScores, score_documents
from expertweaver.evaluation.summary import summarize
from expertweaver.evaluation.tokens import TokenizedDocument, require_free_domains, tokenize_documents, window_length
from expertweaver.machine import available_memory, compute_device
from expertweaver.progress import SILENT, Progress
from expertweaver.registry import require_known


@dataclass(frozen=True)
class _Job:
    """What is the same for every model of one evaluation."""

    documents: list[TokenizedDocument]
    harness: Harness | None
    dtype: str
    trust_remote_code: bool
    device: torch.device
    progress: Progress

    def load(self, candidate: Candidate) -> PreTrainedModel:
        return load_model(candidate, dtype=self.dtype, trust_remote_code=self.trust_remote_code, device=self.device)


@dataclass(frozen=True)
class _Measured:
    candidate: Candidate
    counts: ParamCounts
    scores: ModelScores
    lm_eval: dict[str, Any] | None


def evaluate(
    models: Sequence[str | Path],
    *,
    text: Sequence[str],
    against: str | Path | None = None,
    max_tokens_per_document: int | None = None,
    context: int | None = None,
    dtype: str = "float32",
    tasks: Sequence[str] = (),
    trust_remote_code: bool = False,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> Evaluation:
    """Measure several models on the same documents and, with `against`, how far each is from that dense model.

    Every model is loaded by stock transformers. The text is tokenized once, with the special tokens that the first
    model's tokenizer adds by itself. A document longer than `context` is cut into consecutive windows; the first
    token of a window is not predicted and no window sees the one before. Losses are means over predicted tokens, so
    long documents weigh more. Models are measured side by side where all fit into half of the free memory, else the
    dense model and one other at a time; one window of logits of each model is held.

    Args:
        models: Folders or hub ids (`owner/name@revision`); a model given twice is measured once.
        text: Files (.txt, .jsonl, .parquet), folders of such files, or hub data set ids; chat messages are rendered
            with the first model's chat template.
        against: The dense reference; it becomes the first entry of the result.
        max_tokens_per_document: Cut longer documents to this many tokens; None for no cut.
        context: Window length in tokens; None for the smallest of 2048 and the models' max_position_embeddings.
        dtype: What the weights are loaded as: float32, bfloat16 or float16. Log-softmax is always taken in float64.
        tasks: Names of lm-eval tasks, paths of task files or of folders with such files.
        trust_remote_code: Allow the models' own Python code.
        device: Where the models run: cpu, cuda or cuda:NUMBER.
        progress: Hears of the documents done.

    Raises:
        RecipeError: No model, an option out of range, a GPU that torch does not see, an unknown task, or tasks without
            the extra `lm-eval`.
        CheckpointError: A model that is missing, incomplete, without tokenizer, or with logits that are not finite.
        CalibrationError: Unusable text, or models that do not share the vocabulary.
        ArchitectureError: A sparse model of a type whose routing is not known.
    """
    _check_options(models, against, max_tokens_per_document, context, dtype)
    where = compute_device(device)
    harness = find_tasks(tasks) if tasks else None
    wanted = list(models) if against is None else [against, *models]
    candidates = open_candidates(wanted, trust_remote_code=trust_remote_code)
    window = window_length(candidates, context)
    documents = _read_text(text, candidates, window, max_tokens_per_document)
    job = _Job(documents, harness, dtype, trust_remote_code, where, progress)
    measured = _measure_apart(candidates, job) if against is None else _measure_against(candidates, job)
    return Evaluation(
        text=tuple(text),
        models=tuple(_model_quality(m, job.documents) for m in measured),
        has_dense=against is not None,
        lm_eval={m.candidate.name: m.lm_eval for m in measured} if harness else None,
        context=window,
        max_tokens_per_document=max_tokens_per_document,
        dtype=dtype,
    )


def check_text(
    model: str | Path,
    text: Sequence[str],
    *,
    max_tokens_per_document: int | None,
    context: int | None,
    trust_remote_code: bool = False,
) -> None:
    """Read and tokenize text as `evaluate` would, without loading a weight.

    Raises:
        RecipeError, CheckpointError, CalibrationError: As `evaluate` would.
    """
    candidates = open_candidates([model], trust_remote_code=trust_remote_code)
    _read_text(text, candidates, window_length(candidates, context), max_tokens_per_document)


def _check_options(
    models: Sequence[str | Path], against: str | Path | None, max_tokens: int | None, context: int | None, dtype: str
) -> None:
    if not models and against is None:
        raise RecipeError(Problem("models", "at least one model", "none", "Give a folder or a hub id."))
    for name, value in (("max_tokens_per_document", max_tokens), ("context", context)):
        if value is not None and value < 2:
            raise RecipeError(Problem(name, "2 or more", str(value), "One token predicts nothing."))
    require_known("dtype", dtype, DTYPES)


def _read_text(
    text: Sequence[str], candidates: Sequence[Candidate], context: int, max_tokens: int | None
) -> list[TokenizedDocument]:
    documents = read_documents(text, render_messages=message_renderer(candidates[0].tokenizer))
    require_free_domains(documents, (ALL,))
    return tokenize_documents(documents, candidates, context=context, max_tokens=max_tokens)


def _measure_apart(candidates: Sequence[Candidate], job: _Job) -> list[_Measured]:
    return [_measure_alone(candidate, job) for candidate in candidates]


def _measure_alone(candidate: Candidate, job: _Job) -> _Measured:
    model = job.load(candidate)
    [scores] = score_documents({candidate.name: model}, job.documents, first_is_dense=False, progress=job.progress)
    return _finish(candidate, model, scores, job)


def _measure_against(candidates: Sequence[Candidate], job: _Job) -> list[_Measured]:
    """Measure the first and the others beside it: all in one pass where they fit into memory, else one by one.

    One by one the dense model runs again for each, rather than its logits being kept.
    """
    dense, *others = candidates
    dense_model = job.load(dense)
    together = 4 * sum(count_params(c.config).num_params for c in candidates) < available_memory(job.device) // 2
    groups = [others] if together or not others else [[candidate] for candidate in others]
    dense_scores, measured = None, []
    for group in groups:
        models = {dense.name: dense_model} | {candidate.name: job.load(candidate) for candidate in group}
        dense_scores, *scores = score_documents(models, job.documents, first_is_dense=True, progress=job.progress)
        measured += [_finish(c, models[c.name], score, job) for c, score in zip(group, scores, strict=True)]
        del models
    assert dense_scores is not None
    return [_finish(dense, dense_model, dense_scores, job), *measured]


def _finish(candidate: Candidate, model: PreTrainedModel, scores: ModelScores, job: _Job) -> _Measured:
    lm_eval = job.harness.run(model, candidate.tokenizer) if job.harness else None
    return _Measured(candidate, count_params(model), scores, lm_eval)


def _model_quality(measured: _Measured, documents: Sequence[TokenizedDocument]) -> ModelQuality:
    return ModelQuality(
        name=measured.candidate.name,
        path=measured.candidate.path,
        num_params=measured.counts.num_params,
        num_active_params=measured.counts.num_active_params,
        domains=summarize([document.domain for document in documents], measured.scores.documents),
        routing=measured.scores.routing,
    )
