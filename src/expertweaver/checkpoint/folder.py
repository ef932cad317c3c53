"""The output folder: built in OUT.partial, published by one rename, never half there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from expertweaver.errors import CheckpointError, ExpertWeaverError, Problem

JOURNAL = "journal.json"


class OutputFolder:
    """A folder that appears under its name only when it is complete.

    As a context manager: an input error removes OUT.partial; a crash or a stop keeps it, and the same request
    continues from there (`resumed` says so). Publishing is the caller's last step.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], *, overwrite: bool, source: Path) -> None:
        """Check the target, without touching it.

        Args:
            out: Where the result shall be.
            identity: What makes a continued run the same run: recipe, source and calibration fingerprints, versions.
            overwrite: Whether an existing `out` may be replaced, after the new one is verified.
            source: The dense model's folder, which must survive.

        Raises:
            CheckpointError: `out` exists, holds or lies in the source, or cannot be written.
        """
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self.scratch = self.partial / ".scratch"
        self.identity = dict(identity)
        self.overwrite = overwrite
        self.lock: IO[str] | None = None
        self.resumed = (self.scratch / JOURNAL).exists()
        check_target(out, overwrite=overwrite, source=source)

    def __enter__(self) -> OutputFolder:
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._check_journal()
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise _write_error(self.partial, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if isinstance(error, ExpertWeaverError) or full:
            shutil.rmtree(self.partial, ignore_errors=True)
        if self.lock is not None:
            self.lock.close()
        if full and isinstance(error, OSError):
            raise _write_error(self.partial, error) from error

    def publish(self) -> None:
        """Give the finished folder its name; a folder it replaces is removed only afterwards."""
        shutil.rmtree(self.scratch)
        old = self.out.with_name(self.out.name + ".old")
        if self.out.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.out.rename(old)
        self.partial.rename(self.out)
        shutil.rmtree(old, ignore_errors=True)

    def _take_lock(self) -> None:
        self.lock = (self.scratch / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.lock.close()
            fix = "Wait for the other run, or choose another output folder."
            raise CheckpointError(Problem(str(self.partial), "no other run", "one that is writing it", fix)) from error

    def _check_journal(self) -> None:
        file = self.scratch / JOURNAL
        if not file.exists():
            write_text(file, json.dumps(self.identity, indent=2, sort_keys=True))
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(self.identity))
        if before != now:
            where = str(self.partial)
            fix = f"Repeat the earlier request to continue it, or remove {self.partial} to start anew."
            differences = _differences(before, now)
            raise CheckpointError(
                *(Problem(f"{where}: {key}", f"{a!r}, as begun", f"{b!r}", fix) for key, a, b in differences)
            )


def check_target(out: Path, *, overwrite: bool, source: Path) -> None:
    """Refuse an output folder that exists (unless it may be replaced) or would destroy the source."""
    target, dense = out.resolve(), source.resolve()
    if target == dense or dense.is_relative_to(target) or target.is_relative_to(dense):
        fix = "Choose a folder beside it."
        raise CheckpointError(
            Problem(str(out), "a folder apart from the source model", f"one in or around {source}", fix)
        )
    if out.exists() and not overwrite:
        found = "a folder or file of this name"
        fix = "Choose another name, or pass --overwrite to replace it once the new one is verified."
        raise CheckpointError(Problem(str(out), "a name that is free", found, fix))
    if out.exists() and not (out / "config.json").exists() and (not out.is_dir() or any(out.iterdir())):
        fix = "--overwrite replaces model folders only. Choose another name."
        raise CheckpointError(Problem(str(out), "a model folder to replace", "something else", fix))


def check_space(out: Path, needed: int) -> None:
    """Refuse to start where the disk has less room than the output needs."""
    parent = next(p for p in out.resolve().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        found = f"{free / 1e9:.2f} GB free"
        raise CheckpointError(Problem(str(parent), f"{needed / 1e9:.2f} GB of disk space", found, "Free some space."))


def write_text(file: Path, text: str) -> None:
    """Write a small file beside and rename it, so that it is complete or absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def _differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{key}.{k}".lstrip("."))]
    return [] if before == now else [(key, before, now)]


def _write_error(where: Path, error: OSError) -> CheckpointError:
    found = f"{error.strerror or error}"
    return CheckpointError(Problem(str(where), "a folder that can be written", found, "Free space or change the path."))
