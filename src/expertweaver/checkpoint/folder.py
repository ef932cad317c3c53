"""The output folder: built in OUT.partial, published by one rename, never half there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from expertweaver.errors import CheckpointError, ExpertWeaverError, Problem

JOURNAL = "journal.json"
SCRATCH = ".scratch"
LOCK = "lock"
DISK_UNUSABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Workplace(Protocol):
    """Where a process builds the output, and what it needs only meanwhile."""

    @property
    def partial(self) -> Path:
        """Where the output is built."""
        ...

    @property
    def scratch(self) -> Path:
        """Where this process keeps files of its own meanwhile."""
        ...


class OutputFolder:
    """A folder that appears under its name only when it is complete.

    As a context manager: an input error removes OUT.partial; a crash, a stop or a disk that is full keeps it, and the
    same request continues from there (`resumed` says so). Publishing is the caller's last step. A run that was killed
    after it had published only has its traces removed (`published` says so).
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
        self.partial = partial_folder(out)
        self.scratch = self.partial / SCRATCH
        self.identity = json.loads(json.dumps(identity))
        self.overwrite, self.source = overwrite, source
        self.lock: IO[str] | None = None
        self.is_verified = False
        self.resumed = (self.scratch / JOURNAL).exists()
        self.published = False
        check_target(out, overwrite=overwrite, source=source)

    def __enter__(self) -> OutputFolder:
        try:
            self._finish_publication()
            if not self.published:
                self._take()
        except OSError as error:
            if self.lock is not None:
                self.lock.close()
            if isinstance(error, CheckpointError):
                raise
            raise write_error(self.partial, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = _system_error(error)
        unusable = failure is not None and failure.errno in DISK_UNUSABLE
        is_kept = self.is_verified or self._has_work_to_continue(error)
        try:
            if (isinstance(error, ExpertWeaverError) or unusable) and not is_kept:
                self._discard()
        finally:
            if self.lock is not None:
                self.lock.close()
        if failure is not None and unusable:
            raise write_error(self.partial, failure, is_kept=is_kept) from error

    def publish(self) -> None:
        """Give the finished folder its name; a folder it replaces is removed only afterwards.

        Raises:
            CheckpointError: Something has taken the name since the start; the finished OUT.partial stays.
        """
        self.is_verified = True
        check_target(self.out, overwrite=self.overwrite, source=self.source)
        if not self.out.exists():
            self.partial.rename(self.out)
        else:
            self._replace()
        _remove_traces(self.out, _aside(self.out, self.identity))

    def _replace(self) -> None:
        aside = _aside(self.out, self.identity)
        self.out.rename(aside)
        try:
            self.partial.rename(self.out)
        except BaseException:
            if not self.out.exists():
                aside.rename(self.out)
            raise

    def _take(self) -> None:
        """Lock OUT.partial, and make it that of this request."""
        self._refuse_foreign()
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.lock = take_lock(self.scratch / LOCK, self.partial)
        self._check_journal()
        aside = _aside(self.out, self.identity)
        if aside.exists() and not self.out.exists():  # killed between the two renames of a replacement
            aside.rename(self.out)
        try:  # another run may have published since the first look
            check_target(self.out, overwrite=self.overwrite, source=self.source)
        except CheckpointError:
            if not self.resumed:
                self._discard()
            raise

    def _finish_publication(self) -> None:
        """Remove the traces of a run that was killed after it had published; `published` if it was this request."""
        if not _is_untidy(self.out):
            return
        journal = self.out / SCRATCH / JOURNAL
        before = _read_journal(journal) if journal.exists() else None
        lock = take_lock(self.out / SCRATCH / LOCK, self.out)
        _remove_traces(self.out, _aside(self.out, before))
        lock.close()
        self.published = before == self.identity
        if not self.published:
            check_target(self.out, overwrite=self.overwrite, source=self.source)

    def _has_work_to_continue(self, error: BaseException | None) -> bool:
        """Whether the machine failed and not the input, and there are finished layers or statistics to go on from."""
        cause = error.__cause__ if isinstance(error, ExpertWeaverError) else error
        finished = (file for file in self.scratch.rglob("layer-*") if file.suffix in (".json", ".safetensors"))
        return _system_error(cause) is not None and any(finished)

    def _discard(self) -> None:
        """Remove OUT.partial; without its journal, what a kill leaves of it is never taken for finished work."""
        with contextlib.suppress(OSError):
            (self.scratch / JOURNAL).unlink(missing_ok=True)
            self._clear_leftovers()
            (self.scratch / LOCK).unlink(missing_ok=True)
            self.scratch.rmdir()
            self.partial.rmdir()

    def _refuse_foreign(self) -> None:
        """A folder that happens to be called OUT.partial is not ours to build in, to publish or to remove."""
        if self.partial.is_dir() and not self.scratch.exists() and any(self.partial.iterdir()):
            fix = "Move it away, or choose another output folder."
            where = str(self.partial)
            raise CheckpointError(Problem(where, "a name that is free, or an unfinished run", "another folder", fix))

    def _clear_leftovers(self) -> None:
        """Without a journal nobody knows whose layers these are: the removal of an earlier run was interrupted."""
        for folder in (self.partial, self.scratch):
            _empty(folder, keep=(SCRATCH, LOCK))

    def _check_journal(self) -> None:
        file = self.scratch / JOURNAL
        if not file.exists():
            self._clear_leftovers()
            write_text(file, json.dumps(self.identity, indent=2, sort_keys=True))
            return
        before = _read_journal(file)
        if before != self.identity:
            where = str(self.partial)
            fix = f"Repeat the earlier request to continue it, or remove {self.partial} to start anew."
            raise CheckpointError(
                *(
                    Problem(f"{where}: {key}", f"{a!r}, as begun", f"{b!r}", fix)
                    for key, a, b in differences(before, self.identity)
                )
            )


def _read_journal(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        fix = f"Remove {file.parent.parent} to start anew."
        raise CheckpointError(Problem(str(file), "the record of an unfinished run", str(error), fix)) from error


def _aside(out: Path, identity: Any) -> Path:
    """Where a replaced folder waits until the new one has its name: known to whoever continues this request."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return out.with_name(f"{out.name}.old-{digest[:12]}")


def _is_untidy(out: Path) -> bool:
    """Whether a run published this folder and was killed before it had removed its own traces."""
    scratch = out / SCRATCH
    if not scratch.is_dir() or not (out / "expertweaver" / "manifest.json").is_file():
        return False
    return (scratch / JOURNAL).exists() or not any(scratch.iterdir())


def _remove_traces(out: Path, aside: Path) -> None:
    """Remove what a publication leaves: the replaced folder and the scratch folder, the journal last."""
    shutil.rmtree(aside, ignore_errors=True)
    scratch = out / SCRATCH
    _empty(scratch, keep=(JOURNAL,))
    (scratch / JOURNAL).unlink(missing_ok=True)
    scratch.rmdir()


def _empty(folder: Path, *, keep: tuple[str, ...]) -> None:
    for entry in folder.iterdir():
        if entry.name in keep:
            continue
        with contextlib.suppress(FileNotFoundError):  # a process that helps removes its own meanwhile
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


@dataclass(frozen=True)
class HelperFolder:
    """What a process that helps another to build a folder has of it: a place for files of its own."""

    partial: Path
    scratch: Path


@contextlib.contextmanager
def helper_folder(out: Path, rank: int) -> Iterator[HelperFolder]:
    """Lend a place of its own to a process that only helps; it is gone afterwards, however that process ends.

    On a disk that the leader does not see, the folders around it are removed too.
    """
    partial = partial_folder(out)
    scratch = partial / SCRATCH / f"process-{rank}"
    try:
        yield HelperFolder(partial, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: the leader's
            scratch.parent.rmdir()
            partial.rmdir()


def take_lock(file: Path, folder: Path) -> IO[str]:
    """Lock a folder for this process until the file that this opens is closed.

    Raises:
        CheckpointError: Another process holds the lock.
    """
    lock = file.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        fix = "Wait for the other run, or choose another output folder."
        raise CheckpointError(Problem(str(folder), "no other run", "one that is writing it", fix)) from error
    if not file.exists() or not os.path.samestat(file.stat(), os.fstat(lock.fileno())):
        lock.close()
        fix = "Look at what it left, and repeat the command."
        raise CheckpointError(Problem(str(folder), "no other run", "one that ended this moment", fix))
    return lock


def partial_folder(out: Path) -> Path:
    """Where `out` is built."""
    return out.with_name(out.name + ".partial")


def check_target(out: Path, *, overwrite: bool, source: Path) -> None:
    """Refuse an output folder that exists (unless it may be replaced), would destroy the source or cannot be made."""
    check_apart(out, source)
    taken = (out.exists() or out.is_symlink()) and not _is_untidy(out)
    if taken and not overwrite:
        found = "a folder or file of this name"
        fix = "Choose another name, or pass --overwrite to replace it once the new one is verified."
        raise CheckpointError(Problem(str(out), "a name that is free", found, fix))
    if taken and not _is_replaceable(out):
        fix = "--overwrite replaces model folders only. Choose another name."
        raise CheckpointError(Problem(str(out), "a model folder to replace", "something else", fix))
    check_writable(out)


def check_apart(out: Path, source: Path) -> None:
    """Refuse an output folder without a name, or one that is, holds or lies in the source."""
    if out.name in ("", ".."):
        raise CheckpointError(Problem(str(out), "the name of a new folder", f"'{out}'", "Name the folder to create."))
    target, dense = out.resolve(), source.resolve()
    if target == dense or dense.is_relative_to(target) or target.is_relative_to(dense):
        fix = "Choose a folder beside it."
        raise CheckpointError(
            Problem(str(out), "a folder apart from the source model", f"one in or around {source}", fix)
        )


def check_writable(out: Path) -> None:
    """Refuse an output folder that could not be made."""
    parent = _existing_parent(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        found = "one without write permission" if parent.is_dir() else "a file"
        raise CheckpointError(Problem(str(parent), "a folder that can be written", found, "Choose another place."))


def _existing_parent(out: Path) -> Path:
    return next(parent for parent in out.resolve().parents if parent.exists())


def _is_replaceable(out: Path) -> bool:
    """Whether a folder is a model or empty; a config.json alone does not make a model."""
    if not out.is_dir():
        return False
    return ((out / "config.json").exists() and any(out.glob("*.safetensors"))) or not any(out.iterdir())


def check_space(out: Path, needed: int) -> None:
    """Refuse to start where the disk has less room than the output needs; an unfinished run's files count as room."""
    parent = _existing_parent(out)
    begun = sum(file.stat().st_size for file in partial_folder(out).rglob("*") if file.is_file())
    free = shutil.disk_usage(parent).free + begun
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


def differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys on which two requests differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [d for k in keys for d in differences(before.get(k), now.get(k), f"{key}.{k}".lstrip("."))]
    return [] if before == now else [(key, before, now)]


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind an exception; safetensors keeps only its text, in a class of its own."""
    from safetensors import SafetensorError

    if isinstance(error, OSError):
        return error
    match = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return OSError(int(match[1]), os.strerror(int(match[1]))) if match else None


def write_error(where: Path, error: OSError, *, is_kept: bool = False) -> CheckpointError:
    """What to say of a folder that the system does not let us write; `is_kept`: with finished work in it."""
    found = f"{error.strerror or error}"
    fix = "Free space or change the path."
    if is_kept:
        fix = f"Free space and repeat the command: finished work is kept. Or remove {where}."
    return CheckpointError(Problem(str(where), "a folder that can be written", found, fix))
