from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from expertweaver import machine

STEP = 200_000_000


def test_the_peak_is_forgotten_and_grows_again() -> None:
    if not machine.forget_peak_memory():
        pytest.skip("this system does not forget")
    before = machine.peak_memory()
    block = torch.ones(STEP // 4)
    during = machine.peak_memory()
    del block
    assert machine.peak_memory() == pytest.approx(during, rel=0.01), "a peak stays"
    assert machine.forget_peak_memory()
    after = machine.peak_memory()
    assert before is not None
    assert during is not None
    assert after is not None
    assert during - before > 0.9 * STEP
    assert during - after > 0.9 * STEP


def test_nobody_tells_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROCESS", tmp_path / "none")
    assert machine.peak_memory() is None
    assert machine.forget_peak_memory() is False


def test_the_processor_is_told_by_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(
        "model name\t: A Chip @ 2: fast\nflags\t\t: fpu avx2 avx512f sse\nflags\t\t: none\n", encoding="utf-8"
    )
    monkeypatch.setattr(machine, "CPU_INFO", file)
    assert machine.cpu_name() == "A Chip @ 2: fast"
    assert machine.cpu_features() == ["avx2", "avx512f"]


def test_other_systems_tell_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "none")
    assert machine.cpu_name()
    assert machine.cpu_features() == []


def test_freed_memory_goes_back_to_the_system() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim") or not machine.forget_peak_memory():
        pytest.skip("no glibc, or no Linux")
    blocks = [bytearray(64_000) for _ in range(STEP // 64_000)]
    last = bytearray(64_000)  # lies above the others, so the C library keeps what is freed below it
    del blocks
    assert machine.forget_peak_memory()
    kept = machine.peak_memory()
    machine.return_freed_memory()
    assert machine.forget_peak_memory()
    left = machine.peak_memory()
    assert last is not None
    assert kept is not None
    assert left is not None
    assert kept - left > 0.9 * STEP


def test_the_c_library_is_told_to_keep_little(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[int, int] = {}
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=told.__setitem__))
    machine.hold_little_freed_memory()
    assert told == {-3: 16 << 20, -1: 8 << 20}
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: SimpleNamespace())
    machine.hold_little_freed_memory()  # another C library has no such call
