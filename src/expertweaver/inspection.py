"""What is in a model folder: a dense model before a conversion, or a converted one after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expertweaver.checkpoint.manifest import RECORD_FOLDER
from expertweaver.checkpoint.shards import file_sha256
from expertweaver.dense.model import DenseModel, open_dense
from expertweaver.dense.reader import TensorReader
from expertweaver.dense.source import find_model
from expertweaver.errors import ArchitectureError, CheckpointError, Problem
from expertweaver.registry import module_names


def inspect(checkpoint: str, *, hashes: bool = False) -> dict[str, Any]:
    """Describe a model folder from headers and records, without reading weights.

    Args:
        checkpoint: A folder or hub id; dense or converted.
        hashes: Compare every file of a converted model with the hash its manifest records.

    Returns:
        JSON values: what the folder is, its tensors, whether it can be converted (and why not), or its manifest.

    Raises:
        CheckpointError: The folder is missing or damaged, or a file differs from its recorded hash.
    """
    folder = find_model(checkpoint)
    reader = TensorReader.open(folder.path)
    config = _read_json(folder.path / "config.json")
    summary: dict[str, Any] = {
        "path": str(folder.path),
        "model_type": config.get("model_type"),
        "num_tensors": len(reader.tensors),
        "num_shards": len({info.file for info in reader.tensors.values()}),
        "num_stored_values": sum(info.num_elements for info in reader.tensors.values()),
        "dtypes": sorted({info.dtype for info in reader.tensors.values()}),
    }
    file = folder.path / RECORD_FOLDER / "manifest.json"
    manifest = _read_json(file) if file.exists() else {}
    if hashes:
        _check_hashes(folder.path, manifest.get("files_sha256"), file)
        summary["hashes"] = "every file is as it was written"
    if manifest:
        return summary | {"manifest": manifest}
    try:
        dense = open_dense(checkpoint)
    except ArchitectureError as error:
        return summary | {"convertible": False, "reason": str(error)}
    return summary | {
        "convertible": True,
        "family": dense.family.name,
        "formats": _formats(dense),
        "num_params": dense.num_params,
        "num_hidden_layers": dense.dims.num_hidden_layers,
        "hidden_size": dense.dims.hidden_size,
        "intermediate_size": dense.dims.intermediate_size,
        "dropped_tensors": dict(dense.dropped),
    }


def _formats(dense: DenseModel) -> list[str]:
    """Formats that hold the model in float32, whatever the method asks of them."""
    import torch

    from expertweaver.formats.base import load_format

    return [name for name in module_names("formats") if not load_format(name).check(dense, torch.float32)]


def _check_hashes(folder: Path, recorded: Any, where: Path) -> None:
    if not isinstance(recorded, dict) or not recorded:
        fix = "Leave --hashes out: only a converted model records its files."
        raise CheckpointError(Problem(str(where), "a manifest with the hashes of all files", "none", fix))
    fix = "Copy or convert the model again."
    problems = []
    for name, digest in recorded.items():
        found = file_sha256(folder / name) if (folder / name).is_file() else "no such file"
        if found != digest:
            problems.append(Problem(str(folder / name), f"SHA-256 {digest}", found, fix))
    if problems:
        raise CheckpointError(*problems)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(Problem(str(file), "a JSON file", str(error), "Copy the model again.")) from error
    if not isinstance(values, dict):
        raise CheckpointError(Problem(str(file), "a JSON object", type(values).__name__, "Copy the model again."))
    return values
