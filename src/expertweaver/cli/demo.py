"""`expertweaver demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertweaver.cli.output import ConsoleProgress, errors_explained, print_json, print_table, quiet_libraries
from expertweaver.distributed import require_one_process


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the models and the report.")] = Path("demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """Convert the model that ships with the package, measure it against the dense one, and write a report."""
    with errors_explained(as_json):
        require_one_process("demo")
        quiet_libraries()
        from expertweaver.demonstration import demo

        done = demo(out, progress=ConsoleProgress())
        if as_json:
            print_json({"evaluation": done.evaluation.to_json(), "speed": done.speed, "report": str(done.report)})
            return
        from expertweaver.report.console import render_table

        print_table(render_table(done.evaluation, done.speed))
        typer.echo(f"report  {done.report.resolve()}")
