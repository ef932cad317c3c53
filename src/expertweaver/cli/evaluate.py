"""`expertweaver evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertweaver.cli.output import ConsoleProgress, errors_explained, print_json, print_table, quiet_libraries
from expertweaver.distributed import require_one_process


def evaluate_command(
    models: Annotated[list[str], typer.Argument(help="Models to measure: folders or hub ids.", metavar="MODEL...")],
    text: Annotated[list[str], typer.Option("--text", help="Text to measure on, as for --calibration; repeatable.")],
    against: Annotated[str | None, typer.Option(help="The dense model to compare with.")] = None,
    max_tokens_per_document: Annotated[int | None, typer.Option(help="Cut longer documents.")] = None,
    context: Annotated[int | None, typer.Option(help="Window length in tokens.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; converted models underflow in float16.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="Where the models run: cpu, cuda or cuda:NUMBER.")] = "cpu",
    tasks: Annotated[list[str] | None, typer.Option("--task", help="lm-eval task, task file or folder.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report to this file.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Let the models' code run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """Measure models on text: nats per token and perplexity per domain, and how far they are from the dense model."""
    with errors_explained(as_json):
        require_one_process("evaluate")
        quiet_libraries()
        from expertweaver.evaluation.quality import evaluate

        result = evaluate(
            models,
            text=text,
            against=against,
            max_tokens_per_document=max_tokens_per_document,
            context=context,
            dtype=dtype,
            tasks=tasks or [],
            trust_remote_code=trust_remote_code,
            device=device,
            progress=ConsoleProgress(),
        )
        if as_json:
            print_json(result.to_json())
        else:
            from expertweaver.report.console import render_table

            print_table(render_table(result))
        if report is not None:
            from expertweaver.report.contents import Report
            from expertweaver.report.page import write_report

            write_report(report, Report("Evaluation", (), result, None, ()))
            typer.echo(f"report  {report}", err=as_json)
