"""Changing a saved model: its configuration, its tensors, how they are divided into shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from support.families import save_variant
from torch import Tensor

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD_SHARD = "model-00002-of-00002.safetensors"
BODY_SHARD = "model-00001-of-00002.safetensors"


def tiny_llama(folder: Path) -> Path:
    """Save the smallest convertible model: 2 layers, hidden_size 32, intermediate_size 64, one weight file."""
    return save_variant("llama", folder)


def edit_config(folder: Path, **changes: Any) -> None:
    """Set keys of a model's config.json."""
    edit_json(folder / CONFIG, **changes)


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON object."""
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), encoding="utf-8")


def edit_tensors(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Set tensors of a model in one file; None removes one."""
    tensors = {**load_file(folder / WEIGHTS), **changes}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def read_tensor(folder: Path, name: str) -> Tensor:
    """Read one tensor of a model in one file."""
    return load_file(folder / WEIGHTS)[name]


def split_shards(folder: Path) -> None:
    """Divide a model in one file into two shards with an index; the second holds the output head."""
    tensors = load_file(folder / WEIGHTS)
    head = {"lm_head.weight": tensors.pop("lm_head.weight")}
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / BODY_SHARD, metadata={"format": "pt"})
    save_file(head, folder / HEAD_SHARD, metadata={"format": "pt"})
    weight_map = dict.fromkeys(tensors, BODY_SHARD) | dict.fromkeys(head, HEAD_SHARD)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def edit_index(folder: Path, changes: dict[str, str | None]) -> None:
    """Set entries of a sharded model's index; None removes one."""
    index = json.loads((folder / INDEX).read_text("utf-8"))
    entries = {**index["weight_map"], **changes}
    index["weight_map"] = {name: file for name, file in entries.items() if file is not None}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
