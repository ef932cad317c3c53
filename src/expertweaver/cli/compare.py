"""`expertweaver compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertweaver.cli.output import (
    CONTINUABLE,
    ConsoleProgress,
    errors_explained,
    print_json,
    print_table,
    quiet_libraries,
)


def compare_command(
    source: Annotated[str, typer.Argument(help="The dense model: a folder, or a hub id with an optional @revision.")],
    methods: Annotated[
        str,
        typer.Option(help="NAME, NAME+repair or NAME:KEY=VALUE;KEY=VALUE, by commas; the first is the reference."),
    ],
    text: Annotated[list[str], typer.Option("--text", help="Text to judge on, as for --calibration; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder of cells, tables and figures; a repeated command continues.")],
    mlp_sparsity: Annotated[
        str, typer.Option("--mlp-sparsity", help="Shares of FFN neurons skipped per token, by commas.")
    ] = "0.25,0.5",
    num_slices: Annotated[int, typer.Option(help="Equal slices of an FFN; must divide its width.")] = 64,
    seeds: Annotated[int, typer.Option(help="Runs of each method that draws random numbers.")] = 3,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help=".txt, .jsonl, .parquet, a folder of them or a hub data set; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A recipe key of calibration, evaluate or source, as key=value; repeatable."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="What the dense model is loaded as: float32, bfloat16.")] = "float32",
    drop_overlapping: Annotated[
        bool, typer.Option("--drop-overlapping", help="Leave out text that shares 13 words in a row with calibration.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what an earlier comparison left in the folder.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the tokenizer's own code run.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """Compare methods on one model: same budgets, same calibration tokens, same text, several seeds."""
    with errors_explained(as_json, when_stopped=CONTINUABLE):
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
            num_slices=num_slices,
            seeds=seeds,
            calibration=calibration or (),
            settings=dict(parse_setting(setting) for setting in settings or []) | trust,
            dtype=dtype,
            drop_overlapping=drop_overlapping,
            overwrite=overwrite,
            progress=ConsoleProgress(),
        )
        if as_json:
            print_json(result.to_json())
            return
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
