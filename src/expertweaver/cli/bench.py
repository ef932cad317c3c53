"""`expertweaver bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from expertweaver.cli.output import ConsoleProgress, errors_explained, print_json, print_table, quiet_libraries
from expertweaver.distributed import require_one_process

Model = Annotated[str, typer.Argument(help="The converted model: a folder, or a GGUF file for llamacpp.")]
Against = Annotated[str | None, typer.Option(help="The dense model; the source that the manifest names by default.")]
Engine = Annotated[str, typer.Option(help="transformers, vllm or llamacpp.")]
EnginePython = Annotated[str | None, typer.Option(help="The Python of the engine's own environment.")]
Experts = Annotated[
    str | None, typer.Option(help="Ways to run the experts in transformers, by commas: eager, grouped_mm, index_loop.")
]
Batch = Annotated[str, typer.Option(help="Sequences that decode together, by commas.")]
Prefill = Annotated[str, typer.Option(help="Prompt lengths to read, by commas.")]
DType = Annotated[str | None, typer.Option(help="float32 or bfloat16; float32 by default.")]
Random = Annotated[bool, typer.Option("--random-tokens", help="Feed random tokens instead of held-out text.")]
CpuTime = Annotated[bool, typer.Option("--cpu-time", help="Count the time computing: for a shared machine.")]
Out = Annotated[Path | None, typer.Option(help="Write the result as JSON to this file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]


def bench_command(
    model: Model,
    against: Against = None,
    engine: Engine = "transformers",
    engine_python: EnginePython = None,
    experts: Experts = None,
    batch: Batch = "1,8",
    prefill: Prefill = "512,2048",
    prompt_length: Annotated[int, typer.Option(help="Tokens in the cache before decoding starts.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Decoding steps.")] = 32,
    repeats: Annotated[int, typer.Option(help="Counted rounds.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of the engine.")] = 1,
    dtype: DType = None,
    device: Annotated[str, typer.Option(help="Where transformers computes: cpu, cuda or cuda:NUMBER.")] = "cpu",
    random_tokens: Random = False,
    cpu_time: CpuTime = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Time a converted model beside its dense source in a serving engine, and against what skipping could give."""
    with errors_explained(as_json):
        require_one_process("bench")
        batches, prefills = _numbers("--batch", batch), _numbers("--prefill", prefill)
        quiet_libraries()
        from expertweaver.bench.request import BenchOptions
        from expertweaver.bench.run import benchmark

        names = None if experts is None else tuple(name.strip() for name in experts.split(",") if name.strip())
        options = BenchOptions(
            batches=batches,
            prefills=prefills,
            prompt_length=prompt_length,
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
            dtype=dtype,
            implementations=names,
            random_tokens=random_tokens,
            cpu_time=cpu_time,
            device=device,
        )
        result = benchmark(
            model,
            against=against,
            engine=engine,
            engine_python=engine_python,
            options=options,
            progress=ConsoleProgress(),
        )
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if as_json:
            print_json(result.to_json())
        else:
            from expertweaver.report.bench import render_benchmark, setup_line

            print_table(render_benchmark(result))
            typer.echo(setup_line(result))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    from expertweaver.errors import Problem, RecipeError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        fix = "Write for instance 1,8."
        raise RecipeError(Problem(option, "whole numbers separated by commas", f"'{text}'", fix)) from None
