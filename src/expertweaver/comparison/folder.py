"""The folder of a comparison: finished cells stay, a repeated command continues, another request is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from expertweaver.checkpoint.folder import check_apart, check_writable, differences, take_lock, write_error, write_text
from expertweaver.comparison.results import Cell, cell_from_json
from expertweaver.errors import CheckpointError, Problem
from expertweaver.evaluation.scoring import Score

JOURNAL = "journal.json"
CELLS = "cells"
OUTPUTS = ("comparison.json", "comparison.csv", "comparison.md", "report.html", "quality.svg")
_PLAIN = re.compile(r"[A-Za-z0-9_+-]+")
_ODD = re.compile(r"[^A-Za-z0-9_+=.-]+")


def check_folder(out: Path, *, source: Path) -> None:
    """Refuse a folder that is neither new nor of an earlier comparison, that holds the source, or cannot be made.

    Raises:
        CheckpointError: With the reason.
    """
    check_apart(out, source)
    check_writable(out)
    if out.exists() and not _is_ours(out):
        expected = "a new folder, or that of an earlier comparison"
        raise CheckpointError(Problem(str(out), expected, "something else", "Choose another name."))


class ComparisonFolder:
    """DIR with its journal, its cells and its scratch space, locked while the context is open."""

    def __init__(self, out: Path, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Name the folder; nothing is touched.

        Args:
            out: Where it is or shall be.
            identity: What must be the same for cells to stand in one table.
            overwrite: Remove what an earlier comparison left, and start anew.
        """
        self.out = out
        self.scratch = out / ".scratch"
        self.identity = json.loads(json.dumps(identity))
        self.overwrite = overwrite
        self.lock: IO[str] | None = None

    def __enter__(self) -> ComparisonFolder:
        """Take the folder.

        Raises:
            CheckpointError: It holds another comparison, another run writes it, or it cannot be written.
        """
        try:
            if not self.overwrite:
                self._refuse_another_request()
            self.scratch.mkdir(parents=True, exist_ok=True)
            self.lock = take_lock(self.scratch / "lock", self.out)
            if self.overwrite:
                self._clear()
            write_text(self.out / JOURNAL, json.dumps(self.identity, indent=2, sort_keys=True) + "\n")
        except OSError as error:
            if self.lock is not None:
                self.lock.close()
            if isinstance(error, CheckpointError):
                raise
            raise write_error(self.out, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        if self.lock is not None:
            self.lock.close()

    def find(self, key: tuple[str, float, int | None], options: Mapping[str, Any]) -> Cell | None:
        """A finished cell, if it was computed with just these options; one that cannot be read is computed again."""
        values = _read(self._file(key))
        if values is None or values.get("options") != json.loads(json.dumps(options)):
            return None
        try:
            return cell_from_json(values["cell"])
        except (KeyError, TypeError):
            return None

    def holds(self, key: tuple[str, float, int | None]) -> bool:
        """Whether there is a file for this cell, whatever its options."""
        return self._file(key).exists()

    def save(self, cell: Cell, options: Mapping[str, Any]) -> None:
        """Keep a finished cell; a file that exists is complete."""
        write_text(self._file(cell.key), json.dumps({"options": options, "cell": asdict(cell)}) + "\n")

    def find_shared(self) -> dict[str, Any]:
        """What all cells share: the dense model's scores under 'dense', the pass's seconds under 'seconds'."""
        values = _read(self.out / CELLS / "shared.json") or {}
        if "dense" in values:
            values["dense"] = tuple(Score(**score) for score in values["dense"])
        return values

    def save_shared(self, **values: Any) -> None:
        """Add to what all cells share."""
        merged = {**self.find_shared(), **values}
        if "dense" in merged:
            merged["dense"] = [asdict(score) for score in merged["dense"]]
        write_text(self.out / CELLS / "shared.json", json.dumps(merged) + "\n")

    def scratch_of(self, key: tuple[str, float, int | None]) -> Path:
        """Room for one cell's unfinished work."""
        return self.scratch / self._file(key).stem

    def _file(self, key: tuple[str, float, int | None]) -> Path:
        return self.out / CELLS / f"{slug(*key)}.json"

    def _refuse_another_request(self) -> None:
        file = self.out / JOURNAL
        if not file.exists():
            return
        before = _read(file)
        fix = "Repeat the earlier request, choose another folder, or pass --overwrite to start anew."
        if before is None:
            raise CheckpointError(Problem(str(file), "the record of an earlier comparison", "no JSON object", fix))
        changed = differences(before, self.identity)
        if changed:
            raise CheckpointError(
                *(Problem(f"{self.out}: {key}", f"{a!r}, as begun", f"{b!r}", fix) for key, a, b in changed)
            )

    def _clear(self) -> None:
        shutil.rmtree(self.out / CELLS, ignore_errors=True)
        for entry in self.scratch.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()
        for name in (JOURNAL, *OUTPUTS):
            (self.out / name).unlink(missing_ok=True)


def slug(method: str, mlp_sparsity: float, seed: int | None) -> str:
    """A file name for a cell: readable, and another one for another cell."""
    name = method
    if _PLAIN.fullmatch(method) is None or len(method) > 80:
        name = f"{_ODD.sub('_', method)[:60]}~{hashlib.sha256(method.encode()).hexdigest()[:8]}"
    return f"{name}@{mlp_sparsity:g}" + ("" if seed is None else f"-seed{seed}")


def _is_ours(out: Path) -> bool:
    """Whether a comparison was begun here; one that was killed at once has no more than scratch and half a journal."""
    begun = (".scratch", f"{JOURNAL}.partial")
    return out.is_dir() and ((out / JOURNAL).exists() or all(entry.name in begun for entry in out.iterdir()))


def _read(file: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
