"""`expertweaver ls`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from expertweaver.cli.output import errors_explained, print_json, print_pairs


class Kind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    FAMILIES = "families"
    FORMATS = "formats"
    PRESETS = "presets"


def ls_command(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """List methods, families, formats or presets."""
    with errors_explained(as_json):
        from expertweaver.listing import list_entries

        entries = list_entries(kind.value)
        if as_json:
            print_json(entries)
        else:
            print_pairs(entries)
