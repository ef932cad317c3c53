"""An engine in a process of its own, asked for one thing at a time."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expertweaver.bench.engines import Engine
from expertweaver.bench.request import Request, Side
from expertweaver.errors import CheckpointError, Problem, RecipeError

WORKERS = Path(__file__).parent / "workers"
LAST_LINES = 3


class Worker:
    """A started engine; talk to it with `ask`."""

    def __init__(self, process: subprocess.Popen[str], engine: Engine, side: Side, log: Path) -> None:
        self.process = process
        self.engine = engine
        self.side = side
        self.log = log

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Let the engine do something, and wait for its answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone; `hear` says why
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """Wait for an answer.

        Raises:
            RecipeError: The engine is not installed where it was looked for.
            CheckpointError: The engine failed.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with exit code {self.process.wait()}"}
        where = f"engine {self.engine.name}, model {self.side.name}"
        if "missing" in answer:
            raise RecipeError(Problem(where, "the engine's packages", answer["missing"], self.engine.install))
        if "error" in answer:
            last = " | ".join(
                line.strip() for line in self.log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
            )
            fix = "Try the model in the engine by itself; what it printed last: " + (last or "nothing")
            raise CheckpointError(Problem(where, "a run without errors", answer["error"], fix))
        return answer


@contextmanager
def start(request: Request, side: Side) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """Run an engine with a model for the time of the block; gives it and what it says about itself."""
    options = request.options
    arguments = {
        "model": str(side.path),
        "dtype": request.dtype,
        "threads": options.threads,
        "max_length": request.max_length,
        "max_batch": max(options.batches),
        "clock": "cpu" if options.cpu_time else "wall",
    }
    if request.engine.takes_device:
        arguments["device"] = options.device
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [request.python, str(WORKERS), request.engine.worker, json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **threads},
            )
        try:
            worker = Worker(process, request.engine, side, log)
            yield worker, worker.hear()["setup"]
        finally:
            process.kill()
            process.communicate()
