"""Real processes, killed: the light form of benchmarks/kill_harness.py, and the moments that chance seldom hits."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from kill_harness import kill_and_continue
from support.commands import run
from support.families import save_text
from support.kills import (
    Kill,
    Workplace,
    at_call,
    differences,
    in_verification,
    kill_group,
    make_workplace,
    result_of,
    start,
    wait,
)

KILL, TERM = signal.SIGKILL, signal.SIGTERM
OTHERS = ("replace", "unlink", "rmdir", "mkdir")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return make_workplace(tmp_path_factory.mktemp("kills"), num_layers=2)


@pytest.fixture(scope="module")
def whole(workplace: Workplace) -> dict[str, str]:
    """An uninterrupted conversion, which also imports what the children need."""
    out = workplace.folder / "reference" / "sparse"
    out.parent.mkdir()
    assert run(*workplace.arguments(out, "weave")).exit_code == 0
    return result_of(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "sparse"


def finish(workplace: Workplace, out: Path, whole: dict[str, str], *more: str) -> str:
    """Continue without a kill; the result must be the uninterrupted one, with nothing beside it."""
    attempt = workplace.attempt(workplace.arguments(out, "weave", *more), out)
    assert attempt.code == 0, attempt.output
    assert differences(result_of(out), whole) == []
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return attempt.output


def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    summary = kill_and_continue(make_workplace(tmp_path, num_layers=2), kills=4, kills_each=2, seed=3)
    assert summary.num_kills >= 4
    assert summary.resumes >= 2
    assert summary.is_good, summary


def test_a_process_that_is_asked_to_end_says_how_to_go_on(
    workplace: Workplace, whole: dict[str, str], out: Path
) -> None:
    kill = Kill(TERM, "call", at_call(("replace",), 4, kill_group(TERM)))
    attempt = workplace.attempt(workplace.arguments(out, "weave"), out, kill)
    assert attempt.code == 143
    assert "stopped; repeat the same command to continue where it was" in attempt.output
    assert "Traceback" not in attempt.output
    assert "continuing the run" in finish(workplace, out, whole)


def test_killed_again_while_continuing_and_while_verifying(
    workplace: Workplace, whole: dict[str, str], out: Path
) -> None:
    arguments = workplace.arguments(out, "weave")
    for kill in (
        Kill(KILL, "call", at_call(("replace",), 3, kill_group(KILL))),
        Kill(KILL, "call", at_call(("replace",), 2, kill_group(KILL), after=True)),
        Kill(KILL, "verification", in_verification(0.0, KILL)),
    ):
        attempt = workplace.attempt(arguments, out, kill)
        assert attempt.code == -KILL, attempt.output
        assert not out.exists()
        assert (out.with_name("sparse.partial") / ".scratch" / "lock").exists(), "the lock of a dead process stays"
    finish(workplace, out, whole)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_killed_around_the_two_renames_of_a_replacement(
    workplace: Workplace, whole: dict[str, str], out: Path, number: int, after: bool
) -> None:
    shutil.copytree(workplace.source, out)
    older = result_of(out)
    kill = Kill(KILL, "call", at_call(("rename",), number, kill_group(KILL), after=after))
    attempt = workplace.attempt(workplace.arguments(out, "weave", "--overwrite"), out, kill)
    assert attempt.code == -KILL, attempt.output
    aside = [result_of(path) for path in out.parent.glob("sparse.old-*")]
    assert older in [result_of(out), *aside], "the older model is lost"
    output = finish(workplace, out, whole, "--overwrite")
    assert ("only its traces were left" in output) == (number == 2 and after)


def kill_after_publication(workplace: Workplace, out: Path, name: str, *, after: bool) -> None:
    """Kill a run at the first such call that it makes once OUT has its name."""

    def install() -> None:
        rename = os.rename

        def armed(source: Path, target: Path) -> None:
            rename(source, target)
            if target == out:
                at_call((name,), 1, kill_group(KILL), after=after)()

        os.rename = armed

    attempt = workplace.attempt(workplace.arguments(out, "weave"), out, Kill(KILL, "call", install))
    assert attempt.code == -KILL, attempt.output
    assert (out / ".scratch").exists()


def test_killed_while_the_traces_are_removed(workplace: Workplace, whole: dict[str, str], out: Path) -> None:
    kill_after_publication(workplace, out, "unlink", after=True)
    assert "only its traces were left" in finish(workplace, out, whole)


def test_killed_before_the_last_trace_is_removed(workplace: Workplace, whole: dict[str, str], out: Path) -> None:
    """Without the journal nobody knows whose result it is: the trace goes, and it is a model like any other."""
    kill_after_publication(workplace, out, "rmdir", after=False)
    attempt = workplace.attempt(workplace.arguments(out, "weave"), out)
    assert attempt.code == 3
    assert "expected a name that is free" in attempt.output
    assert differences(result_of(out), whole) == []
    assert not (out / ".scratch").exists()


def test_of_two_at_once_the_second_is_refused_and_the_first_is_not_disturbed(
    workplace: Workplace, whole: dict[str, str], out: Path
) -> None:
    arguments = workplace.arguments(out, "weave")
    pause = at_call(("replace",), 3, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    first = start(arguments, workplace.folder / "first.txt", pause)
    assert os.WIFSTOPPED(os.waitpid(first, os.WUNTRACED)[1])
    second = workplace.attempt(arguments, out)
    os.kill(first, signal.SIGCONT)
    assert wait(first) == 0, (workplace.folder / "first.txt").read_text("utf-8")
    assert second.code == 3
    assert "expected no other run, found one that is writing it. Wait for the other run" in second.output
    assert differences(result_of(out), whole) == []


def test_a_comparison_that_is_killed_goes_on_from_its_cells(workplace: Workplace, tmp_path: Path) -> None:
    judged = str(save_text(tmp_path / "judged.jsonl", documents=8, length=64, seed=1))
    place = replace(workplace, folder=workplace.folder)

    def arguments(out: Path) -> list[str]:
        return [
            "compare", str(place.source), "--methods", "expertweaver", "--mlp-sparsity", "0.25,0.5", "--num-slices",
            "8", "--seeds", "1", "--calibration", str(place.folder / "text.jsonl"), "--text", judged, "--out",
            str(out), "--set", "calibration.sequence_length=32", "--set", "calibration.num_samples=16",
        ]  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*arguments(whole)).exit_code == 0
    for number in (1, 3, 6):
        kill = Kill(KILL, "call", at_call(("replace",), number, kill_group(KILL)))
        assert place.attempt(arguments(killed), killed, kill).code == -KILL
    done = len(list((killed / "cells").glob("*@*.json")))
    assert 0 < done < 6, "no cell was finished, or all were"
    attempt = place.attempt(arguments(killed), killed)
    assert attempt.code == 0, attempt.output
    assert _timeless(killed) == _timeless(whole)


def _timeless(folder: Path) -> str:
    """The comparison without what no two runs share: seconds and memory."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if "seconds" not in k and "peak" not in k}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return json.dumps(strip(json.loads((folder / "comparison.json").read_text("utf-8"))), sort_keys=True)
