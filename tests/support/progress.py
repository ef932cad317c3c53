"""A Progress that remembers what it was told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from expertweaver.progress import Progress


class RecordingProgress(Progress):
    """Remembers stages with their totals, the number of steps taken, and notes."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.steps = 0
        self.notes: list[str] = []

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        self.stages.append((title, total))
        yield self._step

    def note(self, message: str) -> None:
        self.notes.append(message)

    def _step(self) -> None:
        self.steps += 1
