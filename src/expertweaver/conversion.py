"""The main road: a dense checkpoint in, a verified sparse checkpoint out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from expertweaver.calibration.capture import profile_layers
from expertweaver.calibration.documents import read_documents
from expertweaver.calibration.samples import CalibrationSet
from expertweaver.calibration.statistics import LayerStatistics, StatisticsFolder
from expertweaver.calibration.tokenizer import load_tokenizer, message_renderer
from expertweaver.checkpoint.card import model_card
from expertweaver.checkpoint.finished import FinishedLayers, pack_experts
from expertweaver.checkpoint.folder import OutputFolder, Workplace, write_text
from expertweaver.checkpoint.manifest import RECORD_FOLDER, build_manifest, file_hashes
from expertweaver.checkpoint.shards import write_shard
from expertweaver.checkpoint.verify import Verification, verify
from expertweaver.checkpoint.writer import LayerWriter
from expertweaver.dense.reader import TensorReader
from expertweaver.distributed import ALONE, Group
from expertweaver.estimate import LIBRARY_BYTES
from expertweaver.formats.base import Layout, StoredLayer, load_format, uniform_layout
from expertweaver.machine import available_memory, compute_device
from expertweaver.methods.base import load_method
from expertweaver.modeling.values import Need
from expertweaver.partition.allocation import Allocation
from expertweaver.planning import Plan, few_tokens, plan
from expertweaver.progress import SILENT, Progress
from expertweaver.recipe.schema import Recipe
from expertweaver.sharing import require_same_request, sharing_notes, workplace

MIN_ROUTING_KEPT = 0.99
"""Below this share of probe tokens with the same experts, the user is told."""

SIDE_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
COPIED_FILES = (*SIDE_FILES, "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        path: The folder.
        manifest: What its manifest.json holds; docs/formats.md lists the keys.
        verification: What was checked, and the largest relative errors.
        seconds: Seconds of each part: prepare, profile, layers, verify, evaluate.
    """

    path: Path
    manifest: dict[str, Any]
    verification: Verification
    seconds: dict[str, float]


def convert(
    recipe: Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
    device: str = "cpu",
    group: Group = ALONE,
) -> Conversion:
    """Convert a dense GLU model into a sparse Mixture-of-Experts checkpoint.

    The result is built in `OUT.partial`, verified, and renamed. A stopped run continues when it is repeated.

    Args:
        recipe: What to convert and how; see `make_recipe`.
        out: The folder to create.
        overwrite: Replace an existing model folder once the new one is verified.
        progress: Hears of stages and warnings.
        device: Where layers are computed, one at a time: cpu, cuda or cuda:NUMBER; methods design on the CPU.
        group: The processes that share the work, all of which call this; see `expertweaver.distributed.joined`.

    Raises:
        RecipeError, PartitionError: The request is wrong.
        ArchitectureError, CheckpointError, CalibrationError: An input cannot be used.
        VerificationError: The result does not compute what it must; nothing is left behind.
    """
    with group.together():
        return _convert(recipe, Path(out), overwrite, progress if group.leads else SILENT, device, group)


def _convert(
    recipe: Recipe, out: Path, overwrite: bool, progress: Progress, device_name: str, group: Group
) -> Conversion:
    clock = _Clock()
    target = out if group.leads else None
    todo = plan(recipe, target, overwrite=overwrite, device=device_name, estimate_time=False)
    device = compute_device(device_name)
    require_same_request(todo, group)
    for warning in todo.warnings:
        progress.note(warning)
    calibration = group.lead(lambda: calibration_set(todo))
    short = _short_text(todo, calibration)
    for warning in [*short, *sharing_notes(calibration, group)]:
        progress.note(warning)
    group.lead(lambda: _check_evaluation(todo))
    clock.lap("prepare")
    with workplace(todo, calibration, out, overwrite, group) as folder:
        if done := group.lead(lambda: _published(folder, progress)):
            return done
        if isinstance(folder, OutputFolder) and folder.resumed:
            progress.note(f"continuing the run that was begun in {folder.partial}")
        statistics = _profile(todo, calibration, folder.scratch, progress, group, device)
        clock.lap("profile")
        num_layers, method = todo.dense.dims.num_hidden_layers, recipe.method
        allocations = group.lead(lambda: load_method(method.name).allocate(method, statistics, todo.budget, num_layers))
        layout = uniform_layout(allocations, todo.budget)
        writer = LayerWriter(todo, calibration, layout, statistics, folder, group, device)
        finished = writer.write(allocations, progress)
        clock.lap("layers")

        def complete() -> Conversion:
            assert isinstance(folder, OutputFolder)
            remarks = [*_allocation_warnings(allocations, layout, todo.format), *_routing_warnings(finished)]
            for remark in remarks:
                progress.note(remark)
            warnings = [*todo.warnings, *short, *remarks]
            sizes = replace(layout, layers=tuple(stored.sizes(layout) for stored in finished))
            return _complete(todo, calibration, sizes, finished, warnings, folder, group, clock, progress)

        return group.lead(complete)


def _complete(
    todo: Plan,
    calibration: CalibrationSet,
    layout: Layout,
    finished: FinishedLayers,
    warnings: Sequence[str],
    folder: OutputFolder,
    group: Group,
    clock: _Clock,
    progress: Progress,
) -> Conversion:
    """Write what lies around the weights, verify, measure and publish."""
    partial = folder.partial
    manifest = {"name": folder.out.name} | _write_sidecars(todo, calibration, layout, finished, warnings, partial)
    with progress.stage("verifying", 1) as step:
        verification = _verify(todo, calibration, layout, finished, partial)
        step()
    clock.lap("verify")
    quality = _evaluate(todo, partial, progress)
    clock.lap("evaluate")
    manifest = _finish_record(todo, manifest, verification, quality, clock.seconds, group, partial)
    folder.publish()
    return Conversion(folder.out, manifest, verification, clock.seconds)


def _published(folder: Workplace, progress: Progress) -> Conversion | None:
    """What an earlier run published and was killed after, if it was this request."""
    if not isinstance(folder, OutputFolder) or not folder.published:
        return None
    progress.note(f"an earlier run of this request had finished {folder.out}; only its traces were left to remove")
    return _finished(folder.out)


def _finished(out: Path) -> Conversion:
    """What an earlier run recorded of the conversion that it published."""
    manifest, run = (
        json.loads((out / RECORD_FOLDER / name).read_text("utf-8")) for name in ("manifest.json", "run.json")
    )
    return Conversion(out, manifest, Verification(**run["verification"]), run["seconds"])


def calibration_set(todo: Plan) -> CalibrationSet:
    """Read, tokenize and pack the calibration text of a plan.

    Raises:
        CalibrationError: Text that is unreadable, too short, or does not fit the model's vocabulary.
    """
    tokenizer = load_tokenizer(todo.dense.folder.path, trust_remote_code=todo.recipe.source.trust_remote_code)
    documents = read_documents(todo.calibration.paths, render_messages=message_renderer(tokenizer))
    return todo.calibration.build(documents, tokenizer)


def _short_text(todo: Plan, calibration: CalibrationSet) -> list[str]:
    """Tell that the text holds too few tokens for the repair, where the request alone did not show it."""
    width = todo.dense.dims.intermediate_size
    if not todo.recipe.method.repair or few_tokens(todo.calibration.max_tokens, width):
        return []
    return few_tokens(calibration.num_tokens, width)


class _Clock:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self.last, 3)
        self.last = now


def _profile(
    todo: Plan, calibration: CalibrationSet, scratch: Path, progress: Progress, group: Group, device: torch.device
) -> Sequence[LayerStatistics]:
    """Statistics of the dense model; none for a method that reads the traffic of the converted one instead."""
    if todo.recipe.method.reads_traffic:
        return ()
    num_layers, method = todo.dense.dims.num_hidden_layers, todo.recipe.method
    statistics = StatisticsFolder(scratch / "statistics", num_layers)
    with progress.stage("calibrating", num_layers) as step:
        profile_layers(
            todo.dense,
            calibration,
            statistics,
            compute_dtype=getattr(torch, todo.recipe.calibration.compute_dtype),
            num_probes=method.num_probes,
            scratch=scratch,
            gradient_tokens=method.gradient_tokens if method.needs_gradients else None,
            on_layer=lambda layer: step(),
            group=group,
            device=device,
        )
    return statistics


def _routing_warnings(finished: FinishedLayers) -> list[str]:
    worst = min(finished.records, key=lambda record: record["routing_kept"])
    if worst["routing_kept"] >= MIN_ROUTING_KEPT:
        return []
    return [
        f"layer {worst['layer']}: the stored router chooses other experts than the method's on "
        f"{1 - worst['routing_kept']:.1%} of the probe tokens"
    ]


def _allocation_warnings(allocations: Sequence[Allocation], layout: Layout, format_name: str) -> list[str]:
    warnings = []
    if layout.num_shared_slices == 0 and load_format(format_name).capabilities.shared_expert == "advised":
        warnings.append("n_shared_experts is 0: of the engines, only transformers is known to run that")
    shares = [allocation.r for allocation in allocations if allocation.r is not None]
    if shares and (max(shares) < 0.005 or min(shares) > 0.995):
        side = "no neuron varies more" if max(shares) < 0.005 else "every neuron varies more"
        warnings.append(
            f"tau {allocations[0].tau:g} is inert: in every layer {side} than it, so all layers share alike; "
            f"try --set method.tau=auto (the report shows the spread)"
        )
    clipped = [layer for layer, allocation in enumerate(allocations) if allocation.clip is not None]
    if clipped:
        warnings.append(f"{len(clipped)} of {len(allocations)} layers: {allocations[clipped[0]].clip}")
    return warnings


def _write_sidecars(
    todo: Plan,
    calibration: CalibrationSet,
    layout: Layout,
    finished: FinishedLayers,
    warnings: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """Configuration, tokenizer and the record's partition; returns the manifest, still without file hashes."""
    form = load_format(todo.format)
    config = form.config(todo.dense, layout, todo.torch_dtype)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    for file in form.capabilities.side_files:
        shutil.copyfile(file, folder / file.name)
    for pattern in COPIED_FILES:
        for file in sorted(todo.dense.folder.path.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    record = folder / RECORD_FOLDER
    record.mkdir(exist_ok=True)
    owners = {}
    for layer, design in enumerate(finished):
        owners[f"{layer}.shared_neurons"] = design.shared_neurons
        owners |= {f"{layer}.{name}": tensor for name, tensor in pack_experts(design.expert_neurons).items()}
    write_shard(record / "partition.safetensors", owners)
    num_params = sum(
        info.num_elements
        for name, info in TensorReader.open(folder).tensors.items()
        if not name.endswith("e_score_correction_bias")
    )
    return build_manifest(todo, calibration, layout, finished.records, warnings, num_params)


def _verify(
    todo: Plan, calibration: CalibrationSet, layout: Layout, stored: Sequence[StoredLayer], folder: Path
) -> Verification:
    return verify(
        folder,
        todo.dense,
        load_format(todo.format),
        stored,
        layout,
        calibration,
        dtype=todo.torch_dtype,
        memory_budget=min(available_memory() // 2, todo.memory_bytes - LIBRARY_BYTES),  # the plan stays true
        is_partition=Need.OVERLAPPING_EXPERTS not in todo.recipe.method.needs,
    )


def _check_evaluation(todo: Plan) -> None:
    """Read the text of the evaluation at the end now: a mistake in it must not cost a finished conversion."""
    section = todo.recipe.evaluate
    if section.text:
        from expertweaver.evaluation.quality import check_text

        check_text(
            todo.dense.folder.path,
            section.text,
            max_tokens_per_document=section.max_tokens_per_document,
            context=section.context,
        )


def _evaluate(todo: Plan, folder: Path, progress: Progress) -> Any:
    section = todo.recipe.evaluate
    if not section.text:
        return None
    from expertweaver.evaluation.quality import evaluate

    result = evaluate(
        [folder],
        text=section.text,
        against=todo.dense.folder.path,
        max_tokens_per_document=section.max_tokens_per_document,
        context=section.context,
        progress=progress,
    )
    name = folder.name.removesuffix(".partial")
    models = [
        replace(m, name=name, path=str(folder.with_name(name))) if m.name == folder.name else m for m in result.models
    ]
    return replace(result, models=tuple(models))


def _finish_record(
    todo: Plan,
    manifest: dict[str, Any],
    verification: Verification,
    quality: Any,
    seconds: dict[str, float],
    group: Group,
    folder: Path,
) -> dict[str, Any]:
    """Write card, recipe, report and manifest; times and host facts go into a file of their own."""
    import platform

    from expertweaver.report.contents import Report
    from expertweaver.report.markdown import quality_markdown
    from expertweaver.report.page import write_report

    record = folder / RECORD_FOLDER
    card = model_card(manifest, todo.dense.folder.path, quality_markdown(quality) if quality else None)
    write_text(folder / "README.md", card)
    write_text(record / "recipe.yaml", yaml.safe_dump(todo.recipe.to_values(), sort_keys=False))
    if quality is not None:
        write_text(record / "evaluation.json", json.dumps(quality.to_json(), indent=2) + "\n")
    title = f"{Path(todo.dense.folder.name).name}, {manifest['method']}"
    write_report(record / "report.html", Report(title, (manifest,), quality, None, ()))
    finished = {**manifest, "files_sha256": file_hashes(folder)}
    write_text(record / "manifest.json", json.dumps(finished, indent=2) + "\n")
    host = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "processes": group.size,
    }
    run = {
        "seconds": seconds,
        "verification": asdict(verification),
        "host": host,
        "finished": time.strftime("%FT%TZ", time.gmtime()),
    }
    write_text(record / "run.json", json.dumps(run, indent=2) + "\n")
    return finished
