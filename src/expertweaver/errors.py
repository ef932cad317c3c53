"""Every error a user can cause: where it is, what was expected, what was found, what to do.

The classes also derive from the nearest builtin, so that `except ValueError` and `except OSError` keep
working. Exit codes of the command line: 0 ok, 2 recipe or usage, 3 input unusable, 4 verification failed,
130 stopped by the user, 143 ended by SIGTERM, 1 a bug.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the four parts that let its reader mend it."""

    where: str
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}. {self.fix}"


class ExpertWeaverError(Exception):
    """Base of all errors that are not bugs; carries one or several problems."""

    exit_code: ClassVar[int] = 3

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        return "\n".join(f"{i}. {problem}" for i, problem in enumerate(self.problems, start=1))


class RecipeError(ExpertWeaverError, ValueError):
    """The request itself is wrong: an unknown key, a value out of range, an impossible budget."""

    exit_code = 2


class PartitionError(ExpertWeaverError, ValueError):
    """The neurons cannot be divided as asked."""

    exit_code = 2


class ArchitectureError(ExpertWeaverError, ValueError):
    """The model is of a kind that cannot be converted, or not into the format asked for."""


class CheckpointError(ExpertWeaverError, OSError):
    """A model folder cannot be read or written as it should be."""


class CalibrationError(ExpertWeaverError, ValueError):
    """The calibration or evaluation text is missing, unreadable or too short."""


class VerificationError(ExpertWeaverError, RuntimeError):
    """The converted checkpoint does not compute what it must; nothing was published."""

    exit_code = 4


class Attempts:
    """Runs checks and keeps what they find wrong, so that all of it is told at once."""

    def __init__(self) -> None:
        self.errors: list[ExpertWeaverError] = []

    def __call__(self, check: Callable[[], T]) -> T | None:
        """What the check gives; None where it fails."""
        try:
            return check()
        except ExpertWeaverError as error:
            self.errors.append(error)
            return None

    def finish(self) -> None:
        """Raise every problem found, as an error of the kind of the first."""
        if self.errors:
            raise type(self.errors[0])(*(problem for error in self.errors for problem in error.problems))


def shortened(text: str, limit: int = 500) -> str:
    """A text for a message: its beginning, and how much more there is."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit:,} more characters)"


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Names for a message: the first few, and how many more there are."""
    everything = list(names)
    more = len(everything) - limit
    return ", ".join(shortened(name, 200) for name in everything[:limit]) + (f" and {more} more" if more > 0 else "")
