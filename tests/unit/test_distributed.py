"""Several processes: they meet, they end together, and they compute what one process computes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import Bench, hashes, make_template, run
from support.families import save_variant
from support.processes import command, run_together
from torch import Tensor

from expertweaver.calibration import samples
from expertweaver.calibration.traffic import LayerTraffic, Streams
from expertweaver.checkpoint.folder import SCRATCH
from expertweaver.distributed import ALONE, Group, joined
from expertweaver.errors import CalibrationError, Problem
from expertweaver.modeling.values import GLUWeights
from expertweaver.repair.least_squares import repair_down

DOWN_TOLERANCE = 1e-5
"""Largest difference of a repaired weight between one process and two, relative to the largest weight."""

QUICK = ("--method", "weave", "--set", "method.router_steps=5", "--set", "method.rounds=1")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A tiny model and text; batches of few tokens, so that there are several to share."""
    monkeypatch.setattr(samples, "BATCH_TOKENS", 32)
    return Bench(make_template(tmp_path))


def test_shares_are_contiguous_and_complete() -> None:
    for count in (0, 1, 5, 12):
        shares = [index for rank in range(3) for index in Group(rank, 3).part(count)]
        assert shares == list(range(count))
    assert ALONE.part(4) == range(4)


def meet() -> None:
    with joined() as group:
        assert group == Group(int(os.environ["RANK"]), 3)
        ones = torch.full((2, 3), 10.0**group.rank, dtype=torch.float64)
        assert torch.equal(group.sum(ones.T), torch.full((3, 2), 111.0, dtype=torch.float64))
        assert group.all(group.rank * 5) == [0, 5, 10]
        assert group.lead(lambda: {"rank": group.rank}) == {"rank": 0}
        mine = [torch.arange(2), torch.arange(0), torch.arange(5, 8)][group.rank]
        everyone = group.rows(mine)
        assert everyone.tolist() == ([0, 1, 5, 6, 7] if group.leads else [])
        assert group.rows(mine > 0).tolist() == ([False, True, True, True, True] if group.leads else [])


def test_processes_meet() -> None:
    assert run_together(meet, size=3) == [0, 0, 0]


def fail_elsewhere(folder: Path) -> None:
    with joined() as group:
        with pytest.raises(CalibrationError, match="here: expected this") as told, group.together():
            refuse() if group.rank == 1 else group.sum(torch.ones(1))
        assert (told.value.__cause__ is None) == (group.rank == 1)
        (folder / str(group.rank)).touch()


def test_an_error_in_one_process_is_everyones(tmp_path: Path) -> None:
    assert run_together(fail_elsewhere, tmp_path, size=3) == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def repair_problem(num_tokens: int) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    active = torch.randn(num_tokens, 24, generator=generator)
    down = torch.randn(6, 24, generator=generator)
    target = torch.randn(num_tokens, 6, generator=generator)
    return active, target, down, num_tokens // 4


def repair_shared(folder: Path, num_tokens: int) -> None:
    active, target, down, held = repair_problem(num_tokens)
    with joined() as group:
        mine = list(group.part(num_tokens - held))
        judged = [index + num_tokens - held for index in group.part(held)]
        found = repair_down(
            [(active[mine], target[mine])],
            lambda: [(active[judged], target[judged])],
            down,
            num_fitting=num_tokens - held,
            group=group,
        )
        torch.save(found.down, folder / f"{group.rank}.pt")
        torch.save(torch.tensor([found.error_before, found.error_after]), folder / f"errors-{group.rank}.pt")


@pytest.mark.parametrize("num_tokens", [20, 400])
def test_a_repair_of_shared_tokens_is_that_of_all(num_tokens: int, tmp_path: Path) -> None:
    """With fewer tokens than neurons, and with more."""
    active, target, down, held = repair_problem(num_tokens)
    cut = num_tokens - held
    alone = repair_down(
        [(active[:cut], target[:cut])], lambda: [(active[cut:], target[cut:])], down, num_fitting=cut
    )  # fmt: skip
    assert run_together(repair_shared, tmp_path, num_tokens) == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], down) or alone.ridge is None
    assert torch.allclose(found[0], alone.down, rtol=0, atol=DOWN_TOLERANCE * float(down.abs().max()))
    errors = torch.load(tmp_path / "errors-0.pt")
    assert torch.allclose(errors, torch.tensor([alone.error_before, alone.error_after]))


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def check_same_model(one: Path, several: Path) -> float:
    """Same neurons, same routers, and repaired weights but for the order of sums; their largest difference."""
    owners = [load_file(folder / "expertweaver" / "partition.safetensors") for folder in (one, several)]
    assert owners[0].keys() == owners[1].keys()
    assert all(torch.equal(owners[0][name], owners[1][name]) for name in owners[0])
    before, after = tensors(one), tensors(several)
    assert before.keys() == after.keys()
    worst = 0.0
    for name, tensor in before.items():
        if "down_proj" in name:
            worst = max(worst, float((tensor - after[name]).abs().max() / tensor.abs().max()))
        else:
            assert torch.equal(tensor, after[name]), name
    return worst


def test_two_processes_weave_what_one_weaves(bench: Bench) -> None:
    assert run(*bench.arguments(*QUICK)).exit_code == 0
    alone = bench.out.rename(bench.folder / "alone")
    assert run_together(command, bench.folder, *bench.arguments(*QUICK)) == [0, 0]
    assert check_same_model(alone, bench.out) <= DOWN_TOLERANCE
    assert "2 processes share the calibration" in (bench.folder / "process-0.err").read_text("utf-8")
    assert "written" in (bench.folder / "process-0.out").read_text("utf-8")
    assert (bench.folder / "process-1.err").read_text("utf-8") == (bench.folder / "process-1.out").read_text("utf-8")
    assert (bench.folder / "process-1.out").read_text("utf-8") == ""
    assert bench.ours == [bench.out.name]


@pytest.mark.parametrize("variant", ["mistral-window", "granite", "gemma3"])
def test_two_processes_weave_families_of_our_own_class(variant: str, bench: Bench) -> None:
    """A window, a scale on the residual stream, and a norm after the FFN."""
    shutil.rmtree(bench.source)
    save_variant(variant, bench.source)
    request = bench.arguments(*QUICK, "--format", "expertweaver_moe")
    assert run(*request).exit_code == 0
    alone = bench.out.rename(bench.folder / "alone")
    assert run_together(command, bench.folder, *request) == [0, 0]
    assert check_same_model(alone, bench.out) <= DOWN_TOLERANCE


def weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(folder).items() if name.endswith(".safetensors")}


def test_more_processes_than_batches_write_the_same_bytes_by_statistics(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of a sample lie in one process; two batches for three processes leave one idle."""
    monkeypatch.setattr(samples, "BATCH_TOKENS", 128)
    assert run(*bench.arguments()).exit_code == 0
    alone = bench.out.rename(bench.folder / "alone")
    assert run_together(command, bench.folder, *bench.arguments(), size=3) == [0, 0, 0]
    assert "1 of them have none" in (bench.folder / "process-0.err").read_text("utf-8")
    assert weights(bench.out) == weights(alone)


def in_process(number: int, layer: int, happens: object) -> object:
    """`Streams.enter` that does something in one process before one layer."""
    enter = Streams.enter

    def entering(self: Streams, entered: int, weights: GLUWeights) -> LayerTraffic:
        if entered == layer and self.group.rank == number:
            happens()  # type: ignore[operator]
        return enter(self, entered, weights)

    return entering


def refuse() -> None:
    raise CalibrationError(Problem("here", "this", "that", "Mend it."))


def test_an_input_error_is_told_once_and_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Streams, "enter", in_process(1, 1, refuse))
    assert run_together(command, bench.folder, *bench.arguments(*QUICK)) == [3, 3]
    said = [(bench.folder / f"process-{rank}.err").read_text("utf-8") for rank in range(2)]
    assert said[0].count("CalibrationError: here: expected this, found that. Mend it.") == 1
    assert said[1] == ""
    assert bench.ours == []


def test_a_process_that_dies_ends_the_others_and_a_repeated_command_continues(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_together(command, bench.folder, *bench.arguments(*QUICK)) == [0, 0]
    whole = bench.out.rename(bench.folder / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Streams, "enter", in_process(1, 1, lambda: os._exit(9)))
        assert run_together(command, bench.folder, *bench.arguments(*QUICK)) == [1, 9]
    assert "another process of this conversion ended" in (bench.folder / "process-0.err").read_text("utf-8")
    assert bench.ours == [bench.partial.name]
    assert run_together(command, bench.folder, *bench.arguments(*QUICK)) == [0, 0]
    assert "continuing the run" in (bench.folder / "process-0.err").read_text("utf-8")
    assert weights(bench.out) == weights(whole)
    assert bench.ours == [bench.out.name]


def test_a_leader_that_is_stopped_ends_the_others_and_a_repeated_command_continues(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Streams, "enter", in_process(0, 1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert run_together(command, bench.folder, *bench.arguments(*QUICK)) == [143, 1]
    assert "repeat the same command to continue" in (bench.folder / "process-0.err").read_text("utf-8")
    assert bench.ours == [bench.partial.name]
    assert run_together(command, bench.folder, *bench.arguments(*QUICK)) == [0, 0]
    assert "continuing the run" in (bench.folder / "process-0.err").read_text("utf-8")


def test_all_processes_hear_of_what_was_published_before_a_kill(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("expertweaver.checkpoint.folder._remove_traces", lambda *arguments: os._exit(9))
        assert run_together(command, bench.folder, *bench.arguments()) == [9, 1]
    before = {name: digest for name, digest in weights(bench.out).items() if not name.startswith(SCRATCH)}
    assert run_together(command, bench.folder, *bench.arguments()) == [0, 0]
    assert "an earlier run of this request had finished" in (bench.folder / "process-0.err").read_text("utf-8")
    assert weights(bench.out) == before
    assert bench.ours == [bench.out.name]
    assert not (bench.out / SCRATCH).exists()


def with_seed_of_its_own(bench: Bench) -> None:
    command(bench.folder, *bench.arguments(*QUICK, "--set", f"method.seed={os.environ['RANK']}"))


def test_processes_with_different_requests_are_refused(bench: Bench) -> None:
    assert run_together(with_seed_of_its_own, bench) == [2, 2]
    said = (bench.folder / "process-0.err").read_text("utf-8")
    assert "process 1: recipe.method.seed: expected 0, as process 0 has, found 1" in said
    assert bench.ours == []


@pytest.mark.parametrize("verb", ["bench", "compare", "evaluate", "export", "push", "demo", "convert --dry-run"])
def test_other_verbs_are_not_shared(verb: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = {
        "bench": ["bench", bench.source],
        "export": ["export", bench.source, bench.out],
        "push": ["push", bench.source, "owner/name"],
        "compare": ["compare", bench.source, "--methods", "static", "--text", bench.text, "--out", bench.out],
        "evaluate": ["evaluate", bench.source, "--text", bench.text],
        "demo": ["demo", "--out", bench.out],
        "convert --dry-run": bench.arguments("--dry-run"),
    }[verb]
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert f"expertweaver {verb}: expected one process, found 2" in refused.stderr
