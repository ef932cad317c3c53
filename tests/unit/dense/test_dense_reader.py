"""Lazy reading: headers at the start, one tensor at a time afterwards, and every disagreement named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import BODY_SHARD, HEAD_SHARD, INDEX, WEIGHTS, edit_tensors, split_shards, tiny_llama

from expertweaver.dense.model import open_dense
from expertweaver.dense.reader import TensorReader
from expertweaver.errors import CheckpointError

HEAD = "lm_head.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def test_every_tensor_is_known_from_the_headers(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    reader = TensorReader.open(folder)
    assert {name: info.shape for name, info in reader.tensors.items()} == {n: tuple(t.shape) for n, t in stored.items()}
    assert {info.dtype for info in reader.tensors.values()} == {"F32"}
    assert sum(info.num_elements for info in reader.tensors.values()) == sum(t.numel() for t in stored.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_is_read_bit_for_bit(folder: Path, dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    edit_tensors(folder, dict(stored))
    reader = TensorReader.open(folder)
    for name, tensor in stored.items():
        assert reader.read(name).dtype == dtype
        assert torch.equal(reader.read(name), tensor)


def test_shards_give_the_same_tensors_as_one_file(folder: Path) -> None:
    whole = {name: TensorReader.open(folder).read(name) for name in (HEAD, "model.norm.weight")}
    split_shards(folder)
    reader = TensorReader.open(folder)
    assert {info.file.name for info in reader.tensors.values()} == {BODY_SHARD, HEAD_SHARD}
    for name, tensor in whole.items():
        assert torch.equal(reader.read(name), tensor)


def test_opening_reads_no_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    class HeaderOnly:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.shard = real(*arguments, **options)

        def __enter__(self) -> HeaderOnly:
            self.opened = self.shard.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.shard.__exit__(*error)

        def keys(self) -> Iterator[str]:
            return self.opened.keys()

        def get_slice(self, name: str) -> Any:
            return self.opened.get_slice(name)

    real = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", HeaderOnly)
    reader = TensorReader.open(folder)
    with pytest.raises(AttributeError, match="get_tensor"):
        reader.read(HEAD)


def test_the_fingerprint_follows_names_shapes_and_types(folder: Path) -> None:
    first = TensorReader.open(folder).fingerprint
    assert TensorReader.open(folder).fingerprint == first
    edit_tensors(folder, {HEAD: TensorReader.open(folder).read(HEAD).bfloat16()})
    assert TensorReader.open(folder).fingerprint != first


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named_and_counted(folder: Path, value: float) -> None:
    tensor = TensorReader.open(folder).read(HEAD)
    tensor[:2, 0] = value
    edit_tensors(folder, {HEAD: tensor})
    with pytest.raises(CheckpointError, match=rf"{HEAD}: expected finite weights, found 2 of {tensor.numel()} values"):
        TensorReader.open(folder).read(HEAD)


def test_a_shard_that_disappears_later_is_named(folder: Path) -> None:
    reader = TensorReader.open(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="a readable shard"):
        reader.read(HEAD)


@pytest.mark.parametrize("name", ["../x", "a/x", "/x", "..", ".", "", "a\0b"])
def test_no_name_in_an_index_leaves_the_folder(folder: Path, name: str) -> None:
    split_shards(folder)
    save_file({HEAD: torch.zeros(1)}, folder.parent / "x")
    index = json.loads((folder / INDEX).read_text("utf-8"))
    index["weight_map"][HEAD] = name
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"plain file names|beside it"):
        TensorReader.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    split_shards(folder)
    (folder / INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=INDEX):
        TensorReader.open(folder)


def test_a_snapshot_of_the_hub_links_to_its_own_blobs_only(folder: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--owner--name"
    (repo / "blobs").mkdir(parents=True)
    blob = (folder / WEIGHTS).rename(repo / "blobs" / "abc")
    snapshot = repo / "snapshots" / "0123"
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    (snapshot / WEIGHTS).symlink_to("../../blobs/abc")
    assert HEAD in TensorReader.open(snapshot).tensors
    outside = blob.rename(tmp_path / "outside")
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(outside)
    with pytest.raises(CheckpointError, match="a file inside the model folder"):
        TensorReader.open(snapshot)


def test_a_copy_of_a_tied_head_must_be_equal(folder: Path) -> None:
    config = folder / "config.json"
    values = json.loads(config.read_text("utf-8")) | {"tie_word_embeddings": True}
    config.write_text(json.dumps(values), encoding="utf-8")
    embeddings = TensorReader.open(folder).read("model.embed_tokens.weight")
    with pytest.raises(CheckpointError, match="that differs"):
        open_dense(str(folder)).read(HEAD)
    edit_tensors(folder, {HEAD: embeddings.clone()})
    dense = open_dense(str(folder))
    assert torch.equal(dense.read(HEAD), embeddings)
    assert dense.dropped == {HEAD: "tied: equal to model.embed_tokens.weight"}
    edit_tensors(folder, {HEAD: None})
    assert torch.equal(open_dense(str(folder)).read(HEAD), embeddings)
    assert open_dense(str(folder)).num_params == dense.num_params
