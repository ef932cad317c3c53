"""`expertweaver export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertweaver.cli.output import ConsoleProgress, errors_explained, print_json, print_pairs, quiet_libraries
from expertweaver.distributed import require_one_process


def export_command(
    model: Annotated[str, typer.Argument(help="A converted model: a folder that `convert` wrote, or its hub id.")],
    out: Annotated[Path, typer.Argument(help="The file to create, ending in .gguf.", metavar="OUT.gguf")],
    quantize: Annotated[str, typer.Option(help="Type of the weight matrices: f32, f16, bf16 or q8_0.")] = "f16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new file is verified.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """Write a converted model as one GGUF file for llama.cpp and what is built on it."""
    with errors_explained(as_json):
        require_one_process("export")
        quiet_libraries()
        from expertweaver.gguf.run import export

        done = export(model, out, quantize=quantize, overwrite=overwrite, progress=ConsoleProgress())
        if as_json:
            print_json(done.to_json())
            return
        print_pairs(
            {
                "file": done.path,
                "architecture": done.architecture,
                "type": done.quantization,
                "size": f"{done.num_bytes / 1e6:.1f} MB, {done.num_tensors} tensors, read back and compared",
            }
        )
