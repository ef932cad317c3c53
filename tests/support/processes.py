"""Running a piece of work in several processes, in the environment that a launcher makes for them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

from support.commands import run

DEADLINE = 600
"""Seconds after which processes that wait for each other are ended, so that a test fails instead of hanging."""


def run_together(work: Callable[..., None], *arguments: object, size: int = 2) -> list[int | None]:
    """Run a function in `size` processes; their exit codes, 1 where it raised.

    They are forked: they begin with what is loaded and patched here.
    """
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = [
        context.Process(target=_work, args=(work, arguments, rank, size, port), daemon=True) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def command(folder: Path, *arguments: str | Path) -> None:
    """Run `expertweaver` as one of several processes; what it said goes to a file in `folder`, and it exits alike."""
    result = run(*arguments)
    said = folder / f"process-{os.environ['RANK']}"
    said.with_suffix(".out").write_text(result.stdout, encoding="utf-8")
    said.with_suffix(".err").write_text(result.stderr, encoding="utf-8")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    os._exit(result.exit_code)


def _work(work: Callable[..., None], arguments: tuple[object, ...], rank: int, size: int, port: int) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(where, RANK=str(rank), WORLD_SIZE=str(size))
    work(*arguments)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
