"""`expertweaver inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from expertweaver.cli.output import errors_explained, print_json, print_pairs


def inspect_command(
    checkpoint: Annotated[str, typer.Argument(help="A model folder or hub id, dense or converted.")],
    hashes: Annotated[bool, typer.Option("--hashes", help="Compare every file with its recorded hash.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """Describe a model folder: whether it can be converted, or how it was."""
    with errors_explained(as_json):
        from expertweaver.inspection import inspect

        found = inspect(checkpoint, hashes=hashes)
        if as_json:
            print_json(found)
            return
        manifest = found.pop("manifest", None)
        print_pairs(found)
        if manifest is not None:
            typer.echo("")
            print_pairs({**manifest["budget"], **manifest["stored"], "method": manifest["method"]})
            typer.echo("\nlayer  shared  routed  chosen  CV > tau")
            for layer in manifest["layers"]:
                share = "" if layer["r"] is None else f"{layer['r']:.1%}"
                numbers = f"{layer['num_shared']:>8}{layer['num_routed']:>8}{layer['num_active_routed']:>8}"
                typer.echo(f"{layer['layer']:>5}{numbers}{share:>10}")
