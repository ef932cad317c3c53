from __future__ import annotations

from pathlib import Path

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
