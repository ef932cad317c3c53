"""What a run measures: options, both models and their prompts, checked before an engine is started."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expertweaver.assets import shipped_heldout
from expertweaver.bench.engines import ENGINES, Engine
from expertweaver.bench.shapes import ModelFacts, folder_facts, gguf_facts
from expertweaver.checkpoint.manifest import RECORD_FOLDER
from expertweaver.dense.reader import TensorReader
from expertweaver.dense.source import find_model
from expertweaver.errors import CheckpointError, Problem, RecipeError
from expertweaver.machine import compute_device
from expertweaver.serving import INDEX_LOOP

WIDTHS = {"float32": 4, "bfloat16": 2}
SEED = 0


@dataclass(frozen=True)
class BenchOptions:
    """What is timed.

    Attributes:
        batches: Sequences that decode together, one case each.
        prefills: Prompt lengths, one case each.
        prompt_length: Tokens in the cache before decoding starts.
        new_tokens: Decoding steps.
        repeats: Counted rounds; one more comes first and is not counted.
        threads: Of the engine.
        dtype: Type the weights are loaded as; None for the engine's first, or what the file holds.
        implementations: Ways to run the experts; None for all that the engine has for the device.
        random_tokens: Feed uniformly random tokens instead of text.
        cpu_time: Count the time that the engine's process computes instead of the time that passes: on a machine that
            is shared, and with one thread only.
        device: Where the engine computes: cpu, cuda or cuda:NUMBER, if it can be told.
    """

    batches: tuple[int, ...] = (1, 8)
    prefills: tuple[int, ...] = (512, 2048)
    prompt_length: int = 128
    new_tokens: int = 32
    repeats: int = 5
    threads: int = 1
    dtype: str | None = None
    implementations: tuple[str, ...] | None = None
    random_tokens: bool = False
    cpu_time: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Side:
    """One of the two models: what it is called, where it lies, what it is like."""

    name: str
    path: Path
    facts: ModelFacts


@dataclass(frozen=True)
class Request:
    """A run whose inputs were all checked."""

    engine: Engine
    python: str
    dtype: str
    implementations: tuple[str, ...]
    options: BenchOptions
    dense: Side
    sparse: Side
    tokens: tuple[int, ...]

    @property
    def max_length(self) -> int:
        """Positions that the longest case needs."""
        return _max_length(self.engine, self.options)


def _max_length(engine: Engine, options: BenchOptions) -> int:
    longest = max(options.prefills) + engine.next_positions
    return max(longest, options.prompt_length + options.new_tokens + 1)


def open_request(
    model: str, *, against: str | None, engine: str, engine_python: str | None, options: BenchOptions
) -> Request:
    """Check everything that can be known before an engine is started.

    Raises:
        RecipeError: An option is out of range or does not fit the engine, or a GPU that torch does not see.
        CheckpointError: A model is missing or unreadable.
        ArchitectureError: A sparse model of a type that cannot be counted.
    """
    chosen = _engine(engine)
    _check_options(chosen, engine_python, options)
    dtype = options.dtype or (chosen.dtypes or ("as stored",))[0]
    sparse = _side(model, chosen, dtype)
    dense = _side(against or _source_of(model, sparse.path, chosen), chosen, dtype)
    _check_pair(dense, sparse, _max_length(chosen, options))
    return Request(
        engine=chosen,
        python=engine_python or sys.executable,
        dtype=dtype,
        implementations=_implementations(chosen, options),
        options=options,
        dense=dense,
        sparse=sparse,
        tokens=_tokens(sparse, chosen, options),
    )


def _engine(name: str) -> Engine:
    if name not in ENGINES:
        raise RecipeError(Problem("--engine", f"one of {', '.join(ENGINES)}", f"'{name}'", "Choose one of them."))
    return ENGINES[name]


def _check_options(engine: Engine, engine_python: str | None, options: BenchOptions) -> None:
    numbers = {
        "--batch": options.batches,
        "--prefill": options.prefills,
        **{f"--{name.replace('_', '-')}": (getattr(options, name),) for name in _NUMBERS},
    }
    problems = [
        Problem(name, "1 or more", str(value), "Raise it.")
        for name, values in numbers.items()
        for value in values
        if value < 1
    ]
    problems += [
        Problem(name, "at least one number", "none", "Write for instance 1,8.")
        for name, values in numbers.items()
        if not values
    ]
    if options.dtype is not None and options.dtype not in engine.dtypes:
        expected = f"one of {', '.join(engine.dtypes)}" if engine.dtypes else "none: a GGUF file has its own types"
        problems.append(Problem("--dtype", expected, options.dtype, f"Change it for --engine {engine.name}."))
    for name in options.implementations or ():
        if name not in engine.implementations:
            expected = f"one of {', '.join(engine.implementations)}" if engine.implementations else "none"
            problems.append(Problem("--experts", expected, f"'{name}'", f"Change it for --engine {engine.name}."))
    on_cpu = options.device == "cpu"
    if not on_cpu and not engine.takes_device:
        fix = "Leave --device out: this engine computes where its own build and settings say."
        problems.append(Problem("--device", f"none for --engine {engine.name}", options.device, fix))
    if not on_cpu and INDEX_LOOP in (options.implementations or ()):
        fix = f"Leave {INDEX_LOOP} out of --experts on a GPU."
        problems.append(Problem("--experts", "ways to run experts that are made for a GPU", INDEX_LOOP, fix))
    if not on_cpu and options.cpu_time:
        fix = "Leave --cpu-time out: a GPU's work is not the process' own time."
        problems.append(Problem("--device", "cpu with --cpu-time", options.device, fix))
    if options.cpu_time and options.threads != 1:
        fix = "Leave --cpu-time out: the sum over threads is not the time that a user waits."
        problems.append(Problem("--threads", "1 with --cpu-time", str(options.threads), fix))
    if engine_python is not None:
        problems += _python_problems(engine, engine_python)
    if problems:
        raise RecipeError(*problems)
    if engine.takes_device:
        compute_device(options.device)


_NUMBERS = ("prompt_length", "new_tokens", "repeats", "threads")


def _implementations(engine: Engine, options: BenchOptions) -> tuple[str, ...]:
    """Those asked for, or all that the engine has for the device."""
    if options.implementations is not None:
        return options.implementations
    return tuple(name for name in engine.implementations if options.device == "cpu" or name != INDEX_LOOP)


def _python_problems(engine: Engine, engine_python: str) -> list[Problem]:
    if not engine.has_own_python:
        fix = "Leave it out, or install expertweaver in that environment and run it there."
        return [Problem("--engine-python", f"none for --engine {engine.name}", engine_python, fix)]
    if shutil.which(engine_python) is None:
        fix = "Give the bin/python of the environment that holds the engine."
        return [Problem("--engine-python", "a Python that can be run", engine_python, fix)]
    return []


def _side(model: str, engine: Engine, dtype: str) -> Side:
    path = Path(model).expanduser()
    if engine.takes_gguf:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing at this path"
            raise CheckpointError(Problem(model, "a GGUF file", found, "Make one with `expertweaver export`."))
        return Side(path.name, path, gguf_facts(path))
    folder = find_model(model).path
    return Side(folder.resolve().name, folder, folder_facts(folder, width=WIDTHS[dtype]))


def _source_of(model: str, folder: Path, engine: Engine) -> str:
    """The dense model that the manifest of a converted folder names, if it is still the one that was read."""
    expected, fix = "a dense model to compare with", "Name it with --against."
    file = folder / RECORD_FOLDER / "manifest.json"
    if engine.takes_gguf or not file.is_file():
        raise RecipeError(Problem("--against", expected, "none, and no manifest that names the source", fix))
    manifest: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    source = str(manifest["source"]["model"])
    found = find_model(source).path if Path(source).expanduser().is_dir() else None
    if found is None:
        raise RecipeError(Problem("--against", expected, f"{source} in the manifest of {model}, no folder here", fix))
    if TensorReader.open(found).fingerprint != manifest["source"]["headers_sha256"]:
        raise RecipeError(Problem("--against", expected, f"{source}, which changed since the conversion", fix))
    return source


def _check_pair(dense: Side, sparse: Side, length: int) -> None:
    problems = []
    if dense.facts.shape.is_sparse:
        problems.append(Problem("--against", "a dense model", f"{dense.name}, a sparse one", "Name its source."))
    if not sparse.facts.shape.is_sparse:
        fix = "Name the converted model first and the dense one with --against."
        problems.append(Problem("MODEL", "a sparse model", f"{sparse.name}, a dense one", fix))
    if dense.facts.vocab_size != sparse.facts.vocab_size:
        numbers = f"{dense.facts.vocab_size} and {sparse.facts.vocab_size}"
        problems.append(Problem("both models", "the same vocabulary size", numbers, "Compare a model with its source."))
    for side in (dense, sparse):
        limit = side.facts.max_length
        if limit is not None and length > limit:
            expected = f"at most {limit} positions (max_position_embeddings)"
            fix = "Shorten --prefill, or --prompt-length and --new-tokens."
            problems.append(Problem(f"model {side.name}", expected, str(length), fix))
    if problems:
        raise RecipeError(*problems)


def _tokens(sparse: Side, engine: Engine, options: BenchOptions) -> tuple[int, ...]:
    """Enough tokens for the largest case: held-out text that ships, from its start again where it is too short."""
    wanted = max(*options.prefills, max(options.batches) * (options.prompt_length + options.new_tokens))
    if options.random_tokens or engine.takes_gguf:
        draw = random.Random(SEED)
        return tuple(draw.randrange(sparse.facts.vocab_size) for _ in range(wanted))
    from expertweaver.calibration.documents import read_documents
    from expertweaver.calibration.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(sparse.path)
    ids: list[int] = []
    for document in read_documents([str(shipped_heldout())]):
        if len(ids) >= wanted:
            break
        ids += tokenizer(document.text, verbose=False)["input_ids"]
    return tuple((ids * -(-wanted // len(ids)))[:wanted])


def split_prompts(tokens: Sequence[int], *, batch: int, prompt: int, following: int) -> tuple[Any, Any]:
    """Cut a stream into prompts [batch][prompt] and the tokens that follow them by step [following][batch]."""
    size = prompt + following
    rows = [list(tokens[row * size : (row + 1) * size]) for row in range(batch)]
    return [row[:prompt] for row in rows], [[row[prompt + step] for row in rows] for step in range(following)]
