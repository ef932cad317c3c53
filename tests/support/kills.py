"""Real processes that run `expertweaver` and are killed at chosen or random moments; what they leave behind.

A child is forked from a process that has imported everything, so that a kill falls into the work and not into the
imports. It has a process group of its own, and the command line's own `app` runs in it. What makes it kill itself at a
certain call is put around functions of the standard library in the child only; the product knows nothing of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.commands import hashes
from support.families import SIZES, save_text, save_tokenizer

Hook = Callable[[], None]
RUN_FACTS = "expertweaver/run.json"
"""The only file that may differ between two runs: times and the host."""

NAMING = ("rename", "replace", "unlink", "rmdir", "mkdir")
"""Calls of the system that give, change and remove names: between two of them lies every state a kill can leave."""


def start(arguments: list[str], log: Path, hook: Hook = lambda: None) -> int:
    """Fork a process in a group of its own that runs `expertweaver` with these arguments; returns its id."""

    def work() -> None:
        from expertweaver.cli.app import app

        hook()
        app(arguments)

    return fork(work, log)


def fork(work: Callable[[], object], log: Path) -> int:
    """Fork a process in a group of its own that does this and ends; what it prints goes to a file."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        stream = log.open("w", encoding="utf-8")
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
        sys.stdout = sys.stderr = stream
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001 (a child must never return into its parent's code)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(process: int) -> int:
    """How a process ended: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def at_call(names: tuple[str, ...], number: int, deed: Callable[[], Any], *, after: bool = False) -> Hook:
    """A hook that does something at the n-th of some calls of `os`, before or after the call itself."""

    def install() -> None:
        counter = iter(range(1, sys.maxsize))
        for name in names:
            setattr(os, name, _counted(getattr(os, name), counter, number, deed, after=after))

    return install


def _counted(call: Any, counter: Iterator[int], number: int, deed: Callable[[], Any], *, after: bool) -> Any:
    def counted(*arguments: Any, **options: Any) -> Any:
        due = next(counter) == number
        if due and not after:
            deed()
        result = call(*arguments, **options)
        if due and after:
            deed()
        return result

    return counted


def kill_group(number: int) -> Callable[[], None]:
    """End the own process group by a signal."""
    return lambda: os.killpg(os.getpgid(0), number)


def in_verification(delay: float, number: int) -> Hook:
    """A hook that ends the process some seconds after its verification has begun."""

    def install() -> None:
        import expertweaver.conversion as conversion

        verify = conversion.verify

        def timed(*arguments: Any, **options: Any) -> Any:
            threading.Timer(delay, kill_group(number)).start()
            return verify(*arguments, **options)

        conversion.verify = timed

    return install


@dataclass(frozen=True)
class Kill:
    """One way to end a process: a signal, and when."""

    signal: int
    kind: str
    hook: Hook = lambda: None
    after_seconds: float | None = None


@dataclass(frozen=True)
class Attempt:
    """How an attempt ended: exit code or minus a signal, what was on disk then, and what it printed."""

    code: int
    phase: str
    output: str


@dataclass(frozen=True)
class Workplace:
    """A folder with a model and text, where conversions are begun again and again."""

    folder: Path
    source: Path

    @property
    def log(self) -> Path:
        """What the last process printed."""
        return self.folder / "log.txt"

    def arguments(self, out: Path, method: str, *more: str) -> list[str]:
        """A conversion of all of the model, the default method's repair included."""
        settings = ("calibration.sequence_length=32", "calibration.num_samples=64")
        chosen = [word for setting in settings for word in ("--set", setting)]
        text = ["--calibration", str(self.folder / "text.jsonl"), "--num-slices", "8", "--method", method]
        return ["convert", str(self.source), str(out), *text, *chosen, *more]

    def attempt(self, arguments: list[str], out: Path, kill: Kill | None = None) -> Attempt:
        """Run a command to its end, or to its kill."""
        process = start(arguments, self.log, kill.hook if kill else lambda: None)
        if kill is not None and kill.after_seconds is not None:
            time.sleep(kill.after_seconds)
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                os.killpg(process, kill.signal)
        code = wait(process)
        return Attempt(code, phase_of(out), self.log.read_text(encoding="utf-8"))


def make_workplace(folder: Path, *, num_layers: int = 4) -> Workplace:
    """Save a small random Llama and text for it."""
    import torch
    import transformers

    sizes = {**SIZES, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": num_layers}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(folder / "dense")
    save_tokenizer(folder / "dense")
    save_text(folder / "text.jsonl", documents=64, length=64)
    return Workplace(folder, folder / "dense")


def phase_of(out: Path) -> str:
    """What a run had reached, by the files that mark its steps."""
    partial = out.with_name(out.name + ".partial")
    scratch = partial / ".scratch"
    if not partial.exists():
        return "published" if out.exists() else "nothing written"
    if (partial / "expertweaver" / "manifest.json").exists():
        return "recorded"
    if (partial / "expertweaver" / "partition.safetensors").exists():
        return "verifying"
    if any(scratch.glob("layer-*.json")):
        return "layers"
    return "calibrating" if (scratch / "statistics").exists() else "first layer"


def result_of(out: Path) -> dict[str, str]:
    """Hashes of all files of a result that must be the same in every run."""
    return {name: value for name, value in hashes(out).items() if name != RUN_FACTS}


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Names of files that are missing, additional, or of other bytes."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def random_kill(generator: random.Random, seconds: float, calls: int) -> Kill:
    """Draw a signal and a moment: any time, a call that changes names, or inside the verification."""
    number = generator.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    kind = generator.choice(("time", "time", "call", "call", "late call", "verification"))
    if kind == "time":
        return Kill(number, kind, after_seconds=generator.uniform(0, seconds))
    if kind == "verification":
        return Kill(number, kind, in_verification(generator.uniform(0, 0.2), number))
    first = 1 if kind == "call" else max(1, calls - 20)
    place, after = generator.randint(first, calls), generator.random() < 0.5
    return Kill(number, kind, at_call(NAMING, place, kill_group(number), after=after))


def count_calls(workplace: Workplace, arguments: list[str]) -> int:
    """How many calls that change names an uninterrupted run makes."""
    count = workplace.folder / "calls.json"
    made = [0]

    def install() -> None:
        for name in NAMING:
            setattr(os, name, _noting(getattr(os, name), made, count))

    assert wait(start(arguments, workplace.log, install)) == 0, workplace.log.read_text("utf-8")
    return int(json.loads(count.read_text("utf-8")))


def _noting(call: Any, made: list[int], file: Path) -> Any:
    def noting(*arguments: Any, **options: Any) -> Any:
        made[0] += 1
        file.write_text(str(made[0]), encoding="utf-8")
        return call(*arguments, **options)

    return noting
