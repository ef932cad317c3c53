"""How several processes share a conversion: they have the same request, and one of them writes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from expertweaver.calibration.samples import CalibrationSet, row_batches
from expertweaver.checkpoint.folder import OutputFolder, Workplace, differences, helper_folder
from expertweaver.checkpoint.identity import code_fingerprint, package_versions, source_identity
from expertweaver.distributed import Group
from expertweaver.errors import Problem, RecipeError
from expertweaver.planning import Plan


def require_same_request(todo: Plan, group: Group) -> None:
    """Processes of one group must compute the same, of the same model."""
    mine = _request(todo)
    problems = [
        Problem(f"process {group.rank}: {key}", f"{theirs!r}, as process 0 has", f"{own!r}", "Start all alike.")
        for key, theirs, own in differences(group.lead(lambda: mine), mine)
    ]
    if problems:
        raise RecipeError(*problems)


def sharing_notes(calibration: CalibrationSet, group: Group) -> list[str]:
    """Say how several processes share the tokens."""
    if group.size == 1:
        return []
    batches = len(list(row_batches(calibration.sample_ids)))
    idle = f"; {group.size - batches} of them have none" if batches < group.size else ""
    return [f"{group.size} processes share the calibration of {calibration.num_tokens:,} tokens{idle}"]


def workplace(
    todo: Plan, calibration: CalibrationSet, out: Path, overwrite: bool, group: Group
) -> AbstractContextManager[Workplace]:
    """The output folder for the leader, a place for scratch files for every other process."""
    if not group.leads:
        return helper_folder(out, group.rank)
    source = todo.dense.folder.path
    return OutputFolder(out, _identity(todo, calibration), overwrite=overwrite, source=source)


def _request(todo: Plan) -> dict[str, Any]:
    """What processes share, though each may have a copy of the source that was written at another time."""
    return {
        "recipe": todo.recipe.to_values(),
        "source": todo.dense.reader.fingerprint,
        "versions": package_versions(),
        "code": code_fingerprint(),
    }


def _identity(todo: Plan, calibration: CalibrationSet) -> dict[str, Any]:
    """What makes a repeated request the same: also the source's files and the calibration tokens."""
    return _request(todo) | source_identity(todo.dense) | {"calibration": calibration.fingerprint}
