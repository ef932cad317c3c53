"""The record of a finished conversion, read from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expertweaver.checkpoint.manifest import RECORD_FOLDER
from expertweaver.checkpoint.shards import file_sha256
from expertweaver.errors import CheckpointError, Problem


def read_record(folder: Path) -> dict[str, Any]:
    """Read the manifest of a converted model.

    Raises:
        CheckpointError: The folder has none, so it is not the result of a finished conversion, or it is damaged.
    """
    file = folder / RECORD_FOLDER / "manifest.json"
    if not file.is_file():
        fix = "Convert a dense model first: expertweaver convert MODEL OUT."
        raise CheckpointError(Problem(str(folder), "a folder that `expertweaver convert` finished", "no manifest", fix))
    return read_json(file)


def check_hashes(folder: Path, recorded: Any, where: Path) -> None:
    """Compare every recorded file with its SHA-256.

    Raises:
        CheckpointError: Nothing is recorded, or files are missing or differ; all of them are named.
    """
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


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file cannot be read, or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(Problem(str(file), "a JSON file", str(error), "Copy the model again.")) from error
    if not isinstance(values, dict):
        raise CheckpointError(Problem(str(file), "a JSON object", type(values).__name__, "Copy the model again."))
    return values
