"""`expertweaver convert` and `expertweaver plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expertweaver.cli.output import (
    CONTINUABLE,
    ConsoleProgress,
    errors_explained,
    print_json,
    print_pairs,
    quiet_libraries,
)
from expertweaver.distributed import joined, require_one_process
from expertweaver.machine import hold_little_freed_memory

if TYPE_CHECKING:
    from expertweaver.conversion import Conversion

Source = Annotated[str, typer.Argument(help="The dense model: a folder, or a hub id with an optional @revision.")]
Method = Annotated[str | None, typer.Option(help="How to divide the FFN; see `expertweaver ls methods`.")]
Sparsity = Annotated[float | None, typer.Option("--mlp-sparsity", help="Share of FFN neurons skipped per token.")]
Slices = Annotated[int | None, typer.Option("--num-slices", help="Equal slices of an FFN; must divide its width.")]
Texts = Annotated[
    list[str] | None,
    typer.Option("--calibration", help=".txt, .jsonl, .parquet, a folder of them or a hub data set; repeatable."),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A recipe as YAML.")]
Preset = Annotated[str | None, typer.Option(help="A recipe that ships; see `expertweaver ls presets`.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Any recipe key, as key=value; repeatable.")]
Format = Annotated[str | None, typer.Option("--format", help="Target class; see `expertweaver ls formats`.")]
DType = Annotated[str | None, typer.Option(help="Type of the written weights: auto, float32, bfloat16.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the tokenizer's own code run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Device = Annotated[str, typer.Option(help="Where layers are computed, one at a time: cpu, cuda or cuda:NUMBER.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new model is verified.")]


def convert_command(
    source: Source,
    out: Annotated[Path, typer.Argument(help="The folder to create.")],
    method: Method = None,
    mlp_sparsity: Sparsity = None,
    num_slices: Slices = None,
    calibration: Texts = None,
    recipe: RecipeFile = None,
    preset: Preset = None,
    settings: Settings = None,
    output_format: Format = None,
    dtype: DType = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Convert a dense model into a sparse Mixture-of-Experts checkpoint."""
    with errors_explained(as_json, when_stopped=CONTINUABLE):
        if dry_run:
            require_one_process("convert --dry-run")
        with joined() as group:
            with group.together():
                request = _request(
                    source, recipe, preset, settings, method=method, mlp_sparsity=mlp_sparsity, num_slices=num_slices,
                    calibration=calibration or None, format=output_format, dtype=dtype,
                    trust_remote_code=trust_remote_code or None,
                )  # fmt: skip
            if dry_run:
                _print_plan(request, out, overwrite=overwrite, device=device, as_json=as_json)
                return
            quiet_libraries()
            hold_little_freed_memory()
            from expertweaver.conversion import convert

            progress = ConsoleProgress()
            done = convert(request, out, overwrite=overwrite, progress=progress, device=device, group=group)
        if group.leads:
            _print_done(done, as_json=as_json)


def _print_done(done: Conversion, *, as_json: bool) -> None:
    if as_json:
        print_json({"path": str(done.path), "seconds": done.seconds, "manifest": done.manifest})
        return
    budget = done.manifest["budget"]
    print_pairs(
        {
            "written": done.path,
            "report": done.path / "expertweaver" / "report.html",
            "params": f"{budget['num_params']:,} (dense {budget['dense_num_params']:,})",
            "active params": f"{budget['num_active_params']:,}",
            "mlp_sparsity": f"{budget['mlp_sparsity']:.1%}",
            "verified": f"{done.verification.num_tensors} tensors; all experts on equals {_dense_name(done)} to "
            f"{done.verification.identity_error:.1e}, K experts equals the reference to "
            f"{done.verification.reference_error:.1e} (relative)",
            "seconds": ", ".join(f"{name} {value:.1f}" for name, value in done.seconds.items()),
        }
    )


def plan_command(
    source: Source,
    out: Annotated[Path | None, typer.Argument(help="The folder that would be created.")] = None,
    method: Method = None,
    mlp_sparsity: Sparsity = None,
    num_slices: Slices = None,
    calibration: Texts = None,
    recipe: RecipeFile = None,
    preset: Preset = None,
    settings: Settings = None,
    output_format: Format = None,
    dtype: DType = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Check a request and say what it would do, without reading a weight."""
    with errors_explained(as_json):
        request = _request(
            source, recipe, preset, settings, method=method, mlp_sparsity=mlp_sparsity, num_slices=num_slices,
            calibration=calibration or None, format=output_format, dtype=dtype,
            trust_remote_code=trust_remote_code or None,
        )  # fmt: skip
        _print_plan(request, out, overwrite=overwrite, device=device, as_json=as_json)


def _dense_name(done: Conversion) -> str:
    return "dense with the repaired down_proj" if done.verification.repaired else "dense"


def _request(source: str, recipe: Path | None, preset: str | None, settings: list[str] | None, **flags: Any) -> Any:
    from expertweaver.recipe.loading import make_recipe, parse_setting

    given = {name: value for name, value in flags.items() if value is not None}
    dotted = dict(parse_setting(text) for text in settings or [])
    return make_recipe(source, preset=preset, file=recipe, settings={**given, **dotted})


def _print_plan(request: Any, out: Path | None, *, overwrite: bool, device: str, as_json: bool) -> None:
    from expertweaver.planning import plan

    values = plan(request, out, overwrite=overwrite, device=device).to_values()
    if as_json:
        print_json(values)
        return
    routed = f"{values['num_slices']} slices of {values['slice_width']} neurons, {values['active_slices']} active"
    print_pairs(
        {
            "source": f"{values['source']} ({values['family']}, {values['dense_num_params']:,} params)",
            "layers": f"{values['num_hidden_layers']}, hidden_size {values['hidden_size']}, "
            f"intermediate_size {values['intermediate_size']}",
            "each layer": f"{routed} (at most {values['max_shared_slices']} of them shared)",
            "mlp_sparsity": f"{values['mlp_sparsity']:.1%}",
            "params": f"at most {values['max_num_params']:,}, {values['max_num_active_params']:,} active",
            "method, format": f"{values['method']}, {values['format']} in {values['dtype']}",
            "calibration": f"at most {values['max_calibration_tokens']:,} tokens of "
            + ", ".join(values["calibration_paths"]),
            "disk": f"{(values['output_bytes'] + values['record_bytes']) / 1e6:,.1f} MB, and "
            f"{values['scratch_bytes'] / 1e6:,.1f} MB meanwhile",
            "memory": f"about {values['memory_bytes'] / 1e6:,.0f} MB",
            "time": _time(values["seconds"]),
            "warnings": "; ".join(values["warnings"]) or "none",
            "advice": "; ".join(values["advice"]) or "none",
        }
    )


def _time(seconds: dict[str, float]) -> str:
    parts = ", ".join(f"{part} {_duration(spent)}" for part, spent in seconds.items())
    return f"about {_duration(sum(seconds.values()))} on this machine ({parts})"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
