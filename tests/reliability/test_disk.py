"""Disks that are full, cannot be written, or lose the source: real ones, as small file systems in memory."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Bench, Complaint, check_complaint, refusal, run
from support.kills import fork, wait
from support.models import BODY_SHARD, split_shards

from expertweaver.checkpoint import shards

NEW_NAMESPACE, NEW_USER = 0x00020000, 0x10000000
PRIVATE, RECURSIVE, READ_ONLY, REMOUNT = 1 << 18, 1 << 14, 1, 32
Usage = namedtuple("Usage", "total used free")


def mount(place: Path, size: str, flags: int = 0) -> None:
    """Put a small file system in memory there, seen by this process only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", flags, f"size={size}".encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def leave_namespace() -> None:
    """Let mounts of this process be its own, as root or as anybody."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_NAMESPACE) != 0:
        if libc.unshare(NEW_NAMESPACE | NEW_USER) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text, encoding="utf-8")
    if libc.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def on_small_disk(tmp_path: Path, work: Callable[[Path], dict[str, Any]], size: str) -> dict[str, Any]:
    """Do something in a process that sees a small disk; skipped, with the reason, where no mount is permitted."""
    place, answer = tmp_path / "disk", tmp_path / "answer.json"
    place.mkdir()

    def child() -> None:
        try:
            leave_namespace()
            mount(place, size)
        except OSError as error:
            answer.write_text(json.dumps({"skip": str(error)}), encoding="utf-8")
            return
        answer.write_text(json.dumps(work(place)), encoding="utf-8")

    code = wait(fork(child, tmp_path / "log.txt"))
    assert code == 0, (tmp_path / "log.txt").read_text("utf-8")
    found = json.loads(answer.read_text("utf-8"))
    if "skip" in found:
        pytest.skip(f"no file system of its own may be mounted here: {found['skip']}")
    return found


def attempt(bench: Bench, out: Path) -> dict[str, Any]:
    """Convert into a folder of another disk; what it said and what lies there then."""
    arguments = bench.arguments("--json")
    arguments[2] = out
    result = run(*arguments)
    return {
        "code": result.exit_code,
        "answer": json.loads(result.stdout) if result.exit_code else {},
        "stderr": result.stderr,
        "there": sorted(path.name for path in out.parent.iterdir()),
    }


def test_a_disk_that_fills_up_keeps_finished_work_and_a_larger_one_finishes_it(bench: Bench, tmp_path: Path) -> None:
    """A real full disk of 300 kB: the report alone is larger. That there was room at the start is the only pretence."""

    def work(place: Path) -> dict[str, Any]:
        shutil.disk_usage = lambda path: Usage(10**12, 0, 10**12)
        full = attempt(bench, place / "sparse")
        mount(place, "40m", REMOUNT)
        return {"full": full, "larger": attempt(bench, place / "sparse")}

    found = on_small_disk(tmp_path, work, "300k")
    full, larger = found["full"], found["larger"]
    assert full["code"] == 3
    [problem] = full["answer"]["problems"]
    words = Complaint("sparse.partial", "a folder that can be written", "No space left", "finished work is kept")
    check_complaint(problem, words)
    assert full["there"] == ["sparse.partial"]
    assert larger["code"] == 0, larger
    assert "continuing the run" in larger["stderr"]
    assert larger["there"] == ["sparse"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(bench: Bench, tmp_path: Path) -> None:
    found = on_small_disk(tmp_path, lambda place: attempt(bench, place / "sparse"), "300k")
    assert found["code"] == 3
    [problem] = found["answer"]["problems"]
    check_complaint(problem, Complaint("disk", "GB of disk space", "0.00 GB free", "Free some space"))
    assert found["there"] == []


def test_a_disk_that_cannot_be_written_is_refused(bench: Bench, tmp_path: Path) -> None:
    def work(place: Path) -> dict[str, Any]:
        mount(place, "300k", REMOUNT | READ_ONLY)
        return attempt(bench, place / "sparse")

    found = on_small_disk(tmp_path, work, "40m")
    assert found["code"] == 3
    [problem] = found["answer"]["problems"]
    check_complaint(problem, Complaint("disk", "a folder that can be written", "without write", "another place"))
    assert found["there"] == []


def test_a_source_file_that_vanishes_is_named_and_finished_work_goes_on_when_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    split_shards(bench.source)
    away = bench.folder / BODY_SHARD

    def vanish(file: Path, tensors: Any) -> None:
        shards.write_shard(file, tensors)
        if "00003" in file.name:
            (bench.source / BODY_SHARD).rename(away)

    with monkeypatch.context() as context:
        context.setattr("expertweaver.checkpoint.writer.write_shard", vanish)
        _, [problem] = refusal(bench.convert("--json"), 3)
    check_complaint(problem, Complaint(BODY_SHARD, "a readable shard", "No such file", "Copy or download"))
    assert bench.ours == [bench.partial.name]
    away.rename(bench.source / BODY_SHARD)
    again = bench.convert()
    assert again.exit_code == 0, again.output
    assert "continuing the run" in again.stderr


def test_the_plan_states_the_space_for_the_result_and_for_the_run(bench: Bench) -> None:
    values = json.loads(run("plan", bench.source, bench.out, "--num-slices", "8", "--json").stdout)
    assert bench.convert("--json").exit_code == 0
    written = sum(file.stat().st_size for file in bench.out.rglob("*") if file.is_file())
    assert values["output_bytes"] + values["record_bytes"] >= written
    assert values["scratch_bytes"] > 0
    text = run("plan", bench.source, "--num-slices", "8").stdout
    assert "MB meanwhile" in text
