"""`expertweaver export`: what it prints, and requests that it refuses without leaving anything behind."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Complaint, check_complaint, hashes, refusal, run
from support.models import edit_config, edit_json
from support.sparse import convert_variant
from support.tokenizers import byte_level, save
from tokenizers import pre_tokenizers

from expertweaver.checkpoint.folder import take_lock

pytest.importorskip("gguf")

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_variant("llama", tmp_path_factory.mktemp("export")).parent


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """A folder with `dense` and `sparse` in it."""
    return Path(shutil.copytree(template, tmp_path / "bench"))


def refuse(
    folder: Path, complaint: Complaint, *more: str | Path, model: str = "sparse", out: str = "model.gguf", code: int = 3
) -> None:
    """An export that must be refused with one problem, and leave the folder as it was."""
    before = hashes(folder)
    _, [problem] = refusal(run("export", folder / model, folder / out, "--json", *more), code)
    check_complaint(problem, complaint)
    assert hashes(folder) == before


def test_an_export_prints_what_it_wrote(folder: Path) -> None:
    result = run("export", folder / "sparse", folder / "new" / "model.gguf", "--quantize", "q8_0")
    assert result.exit_code == 0, result.output
    assert "glm4moe" in result.stdout
    assert "read back and compared" in result.stdout
    assert "matrices stay f16" in result.stderr
    assert [file.name for file in (folder / "new").iterdir()] == ["model.gguf"]


def test_json_holds_the_same(folder: Path) -> None:
    result = run("export", folder / "sparse", folder / "model.gguf", "--quantize", "bf16", "--json")
    answer = json.loads(result.stdout)
    assert answer["path"] == str(folder / "model.gguf")
    assert (answer["architecture"], answer["quantization"], answer["kept_f16"]) == ("glm4moe", "bf16", [])
    assert answer["num_bytes"] == (folder / "model.gguf").stat().st_size


def test_the_same_request_gives_the_same_bytes_and_leaves_the_model_alone(folder: Path) -> None:
    before = hashes(folder / "sparse")
    for name in ("a.gguf", "b.gguf"):
        assert run("export", folder / "sparse", folder / name).exit_code == 0
    assert (folder / "a.gguf").read_bytes() == (folder / "b.gguf").read_bytes()
    assert hashes(folder / "sparse") == before


def test_an_existing_file_is_replaced_only_when_asked(folder: Path) -> None:
    (folder / "model.gguf").write_text("mine", "utf-8")
    refuse(folder, Complaint("model.gguf", "a name that is free", "a file of this name", "pass --overwrite"))
    assert run("export", folder / "sparse", folder / "model.gguf", "--overwrite").exit_code == 0
    assert (folder / "model.gguf").read_bytes().startswith(b"GGUF")


def test_a_refused_export_keeps_the_file_it_would_replace(folder: Path) -> None:
    (folder / "model.gguf").write_text("mine", "utf-8")
    edit_config(folder / "sparse", n_group=2)
    refuse(folder, Complaint("config.json: n_group", "1", "2", "Convert the model again"), "--overwrite")


def test_a_dense_model_and_no_model(folder: Path) -> None:
    finished = "a folder that `expertweaver convert` finished"
    refuse(folder, Complaint("dense", finished, "no manifest", "expertweaver convert"), model="dense")
    refuse(folder, Complaint("nowhere", "a model folder", "nothing at this path", "spelling"), model="nowhere")


def test_a_format_that_llama_cpp_does_not_get(folder: Path) -> None:
    edit_json(folder / "sparse" / "expertweaver" / "manifest.json", format="mixtral_of_ours")
    refuse(folder, Complaint("manifest.json: format", "glm4_moe", "'mixtral_of_ours'", "--format glm4_moe"))


def test_names_that_are_wrong(folder: Path) -> None:
    refuse(folder, Complaint("model.bin", "ending in .gguf", "'model.bin'", "Add .gguf"), out="model.bin", code=2)
    wrong = Complaint("quantize", "one of bf16, f16, f32, q8_0", "'q4_k'", "q8_0")
    refuse(folder, wrong, "--quantize", "q4_k", code=2)
    (folder / "folder.gguf").mkdir()
    refuse(folder, Complaint("folder.gguf", "a file to write", "a folder", "another name"), out="folder.gguf")


def no_tokenizer(sparse: Path) -> None:
    (sparse / "tokenizer.json").unlink()


def unknown_words(sparse: Path) -> None:
    save(byte_level(symbols=["a"], merges=[("a", "a")], pre_tokenizer=pre_tokenizers.Whitespace()), sparse)


def a_tensor_more(sparse: Path) -> None:
    from safetensors.torch import load_file, save_file

    shard = sparse / "model-00004-of-00004.safetensors"
    tensors = load_file(shard)
    save_file({**tensors, "model.extra.weight": tensors["model.norm.weight"].clone()}, shard)
    index = json.loads((sparse / "model.safetensors.index.json").read_text("utf-8"))
    index["weight_map"]["model.extra.weight"] = shard.name
    (sparse / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (no_tokenizer, Complaint("sparse", "a tokenizer", "none", "Copy the tokenizer")),
        (unknown_words, Complaint("pre_tokenizer", "a word rule that llama.cpp has", "Whitespace", "transformers")),
        (a_tensor_more, Complaint("sparse", "only tensors that the architecture has", "model.extra.weight", "again")),
    ],
)
def test_folders_that_are_spoilt(spoil: Callable[[Path], None], complaint: Complaint, folder: Path) -> None:
    spoil(folder / "sparse")
    refuse(folder, complaint)


def test_a_full_disk_is_seen_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 10, 0))
    refuse(folder, Complaint("bench", "of disk space", "0.00 GB free", "Free some space"))


def test_a_disk_that_fills_up_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    import gguf

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    refuse(folder, Complaint("model.gguf.partial", "a file that can be written", "No space left", "Free some space"))


def test_a_second_export_to_the_same_name_is_refused_while_one_is_writing(folder: Path) -> None:
    lock, free = folder / "twice.gguf.lock", hashes(folder)
    with take_lock(lock, folder / "twice.gguf"):
        refuse(folder, Complaint("twice.gguf", "no other run", "one that is writing it", "Wait"), out="twice.gguf")
    lock.unlink()
    assert run("export", folder / "sparse", folder / "twice.gguf").exit_code == 0
    assert set(hashes(folder)) == {*free, "twice.gguf"}


def test_a_file_that_reads_back_differently_is_not_published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expertweaver.gguf import run as running

    write = running.write_file

    def bit_rot(file: Path, *rest: Any) -> dict[str, str]:
        digests = write(file, *rest)
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        return digests

    monkeypatch.setattr(running, "write_file", bit_rot)
    refuse(folder, Complaint("output.weight", "f16", "f16", "export again"), code=4)


def test_without_the_package_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse(folder, Complaint("export", "the package gguf", "none", "expertweaver[gguf]"), code=2)
