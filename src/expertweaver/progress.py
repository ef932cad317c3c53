"""How long work tells where it is; silent unless somebody gives a talkative one (the command line does)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Hears of stages and notes, and says nothing."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """Open a stage of `total` steps; call what it gives after each step."""
        yield lambda: None

    def note(self, message: str) -> None:
        """Hear a remark the user should see, such as a warning."""


SILENT = Progress()
