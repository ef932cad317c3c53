"""What the command line prints: results to standard output, progress and remarks to standard error."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from expertweaver.distributed import ProcessLostError, is_first_process
from expertweaver.errors import ExpertWeaverError, Problem, RecipeError
from expertweaver.progress import Progress

INTERRUPTED, TERMINATED = 130, 143
CONTINUABLE = "stopped; repeat the same command to continue where it was"
PIPED_WIDTH = 120


class ConsoleProgress(Progress):
    """Progress bars on a terminal; on anything else only the notes."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.noted: set[str] = set()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar while the stage is open."""
        if not self.console.is_terminal:
            yield lambda: None
            return
        from rich import progress
        from rich.markup import escape

        columns = (progress.TextColumn("{task.description:>14}"), progress.BarColumn(), progress.MofNCompleteColumn())
        with progress.Progress(*columns, progress.TimeElapsedColumn(), console=self.console) as bars:
            task = bars.add_task(escape(title), total=total)
            yield lambda: bars.advance(task)

    def note(self, message: str) -> None:
        """Print a remark, once however often it is made."""
        from rich.markup import escape

        if message in self.noted:
            return
        self.noted.add(message)
        self.console.print(f"[yellow]note:[/yellow] {escape(message)}", highlight=False, soft_wrap=True)


def print_json(values: Any) -> None:
    """Print JSON, and nothing else, to standard output."""
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode())


def printable(text: str) -> str:
    """A message as it may go to a terminal: characters that would steer it, or that no terminal has, spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def print_table(table: Any) -> None:
    """Print a rich table; where nobody's terminal sets a width, wide enough for several models."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    console.print(table)


def print_pairs(rows: Mapping[str, Any]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name:<{width}}  {value}")


@contextmanager
def _stops_heard() -> Iterator[dict[int, int]]:
    """Turn SIGINT and SIGTERM into KeyboardInterrupt, so that a run closes what it has open; yields what was heard.

    What was heard is kept beside the exception, because code below Python sometimes makes another one of it.
    """
    heard: dict[int, int] = {}
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield heard
        return

    def stop(number: int, frame: Any) -> None:
        heard.setdefault(number, INTERRUPTED if number == signal.SIGINT else TERMINATED)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def errors_explained(as_json: bool, *, when_stopped: str = "stopped") -> Iterator[None]:
    """Turn our errors into a message and their exit code; anything else is a bug and keeps its traceback.

    Of several processes that a launcher started, the first speaks.
    """
    with _stops_heard() as heard:
        try:
            yield
        except KeyboardInterrupt:
            _stop(when_stopped, heard)
        except Exception as error:
            if heard:
                _stop(when_stopped, heard)
            if isinstance(error, ProcessLostError):
                _say(printable(str(error)))
                sys.exit(1)
            explained = error if isinstance(error, ExpertWeaverError) else _full_gpu(error)
            if explained is None:
                raise
            if as_json and is_first_process():
                problems = [vars(problem) for problem in explained.problems]
                print_json({"error": type(explained).__name__, "problems": problems})
            _say(printable(f"{type(explained).__name__}: {explained}"))
            sys.exit(explained.exit_code)


def _full_gpu(error: Exception) -> ExpertWeaverError | None:
    """Ours for torch's error about a GPU without room; torch need not be loaded to know it."""
    if type(error).__name__ != "OutOfMemoryError":
        return None
    found = (str(error).strip().splitlines() or ["less"])[0]
    fix = "Leave --device out, choose a smaller --dtype or shorter samples, or end what else uses the GPU."
    return RecipeError(Problem("--device", "enough free memory on the GPU", found, fix))


def _stop(message: str, heard: Mapping[int, int]) -> NoReturn:
    _say(message)
    sys.exit(next(iter(heard.values()), INTERRUPTED))


def _say(message: str) -> None:
    if is_first_process():
        typer.echo(message, err=True)


def quiet_libraries() -> None:
    """Silence the progress bars of transformers, which do not know whether anybody watches."""
    from transformers.utils import logging

    logging.disable_progress_bar()
