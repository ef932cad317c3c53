"""Kill a conversion again and again, continue it, and compare every file with an uninterrupted run.

    python benchmarks/kill_harness.py --kills 50 --seed 0

converts a small random Llama by `weave` (layer after layer, with its repair) and by `expertweaver` (statistics first),
into a new folder and over an older model, in real processes with process groups of their own. Each attempt may be ended
by SIGKILL or SIGTERM at a random time, at a random call that makes, renames or removes a file or folder (the last ones
are the publication), or inside the verification; the attempts after the first continue, so they are killed while
continuing. After up to --kills-each kills a run is let through, and all its files but the one with times are compared.
After every kill OUT must be absent, the older model, or the finished result. `--source MODEL` converts another model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.commands import run
from support.kills import (
    Attempt,
    Kill,
    Workplace,
    count_calls,
    differences,
    make_workplace,
    random_kill,
    result_of,
)

METHODS = ("weave", "expertweaver")
GRACEFUL = 143
"""Exit code after SIGTERM."""


@dataclass
class Summary:
    """What happened."""

    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    resumes: int = 0
    runs: int = 0
    files_compared: int = 0
    differences: list[str] = field(default_factory=list)
    broken_targets: list[str] = field(default_factory=list)
    odd_endings: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        """Processes that were ended by a signal."""
        return sum(self.kills.values())

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, torn or ended oddly."""
        return not (self.differences or self.broken_targets or self.odd_endings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-each", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path, help="a model folder; default: a random Llama of 4 layers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workplace = make_workplace(Path(folder))
        if args.source is not None:
            workplace = Workplace(workplace.folder, args.source.resolve())
        summary = kill_and_continue(workplace, kills=args.kills, kills_each=args.kills_each, seed=args.seed)
    print_summary(summary)
    sys.exit(0 if summary.is_good else 1)


def kill_and_continue(workplace: Workplace, *, kills: int, kills_each: int, seed: int) -> Summary:
    """Begin runs, kill and continue them until so many kills have hit."""
    generator, summary = random.Random(seed), Summary()
    references = {method: _reference(workplace, method) for method in METHODS}
    older = workplace.folder / "older"
    while summary.num_kills < kills:
        method, over = generator.choice(METHODS), generator.random() < 0.5
        place = workplace.folder / f"run-{summary.runs}"
        place.mkdir()
        _one_run(workplace, place, references[method], generator, summary, older if over else None, kills_each)
        summary.runs += 1
    return summary


@dataclass(frozen=True)
class _Reference:
    method: str
    files: dict[str, str]
    seconds: float
    calls: int


def _reference(workplace: Workplace, method: str) -> _Reference:
    """An uninterrupted run in this process, which also imports everything that a run needs; then two timed ones."""
    out = workplace.folder / f"whole-{method}" / "sparse"
    out.parent.mkdir()
    result = run(*workplace.arguments(out, method))
    assert result.exit_code == 0, result.output
    again = out.with_name("again") / "sparse"
    again.parent.mkdir()
    start = time.perf_counter()
    attempt = workplace.attempt(workplace.arguments(again, method), again)
    seconds = time.perf_counter() - start
    files = result_of(out)
    assert attempt.code == 0, attempt.output
    assert differences(result_of(again), files) == [], "two uninterrupted runs differ"
    counted = out.with_name("counted") / "sparse"
    counted.parent.mkdir()
    calls = count_calls(workplace, workplace.arguments(counted, method))
    if not (workplace.folder / "older").exists():
        again.rename(workplace.folder / "older")
        (workplace.folder / "older" / "notes.txt").write_text("mine", encoding="utf-8")
    return _Reference(method, files, seconds, calls)


def _one_run(
    workplace: Workplace,
    place: Path,
    reference: _Reference,
    generator: random.Random,
    summary: Summary,
    older: Path | None,
    kills_each: int,
) -> None:
    import shutil

    out = place / "sparse"
    if older is not None:
        shutil.copytree(older, out)
    before = result_of(out)
    arguments = workplace.arguments(out, reference.method, *([] if older is None else ["--overwrite"]))
    wanted = generator.randint(1, kills_each)
    hit = 0
    while True:
        kill = random_kill(generator, reference.seconds, reference.calls) if hit < wanted else None
        attempt = workplace.attempt(arguments, out, kill)
        summary.resumes += hit > 0
        if attempt.code == 0:
            break
        if attempt.phase == "published" and result_of(out) == before:
            attempt = replace(attempt, phase="nothing written")
        if kill is None or not _was_killed(attempt, kill, summary):
            if not _is_done(attempt, out):
                summary.odd_endings.append(f"{place.name}: exit code {attempt.code}: {attempt.output[-1500:]}")
            break
        hit += 1
        if not _is_whole(out, before, reference.files):
            summary.broken_targets.append(f"{place.name}: {attempt.phase}, {kill.kind}")
    found = result_of(out)
    summary.files_compared += len(found)
    summary.differences += [f"{place.name}: {name}" for name in differences(found, reference.files)]
    summary.differences += [f"{place.name}: {path.name} left" for path in place.iterdir() if path != out]
    shutil.rmtree(place)


def _is_whole(out: Path, before: dict[str, str], finished: dict[str, str]) -> bool:
    """Whether OUT is as it was before or finished, or between its two renames with the older model set aside."""
    state = {name: value for name, value in result_of(out).items() if not name.startswith(".scratch")}
    if state in (before, finished):
        return True
    return not out.exists() and before in [result_of(aside) for aside in out.parent.glob("sparse.old-*")]


def _was_killed(attempt: Attempt, kill: Kill, summary: Summary) -> bool:
    """Count a kill that hit; SIGTERM must end with its exit code and a message, unless it came before the verb."""
    name = signal.Signals(kill.signal).name
    if attempt.code not in (-kill.signal, GRACEFUL):
        return False
    if attempt.code == GRACEFUL and "repeat the same command to continue" not in attempt.output:
        summary.odd_endings.append(f"SIGTERM without a message: {attempt.output[-500:]}")
    summary.kills[(attempt.phase, kill.kind, name)] += 1
    return True


def _is_done(attempt: Attempt, out: Path) -> bool:
    """The last kill fell behind the publication's last trace: the repeated command finds its result in place."""
    return attempt.code == 3 and "expected a name that is free" in attempt.output and out.exists()


def print_summary(summary: Summary) -> None:
    """Print counts by phase and signal, and what went wrong."""
    by_signal, by_kind, by_phase = (Counter[str]() for _ in range(3))
    for (phase, kind, name), count in summary.kills.items():
        by_phase[phase] += count
        by_kind[kind] += count
        by_signal[name] += count
    print(f"runs            {summary.runs}")
    print(f"kills           {summary.num_kills}: " + _counts(by_signal))
    print("  aimed at      " + _counts(by_kind))
    print("  on disk then  " + _counts(by_phase))
    print(f"resumes         {summary.resumes}")
    print(f"files compared  {summary.files_compared}")
    print(f"differences     {len(summary.differences)}")
    print(f"broken targets  {len(summary.broken_targets)}")
    print(f"odd endings     {len(summary.odd_endings)}")
    for problem in (*summary.differences, *summary.broken_targets, *summary.odd_endings):
        print(json.dumps(problem))


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


if __name__ == "__main__":
    main()
