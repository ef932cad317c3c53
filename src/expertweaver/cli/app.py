"""The command `expertweaver`: its verbs, each in a file of its own."""

from __future__ import annotations

import typer

from expertweaver import __version__
from expertweaver.cli.bench import bench_command
from expertweaver.cli.compare import compare_command
from expertweaver.cli.convert import convert_command, plan_command
from expertweaver.cli.demo import demo_command
from expertweaver.cli.evaluate import evaluate_command
from expertweaver.cli.export import export_command
from expertweaver.cli.inspect import inspect_command
from expertweaver.cli.ls import ls_command
from expertweaver.cli.push import push_command

app = typer.Typer(
    name="expertweaver",
    help="Turn a pretrained dense GLU language model into a sparse Mixture-of-Experts that stock engines serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("convert")(convert_command)
app.command("plan")(plan_command)
app.command("evaluate")(evaluate_command)
app.command("compare")(compare_command)
app.command("bench")(bench_command)
app.command("export")(export_command)
app.command("inspect")(inspect_command)
app.command("push")(push_command)
app.command("ls")(ls_command)
app.command("demo")(demo_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True)) -> None:
    """Turn a pretrained dense GLU language model into a sparse Mixture-of-Experts that stock engines serve."""


def main() -> None:
    """Run the command line."""
    app()
