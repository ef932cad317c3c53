"""Running the command line inside the test, and what a refused request must leave behind: nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from expertweaver.cli.app import app

NUM_SLICES = 8
SETTINGS = {"calibration.sequence_length": 16, "calibration.num_samples": 16}


def run(*arguments: str | Path) -> Result:
    """Run `expertweaver` with these arguments in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@dataclass(frozen=True)
class Bench:
    """A model, a text and a place for the output, all good until a test spoils one of them."""

    folder: Path

    @property
    def source(self) -> Path:
        """The dense model."""
        return self.folder / "dense"

    @property
    def text(self) -> Path:
        """Calibration text."""
        return self.folder / "text.jsonl"

    @property
    def out(self) -> Path:
        """Where the result goes."""
        return self.folder / "sparse"

    @property
    def partial(self) -> Path:
        """Where the result is built."""
        return self.folder / "sparse.partial"

    def arguments(self, *more: str | Path, verb: str = "convert") -> list[str | Path]:
        """A request that works and takes a second; `more` comes last and wins."""
        settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
        chosen = ["--calibration", self.text, "--num-slices", str(NUM_SLICES), *settings]
        return [verb, self.source, self.out, *chosen, *more]

    def convert(self, *more: str | Path) -> Result:
        """Run `expertweaver convert`."""
        return run(*self.arguments(*more))

    def keep_earlier_output(self) -> dict[str, str]:
        """Put a model folder of somebody's where the output would go; returns its hashes."""
        shutil.copytree(self.source, self.out)
        (self.out / "notes.txt").write_text("mine", encoding="utf-8")
        return hashes(self.out)


@dataclass(frozen=True)
class Complaint:
    """The parts of a message: words that `where`, `expected`, `found` and `fix` must contain."""

    where: str
    expected: str
    found: str
    fix: str

    def is_made_by(self, problem: dict[str, str]) -> bool:
        """Whether a problem says all this."""
        return all(words.lower() in problem[part].lower() for part, words in vars(self).items())


@dataclass(frozen=True)
class Refusal:
    """How a request is refused: the exit code, the class of error and every problem."""

    exit_code: int
    error: str
    problems: list[dict[str, str]] = field(default_factory=list)


def refusal(result: Result) -> Refusal:
    """Read the refusal of a command that was run with --json; a traceback fails the test."""
    assert isinstance(result.exception, SystemExit), f"not refused but {result.exception!r}\n{result.output}"
    assert "Traceback" not in result.output
    assert result.exit_code, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    problems: list[dict[str, str]] = answer["problems"]
    assert result.stderr.startswith(f"{answer['error']}: ")
    for problem in problems:
        assert list(problem) == ["where", "expected", "found", "fix"]
        assert all(problem.values()), f"a part is empty: {problem}"
        said = f"{problem['where']}: expected {problem['expected']}, found {problem['found']}. {problem['fix']}"
        assert said in result.stderr
    return Refusal(result.exit_code, answer["error"], problems)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
