"""`expertweaver compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expertweaver.cli.output import (
    CONTINUABLE,
    ConsoleProgress,
    errors_explained,
    print_json,
    print_table,
    quiet_libraries,
)
from expertweaver.distributed import require_one_process

if TYPE_CHECKING:
    from expertweaver.comparison.results import Comparison


Source = Annotated[str, typer.Argument(help="The dense model: a folder, or a hub id with an optional @revision.")]
Methods = Annotated[
    str, typer.Option(help="NAME, NAME+repair or NAME:KEY=VALUE;KEY=VALUE, by commas; the first is the reference.")
]
Text = Annotated[list[str], typer.Option("--text", help="Text to judge on, as for --calibration; repeatable.")]
Out = Annotated[Path, typer.Option(help="Folder of cells, tables and figures; a repeated command continues.")]
Sparsities = Annotated[str, typer.Option("--mlp-sparsity", help="Shares of FFN neurons skipped per token, by commas.")]
Slices = Annotated[
    int | None, typer.Option(help="Equal slices of an FFN; must divide its width.", show_default="near 64")
]
Seeds = Annotated[int, typer.Option(help="Runs of each method that draws random numbers.")]
Fitted = Annotated[
    list[str] | None,
    typer.Option("--calibration", help=".txt, .jsonl, .parquet, a folder of them or a hub data set; repeatable."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A recipe key of calibration, evaluate or source, as key=value; repeatable."),
]
DType = Annotated[str, typer.Option(help="What the dense model is loaded as: float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="Where layers are computed and models judged: cpu, cuda or cuda:NUMBER.")]
Drop = Annotated[
    bool, typer.Option("--drop-overlapping", help="Leave out text that shares 13 words in a row with calibration.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew in the folder of an earlier comparison.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the tokenizer's own code run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]


def compare_command(
    source: Source,
    methods: Methods,
    text: Text,
    out: Out,
    mlp_sparsity: Sparsities = "0.25,0.5",
    num_slices: Slices = None,
    seeds: Seeds = 3,
    calibration: Fitted = None,
    settings: Settings = None,
    dtype: DType = "float32",
    device: Device = "cpu",
    drop_overlapping: Drop = False,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Compare methods on one model: same budgets, same calibration tokens, same text, several seeds."""
    with errors_explained(as_json, when_stopped=CONTINUABLE):
        require_one_process("compare")
        sparsities = _fractions(mlp_sparsity)
        quiet_libraries()
        from expertweaver.comparison.run import compare
        from expertweaver.recipe.loading import parse_setting

        trust = {"source.trust_remote_code": True} if trust_remote_code else {}
        result = compare(
            source,
            methods=methods,
            mlp_sparsities=sparsities,
            text=text,
            out=out,
            num_slices="auto" if num_slices is None else num_slices,
            seeds=seeds,
            calibration=calibration or (),
            settings=dict(parse_setting(setting) for setting in settings or []) | trust,
            dtype=dtype,
            device=device,
            drop_overlapping=drop_overlapping,
            overwrite=overwrite,
            progress=ConsoleProgress(),
        )
        if as_json:
            print_json(result.to_json())
        else:
            _show(result, out)


def _show(result: Comparison, out: Path) -> None:
    from expertweaver.comparison.folder import OUTPUTS
    from expertweaver.report.comparison.console import render_comparison_table

    print_table(render_comparison_table(result))
    for name in OUTPUTS:
        typer.echo(str(out / name))


def _fractions(text: str) -> list[float]:
    from expertweaver.errors import Problem, RecipeError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return [float(part) for part in parts]
    except ValueError:
        fix = "Write for instance 0.25,0.5."
        raise RecipeError(Problem("--mlp-sparsity", "numbers separated by commas", f"'{text}'", fix)) from None
