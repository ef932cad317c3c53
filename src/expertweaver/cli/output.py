"""What the command line prints: results to standard output, progress and remarks to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from expertweaver.distributed import ProcessLostError, is_first_process
from expertweaver.errors import ExpertWeaverError
from expertweaver.progress import Progress

INTERRUPTED = 130
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
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False))


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
def errors_explained(as_json: bool, *, when_stopped: str = "stopped") -> Iterator[None]:
    """Turn our errors into a message and their exit code; anything else is a bug and keeps its traceback.

    Of several processes that a launcher started, the first speaks.
    """
    speaks = is_first_process()
    try:
        yield
    except ExpertWeaverError as error:
        if as_json and speaks:
            problems = [vars(problem) for problem in error.problems]
            print_json({"error": type(error).__name__, "problems": problems})
        if speaks:
            typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    except ProcessLostError as error:
        if speaks:
            typer.echo(str(error), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        if speaks:
            typer.echo(when_stopped, err=True)
        sys.exit(INTERRUPTED)


def quiet_libraries() -> None:
    """Silence the progress bars of transformers, which do not know whether anybody watches."""
    from transformers.utils import logging

    logging.disable_progress_bar()
