"""What a continued run refuses, and what it finds when it was stopped in the moment of publication."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.commands import Bench, Complaint, check_complaint, hashes, refusal
from support.models import edit_config, edit_tensors

from expertweaver.checkpoint import folder, shards

BEGUN, REMOVE = "as begun", "or remove"


@pytest.fixture
def begun(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A run that was stopped after its first layer."""

    def stop_at_the_second(file: Path, tensors: Any) -> None:
        if "00003" in file.name:
            raise KeyboardInterrupt
        shards.write_shard(file, tensors)

    with monkeypatch.context() as context:
        context.setattr("expertweaver.checkpoint.writer.write_shard", stop_at_the_second)
        assert bench.convert().exit_code == 130
    assert (bench.partial / ".scratch" / "layer-00000.json").exists()
    return bench


def refuse(bench: Bench, key: str, found: str) -> None:
    """The repeated request is refused with the difference, and the unfinished run stays as it is."""
    before = hashes(bench.partial)
    _, problems = refusal(bench.convert("--json"), 3)
    check_complaint(problems[0], Complaint(f"sparse.partial: {key}", BEGUN, found, REMOVE))
    assert hashes(bench.partial) == before


def test_a_finished_layer_is_not_computed_again(begun: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def note(file: Path, tensors: Any) -> None:
        written.append(file.name)
        shards.write_shard(file, tensors)

    monkeypatch.setattr("expertweaver.checkpoint.writer.write_shard", note)
    assert begun.convert().exit_code == 0
    assert [name[6:11] for name in written] == ["00003", "00001", "00004"]


def test_changed_code_is_noticed(begun: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertweaver.sharing.code_fingerprint", lambda: "other")
    refuse(begun, "code", "'other'")


def test_the_fingerprint_of_the_code_follows_every_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from expertweaver.checkpoint import identity

    monkeypatch.setattr(identity, "PACKAGE_FOLDER", tmp_path)
    seen = [identity.code_fingerprint()]
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.yaml", "2"), ("c.txt", "2")):
        (tmp_path / name).write_text(text)
        seen.append(identity.code_fingerprint())
    assert len(set(seen)) == 4
    assert seen[3] == seen[4]


def test_another_version_of_a_library_is_noticed(begun: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.__version__", "9.9.9")
    refuse(begun, "versions.torch", "'9.9.9'")


def test_a_changed_configuration_of_the_source_is_noticed(begun: Bench) -> None:
    edit_config(begun.source, rms_norm_eps=1e-3)
    refuse(begun, "source_config", "'")


def test_weights_that_were_touched_are_noticed(begun: Bench) -> None:
    os.utime(begun.source / "model.safetensors", ns=(1, 1))
    refuse(begun, "source_files.model.safetensors", ", 1]")


def test_a_tensor_of_another_shape_is_noticed(begun: Bench) -> None:
    edit_config(begun.source, tie_word_embeddings=True)
    edit_tensors(begun.source, {"lm_head.weight": None})
    refuse(begun, "source", "'")


def test_what_changed_in_place_with_its_time_set_back_is_found_by_the_verification(begun: Bench) -> None:
    file = begun.source / "model.safetensors"
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    content = bytearray(file.read_bytes())
    from support.models import read_tensor

    gate = read_tensor(begun.source, "model.layers.0.mlp.gate_proj.weight").numpy().tobytes()
    place = bytes(content).index(gate)
    content[place + 3] ^= 0x80  # the sign of one weight
    file.write_bytes(content)
    os.utime(file, ns=times)
    error, [problem] = refusal(begun.convert("--json"), 4)
    assert error == "VerificationError"
    assert "model.layers.0.mlp" in problem["found"]
    assert begun.ours == []


def interrupted(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_that_was_stopped_after_publishing_is_finished_by_repeating_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(folder, "_remove_traces", interrupted)
        assert bench.convert().exit_code == 130
    assert (bench.out / ".scratch" / "journal.json").exists()
    before = {name: value for name, value in hashes(bench.out).items() if not name.startswith(".scratch")}
    again = bench.convert()
    assert again.exit_code == 0
    assert "only its traces were left to remove" in again.stderr
    assert hashes(bench.out) == before
    assert bench.ours == [bench.out.name]


def test_another_request_removes_the_traces_and_is_then_refused_as_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(folder, "_remove_traces", interrupted)
        bench.convert()
    _, [problem] = refusal(bench.convert("--json", "--mlp-sparsity", "0.5"), 3)
    check_complaint(problem, Complaint("sparse", "a name that is free", "a folder or file", "--overwrite"))
    assert not (bench.out / ".scratch").exists()
    assert bench.convert("--mlp-sparsity", "0.5", "--overwrite").exit_code == 0


def test_somebody_elses_scratch_folder_in_a_model_is_left_alone(bench: Bench) -> None:
    bench.earlier.rename(bench.out)
    (bench.out / ".scratch").mkdir()
    (bench.out / ".scratch" / "journal.json").write_text("{}", encoding="utf-8")
    before = hashes(bench.out)
    assert bench.convert().exit_code == 3
    assert hashes(bench.out) == before


def test_a_name_that_was_taken_in_the_meantime_costs_nobody_anything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_the_name(file: Path, tensors: Any) -> None:
        shards.write_shard(file, tensors)
        bench.out.mkdir(exist_ok=True)
        (bench.out / "photo.jpg").write_bytes(b"mine")

    with monkeypatch.context() as context:
        context.setattr("expertweaver.checkpoint.writer.write_shard", take_the_name)
        assert bench.convert().exit_code == 3
    assert (bench.out / "photo.jpg").read_bytes() == b"mine"
    assert bench.ours == ["sparse", "sparse.partial"]
    bench.out.rename(bench.folder / "photos")
    assert "continuing the run" in bench.convert().stderr
    assert bench.ours == ["sparse"]


def test_a_removal_that_is_stopped_leaves_nothing_that_looks_finished(
    begun: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr("expertweaver.checkpoint.verify.MAX_LAYER_ERROR", -1.0)
        context.setattr(folder, "_empty", interrupted)
        assert begun.convert().exit_code == 130
    assert (begun.partial / ".scratch" / "layer-00000.json").exists()
    again = begun.convert()
    assert again.exit_code == 0
    assert "continuing" not in again.stderr
