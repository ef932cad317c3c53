"""Places where the output cannot go, and disks that fail: nothing half-written, nothing of anybody's destroyed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from support.commands import Bench, Complaint, check_complaint, hashes, refusal, run
from support.models import edit_tensors, read_tensor

from expertweaver.checkpoint import shards

FREE = Complaint("sparse", "a name that is free", "a folder or file of this name", "pass --overwrite")
NOT_A_MODEL = Complaint("sparse", "a model folder to replace", "something else", "replaces model folders only")
FOREIGN = Complaint("sparse.partial", "a name that is free, or an unfinished run", "another folder", "Move it away")
Usage = namedtuple("Usage", "total used free")


def refuse(bench: Bench, complaint: Complaint, *more: str | Path, exit_code: int = 3) -> None:
    """Run a conversion that must be refused with one problem."""
    _, [problem] = refusal(bench.convert("--json", *more), exit_code)
    check_complaint(problem, complaint)


def a_file(out: Path) -> None:
    out.write_text("mine", encoding="utf-8")


def a_folder_of_photos(out: Path) -> None:
    out.mkdir()
    (out / "photo.jpg").write_bytes(b"mine")


def a_project_with_a_config(out: Path) -> None:
    a_folder_of_photos(out)
    (out / "config.json").write_text("{}", encoding="utf-8")


def a_dangling_link(out: Path) -> None:
    out.symlink_to(out.with_name("nowhere"))


OCCUPANTS = (a_file, a_folder_of_photos, a_project_with_a_config, a_dangling_link)


@pytest.mark.parametrize("occupy", OCCUPANTS)
def test_what_is_no_model_is_never_replaced(occupy: Callable[[Path], None], bench: Bench) -> None:
    occupy(bench.out)
    before = hashes(bench.folder)
    refuse(bench, FREE)
    refuse(bench, NOT_A_MODEL, "--overwrite")
    refuse(bench, NOT_A_MODEL, "--overwrite", "--dry-run")
    assert hashes(bench.folder) == before
    assert bench.ours == [bench.out.name]


def test_a_model_is_not_replaced_unless_asked(bench: Bench) -> None:
    bench.earlier.rename(bench.out)
    before = hashes(bench.folder)
    refuse(bench, FREE)
    refuse(bench, FREE, "--dry-run")
    assert hashes(bench.folder) == before


def test_an_empty_folder_is_replaced_when_asked(bench: Bench) -> None:
    bench.out.mkdir()
    refuse(bench, FREE)
    assert bench.convert("--overwrite").exit_code == 0
    assert (bench.out / "config.json").exists()


@pytest.mark.parametrize("place", ["dense", "dense/sparse", "."])
def test_the_source_is_never_written_to(place: str, bench: Bench) -> None:
    before = hashes(bench.folder)
    arguments = bench.arguments("--json", "--overwrite")
    arguments[2] = bench.folder / place
    _, [problem] = refusal(run(*arguments), 3)
    check_complaint(problem, Complaint("", "apart from the source model", "one in or around", "beside it"))
    assert hashes(bench.folder) == before


def test_a_source_that_is_called_like_the_unfinished_output_survives(bench: Bench) -> None:
    source = bench.source.rename(bench.partial)
    before = hashes(bench.folder)
    arguments = bench.arguments("--json")
    arguments[1] = source
    _, [problem] = refusal(run(*arguments), 3)
    check_complaint(problem, FOREIGN)
    assert hashes(bench.folder) == before


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_the_output_needs_a_name(name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.earlier)
    before = hashes(bench.folder)
    arguments = bench.arguments("--json", "--overwrite")
    arguments[2] = name
    _, [problem] = refusal(run(*arguments), 3)
    check_complaint(problem, Complaint(name, "the name of a new folder", name, "Name the folder"))
    assert hashes(bench.folder) == before


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_the_place_must_be_a_folder(dry_run: list[str], bench: Bench) -> None:
    arguments = bench.arguments("--json", *dry_run)
    arguments[2] = bench.text / "sparse"
    _, [problem] = refusal(run(*arguments), 3)
    check_complaint(problem, Complaint("text.jsonl", "a folder that can be written", "a file", "another place"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_the_place_must_be_writable(bench: Bench) -> None:
    place = bench.folder / "locked"
    place.mkdir(mode=0o500)
    arguments = bench.arguments("--json")
    arguments[2] = place / "sparse"
    _, [problem] = refusal(run(*arguments), 3)
    check_complaint(problem, Complaint("locked", "can be written", "without write permission", "another place"))


def test_a_folder_that_happens_to_be_called_partial_survives(bench: Bench) -> None:
    bench.earlier.rename(bench.partial)
    before = hashes(bench.folder)
    refuse(bench, FOREIGN)
    assert hashes(bench.folder) == before
    assert not bench.out.exists()


def test_a_folder_that_happens_to_be_called_old_survives_a_replacement(bench: Bench) -> None:
    shutil.copytree(bench.earlier, bench.out)
    old = bench.earlier.rename(bench.folder / "sparse.old")
    before = hashes(old)
    assert bench.convert("--overwrite").exit_code == 0
    assert hashes(old) == before
    assert bench.ours == ["sparse", "sparse.old"]


def test_a_second_run_into_the_same_output_is_refused_and_the_first_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def start_another(file: Path, tensors: Any) -> None:
        if not seen:
            seen.append(bench.convert("--json"))
            seen.append(hashes(bench.partial))
        shards.write_shard(file, tensors)

    monkeypatch.setattr("expertweaver.checkpoint.writer.write_shard", start_another)
    first = bench.convert()
    assert first.exit_code == 0, first.output
    _, [problem] = refusal(seen[0], 3)
    check_complaint(
        problem, Complaint("sparse.partial", "no other run", "one that is writing it", "Wait for the other")
    )
    assert any("journal.json" in name for name in seen[1]), "the second run removed the work of the first"


def begin(bench: Bench, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Begin a run and stop it before its first shard."""
    with monkeypatch.context() as context:
        context.setattr("expertweaver.checkpoint.writer.write_shard", stop)
        assert bench.convert(*more).exit_code == 130
    assert bench.ours == [bench.partial.name]


def stop(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_an_unfinished_run_of_another_request_is_kept_and_the_difference_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(bench, monkeypatch)
    before = hashes(bench.partial)
    refuse(
        bench,
        Complaint("recipe.budget.mlp_sparsity", "0.25, as begun", "0.5", f"or remove {bench.partial}"),
        *("--mlp-sparsity", "0.5"),
    )
    assert hashes(bench.partial) == before
    assert bench.convert().exit_code == 0


def test_an_unfinished_run_from_other_text_is_not_continued(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(bench, monkeypatch)
    with bench.text.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"text": "another document of some length"}))
    refuse(bench, Complaint("sparse.partial: calibration", "as begun", "'", "or remove"))


def test_an_unfinished_run_is_not_continued_with_other_weights_of_the_same_shapes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(bench, monkeypatch)
    name = "model.layers.0.mlp.gate_proj.weight"
    edit_tensors(bench.source, {name: 2 * read_tensor(bench.source, name)})
    refuse(bench, Complaint("sparse.partial: source_files.model.safetensors", "as begun", "[", "or remove"))


def test_a_damaged_journal_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(bench, monkeypatch)
    (bench.partial / ".scratch" / "journal.json").write_text("{", encoding="utf-8")
    refuse(bench, Complaint("journal.json", "the record of an unfinished run", "line 1", f"Remove {bench.partial}"))


def test_the_lock_is_free_after_a_refusal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(bench, monkeypatch)
    bench.convert("--mlp-sparsity", "0.5")
    with (bench.partial / ".scratch" / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_disk_that_is_too_small_is_known_before_the_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    words = Complaint(str(bench.folder), "GB of disk space", "0.00 GB free", "Free some space")
    refuse(bench, words)
    refuse(bench, words, "--dry-run")
    assert bench.ours == []


DISK_ERRORS = (
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError(errno.EROFS, "Read-only file system"),
)


WRITERS = ("calibration.statistics.save_file", "checkpoint.writer.write_shard", "checkpoint.finished.write_shard")


@pytest.mark.parametrize("error", DISK_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("writer", [*WRITERS, "conversion.write_text"])
def test_a_disk_that_fails_while_writing_costs_finished_work_only_where_there_is_none(
    error: Exception, writer: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        assert bench.partial.exists()
        raise error

    bench.earlier.rename(bench.out)
    before = hashes(bench.out)
    is_kept = writer != WRITERS[0]
    reason = "Read-only file system" if "Read-only" in str(error) else "No space left on device"
    fix = f"finished work is kept. Or remove {bench.partial}" if is_kept else "Free space or change the path"
    with monkeypatch.context() as context:
        context.setattr(f"expertweaver.{writer}", fail)
        refuse(bench, Complaint("sparse.partial", "a folder that can be written", reason, fix), "--overwrite")
    assert bench.ours == [bench.out.name, bench.partial.name][: 1 + is_kept]
    assert hashes(bench.out) == before
    again = bench.convert("--overwrite")
    assert again.exit_code == 0
    assert ("continuing the run" in again.stderr) == is_kept
    assert bench.ours == [bench.out.name]


def test_space_for_hidden_states_is_taken_before_they_are_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        assert length > 0
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("expertweaver.calibration.capture.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    refuse(bench, Complaint("sparse.partial", "can be written", "No space left", "Free space"))
    assert bench.ours == []


def test_an_overwrite_that_fails_keeps_the_old_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.earlier.rename(bench.out)
    before = hashes(bench.out)
    monkeypatch.setattr("expertweaver.checkpoint.verify.MAX_LAYER_ERROR", -1.0)
    refuse(bench, Complaint("", "at most -1", "", "Nothing was published"), "--overwrite", exit_code=4)
    assert hashes(bench.out) == before
    assert bench.ours == [bench.out.name]


def test_an_overwrite_that_cannot_be_renamed_gives_the_old_model_its_name_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.earlier.rename(bench.out)
    before = hashes(bench.out)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self == bench.partial:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    assert isinstance(bench.convert("--overwrite").exception, OSError)
    assert hashes(bench.out) == before
    assert bench.ours == [bench.out.name, bench.partial.name]


def test_files_that_are_folders_do_not_stop_a_conversion(bench: Bench) -> None:
    (bench.source / "LICENSES").mkdir()
    (bench.source / "LICENSE").write_text("terms", encoding="utf-8")
    assert bench.convert().exit_code == 0
    assert (bench.out / "LICENSE").read_text("utf-8") == "terms"
