"""Writing a checkpoint one decoder layer a shard: memory stays at a layer, and a shard is what a resume counts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from expertweaver.checkpoint.folder import write_text
from expertweaver.dense.reader import FLOAT_DTYPES, INDEX_NAME


@dataclass(frozen=True)
class ShardNames:
    """Shard 1 holds the embeddings, shards 2 to L+1 a decoder layer each, the last the final norm and the head."""

    num_layers: int

    @property
    def all(self) -> list[str]:
        """Every shard's file name, in order."""
        return [self._name(i) for i in range(self.num_layers + 2)]

    @property
    def embeddings(self) -> str:
        """The first shard."""
        return self._name(0)

    def layer(self, layer: int) -> str:
        """The shard of a decoder layer."""
        return self._name(layer + 1)

    @property
    def head(self) -> str:
        """The last shard."""
        return self._name(self.num_layers + 1)

    def _name(self, index: int) -> str:
        return f"model-{index + 1:05d}-of-{self.num_layers + 2:05d}.safetensors"


def write_shard(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a shard beside and rename it; a shard that exists is complete."""
    partial = file.with_name(file.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata={"format": "pt"})
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.chmod(_usual_mode())
    partial.replace(file)


def _usual_mode() -> int:
    """The permissions of a file made the usual way; the library makes its files readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_index(folder: Path, names: ShardNames) -> None:
    """Write the index of all shards from their own headers."""
    from safetensors import safe_open

    weight_map: dict[str, str] = {}
    total = 0
    for file in names.all:
        with safe_open(folder / file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                weight_map[name] = file
                part = shard.get_slice(name)
                total += torch.Size(part.get_shape()).numel() * FLOAT_DTYPES[part.get_dtype()]
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_text(folder / INDEX_NAME, json.dumps(index, indent=2) + "\n")


def file_sha256(file: Path) -> str:
    """Hash a file without loading it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
