"""Running the command line inside the test, and what a refused request must leave behind: nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.families import save_text
from support.models import tiny_llama
from typer.testing import CliRunner, Result

from expertweaver.cli.app import app
from expertweaver.cli.output import printable

NUM_SLICES = 8
SETTINGS = {"calibration.sequence_length": 16, "calibration.num_samples": 16}
PARTS = ("where", "expected", "found", "fix")


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
    def earlier(self) -> Path:
        """A model folder of somebody's, to be put where the output would go."""
        return self.folder / "earlier"

    @property
    def out(self) -> Path:
        """Where the result goes."""
        return self.folder / "sparse"

    @property
    def partial(self) -> Path:
        """Where the result is built."""
        return self.folder / "sparse.partial"

    @property
    def ours(self) -> list[str]:
        """Everything in the folder whose name starts with that of the output."""
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith(self.out.name))

    def arguments(self, *more: str | Path, verb: str = "convert") -> list[str | Path]:
        """A request that works and takes a moment; `more` comes last and wins."""
        settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
        text = [] if "--calibration" in more else ["--calibration", self.text]
        method = [] if {"--method", "--preset", "--recipe"} & set(more) else ["--method", "expertweaver"]
        return [verb, self.source, self.out, *text, "--num-slices", str(NUM_SLICES), *settings, *method, *more]

    def convert(self, *more: str | Path) -> Result:
        """Run `expertweaver convert`."""
        return run(*self.arguments(*more))


def make_template(folder: Path) -> Path:
    """Save what every bench starts from."""
    tiny_llama(folder / "dense")
    save_text(folder / "text.jsonl")
    shutil.copytree(folder / "dense", folder / "earlier")
    (folder / "earlier" / "notes.txt").write_text("mine", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Complaint:
    """The parts of a message: words that `where`, `expected`, `found` and `fix` must contain."""

    where: str
    expected: str
    found: str
    fix: str


@dataclass(frozen=True)
class Case:
    """A way to spoil a bench, or arguments to add, and how the request must be refused.

    In `arguments`, BENCH stands for the bench's folder. `planned` says that `--dry-run` refuses in the same words:
    all that is decidable before a weight or a text is read.
    """

    name: str
    complaints: Complaint | tuple[Complaint, ...]
    spoil: Callable[[Bench], Any] = lambda bench: None
    arguments: tuple[str, ...] = ()
    error: str = "CheckpointError"
    exit_code: int = 3
    planned: bool = True


def bad_request(
    name: str,
    complaints: Complaint | tuple[Complaint, ...],
    *arguments: str,
    spoil: Callable[[Bench], Any] = lambda bench: None,
) -> Case:
    """A request that is wrong in itself, whatever the model and the text are."""
    return Case(name, complaints, spoil, arguments, error="RecipeError", exit_code=2)


def check_refused(case: Case, bench: Bench) -> None:
    """Run a case without an output, with one that it may replace, and as a plan; nothing may be left or changed."""
    case.spoil(bench)
    more = [argument.replace("BENCH", str(bench.folder)) for argument in case.arguments]
    _check_messages(case, bench.convert("--json", *more))
    assert bench.ours == [], "something was left behind"
    bench.earlier.rename(bench.out)
    before = hashes(bench.out)
    _check_messages(case, bench.convert("--json", "--overwrite", *more))
    assert hashes(bench.out) == before, "the earlier output was touched"
    assert bench.ours == [bench.out.name], "something was left behind"
    if case.planned:
        _check_messages(case, bench.convert("--json", "--overwrite", "--dry-run", *more))


def _check_messages(case: Case, result: Result) -> None:
    error, problems = refusal(result, case.exit_code)
    complaints = case.complaints if isinstance(case.complaints, tuple) else (case.complaints,)
    assert error == case.error
    assert len(problems) == len(complaints), problems
    for problem, complaint in zip(problems, complaints, strict=True):
        check_complaint(problem, complaint)


def check_complaint(problem: dict[str, str], complaint: Complaint) -> None:
    """Find the words of a complaint in the parts of a problem."""
    for part in PARTS:
        words = getattr(complaint, part)
        assert words in problem[part], f"'{words}' is not in the part '{part}' of {problem}"


def refusal(result: Result, exit_code: int) -> tuple[str, list[dict[str, str]]]:
    """Class of error and problems of a command that was run with --json and refused; a traceback fails the test."""
    assert isinstance(result.exception, SystemExit), f"not refused but {result.exception!r}\n{result.output}"
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    answer = json.loads(result.stdout)
    problems: list[dict[str, str]] = answer["problems"]
    assert f"{answer['error']}: " in result.stderr
    for problem in problems:
        assert tuple(problem) == PARTS
        assert all(problem.values()), f"a part is empty: {problem}"
        assert printable("{where}: expected {expected}, found {found}. {fix}".format(**problem)) in result.stderr
    return answer["error"], problems


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
