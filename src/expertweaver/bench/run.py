"""Dense and sparse in one run: both loaded, every case in turns, so that a busy machine slows all alike."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from expertweaver.bench.ideal import Shape, decode_bytes, distinct_experts, prefill_flops
from expertweaver.bench.process import Worker, start
from expertweaver.bench.request import BenchOptions, Request, Side, open_request, split_prompts
from expertweaver.bench.results import Benchmark, Measurement, Spread
from expertweaver.machine import cpu_features, cpu_name, load_average
from expertweaver.progress import SILENT, Progress


@dataclass(frozen=True)
class Case:
    """One thing to time: steps of a batch after a prompt, or a prompt alone."""

    kind: Literal["decode", "prefill"]
    batch: int
    length: int

    @property
    def title(self) -> str:
        """For the progress bar."""
        return f"{self.kind} {self.batch if self.kind == 'decode' else self.length}"


@dataclass(frozen=True)
class Contestant:
    """A model in its engine, with a way to run its experts."""

    worker: Worker
    side: Side
    experts: str | None


def benchmark(
    model: str | Path,
    *,
    against: str | Path | None = None,
    engine: str = "transformers",
    engine_python: str | None = None,
    options: BenchOptions = BenchOptions(),  # noqa: B008 - frozen
    progress: Progress = SILENT,
) -> Benchmark:
    """Time a converted model beside its dense source in a serving engine.

    Every round runs the dense model and then the sparse one, with every way to run its experts; a first round is not
    counted.

    Args:
        model: A converted folder; a GGUF file for llamacpp.
        against: The dense model of the same kind; None for the source that the manifest names.
        engine: transformers, vllm or llamacpp.
        engine_python: The Python of the engine's own environment.
        options: What is timed.
        progress: Hears of stages.

    Raises:
        RecipeError: BenchOptions out of range, or the engine is not installed.
        CheckpointError: A model is missing, unreadable or fails in the engine.
        ArchitectureError: A sparse model of a type that cannot be counted.
    """
    dense = None if against is None else str(against)
    request = open_request(str(model), against=dense, engine=engine, engine_python=engine_python, options=options)
    before = load_average()
    with start(request, request.dense) as (dense, versions), start(request, request.sparse) as (sparse, _):
        variants: tuple[str | None, ...] = request.implementations or (None,)
        contestants = [Contestant(dense, request.dense, None)]
        contestants += [Contestant(sparse, request.sparse, name) for name in variants]
        measurements = [
            measured for case in _cases(options) for measured in _measure(case, contestants, request, progress)
        ]
    setup = _setup(request, versions) | {"load_average": [before, load_average()]}
    return Benchmark(setup, tuple(measurements))


def _cases(options: BenchOptions) -> list[Case]:
    decode = [Case("decode", batch, options.prompt_length) for batch in options.batches]
    return decode + [Case("prefill", 1, length) for length in options.prefills]


def _measure(
    case: Case, contestants: Sequence[Contestant], request: Request, progress: Progress
) -> Iterator[Measurement]:
    steps = request.options.new_tokens if case.kind == "decode" else 0
    prompts, following = split_prompts(request.tokens, batch=case.batch, prompt=case.length, following=steps)
    arguments = {"prompts": prompts} | ({"steps": following} if steps else {})
    rounds = []
    with progress.stage(case.title, request.options.repeats + 1) as step:
        for _ in range(request.options.repeats + 1):
            rounds.append([_seconds(case, each, arguments) / max(steps, 1) for each in contestants])
            step()
        counted = contestants[-1].worker.ask("count", **arguments)["distinct"] if steps else None
    del rounds[0]  # warm-up: caches, allocator, lazy initialisation
    for place, contestant in enumerate(contestants):
        times, firsts = [times[place] for times in rounds], [times[0] for times in rounds]
        yield _summarise(case, contestant, times, firsts, request, counted)


def _seconds(case: Case, contestant: Contestant, arguments: dict[str, Any]) -> float:
    return contestant.worker.ask(case.kind, variant=contestant.experts, **arguments)["seconds"]


def _summarise(
    case: Case, contestant: Contestant, times: list[float], firsts: list[float], request: Request, counted: float | None
) -> Measurement:
    shape = contestant.side.facts.shape
    ratio = Spread.of([time / first for time, first in zip(times, firsts, strict=True)])
    ideal = ideal_ratio(case, shape, request.dense.facts.shape, request.options, counted)
    seconds = Spread.of(times)
    watched = case.kind == "decode" and shape.is_sparse
    expected = distinct_experts(shape.num_experts, shape.num_experts_per_tok, case.batch) if watched else None
    source: Literal["measured", "uniform"] = "uniform" if counted is None else "measured"
    return Measurement(
        case=case.kind,
        batch=case.batch,
        length=case.length,
        model=contestant.side.name,
        experts=contestant.experts,
        seconds=seconds,
        tokens_per_second=(case.batch if case.kind == "decode" else case.length) / seconds.median,
        ratio=ratio,
        ideal_ratio=ideal,
        share_of_ideal=ideal / ratio.median,
        distinct_experts=(expected if counted is None else counted) if watched else None,
        distinct_from=source if watched else None,
    )


def ideal_ratio(case: Case, shape: Shape, dense: Shape, options: BenchOptions, counted: float | None) -> float:
    """A model's bytes or operations over the dense model's; `counted` distinct experts, if they were counted."""
    if case.kind == "prefill":
        return prefill_flops(shape, length=case.length) / prefill_flops(dense, length=case.length)
    context = case.length + (options.new_tokens + 1) / 2
    needed = decode_bytes(shape, batch=case.batch, context=context, distinct=counted)
    return needed / decode_bytes(dense, batch=case.batch, context=context)


def _setup(request: Request, versions: dict[str, Any]) -> dict[str, Any]:
    options = request.options
    return {
        "engine": request.engine.name,
        **versions,
        "threads": options.threads,
        "dtype": request.dtype,
        "clock": "time computing" if options.cpu_time else "time passed",
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
        **({"device": options.device} if request.engine.takes_device else {}),
        "num_cpus": os.cpu_count(),
        "prompt_length": options.prompt_length,
        "new_tokens": options.new_tokens,
        "repeats": options.repeats,
        "tokens": "random" if options.random_tokens or request.engine.takes_gguf else "held-out text that ships",
        "models": {side.name: side.facts.sizes | _work(side.facts.shape) for side in (request.dense, request.sparse)},
    }


def _work(shape: Shape) -> dict[str, Any]:
    return {name: value for name, value in asdict(shape).items() if name not in ("num_layers", "query_size")}
