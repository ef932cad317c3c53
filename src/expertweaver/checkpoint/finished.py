"""The finished layers of a run, on disk: what a continued run finds, and what is verified at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from expertweaver.checkpoint.folder import write_text
from expertweaver.checkpoint.shards import write_shard
from expertweaver.formats.base import DownScales, StoredLayer

_TENSORS = ("shared_neurons", "router_weight", "selection_bias", "down", "output_bias")


class FinishedLayers(Sequence[StoredLayer]):
    """Stored layers, one file each; reading an item loads that layer only."""

    def __init__(self, folder: Path, num_layers: int) -> None:
        self.folder = folder
        self.num_layers = num_layers

    def __len__(self) -> int:
        return self.num_layers

    def __getitem__(self, layer: int) -> StoredLayer:  # type: ignore[override]
        if not 0 <= layer < self.num_layers:
            raise IndexError(layer)
        record = self._record(layer)
        tensors = load_file(self._tensors_file(layer))
        return StoredLayer(
            **{name: tensors[name] for name in _TENSORS if name in tensors},
            expert_neurons=unpack_experts(tensors),
            num_experts_per_tok=record["stored_num_experts_per_tok"],
            scale_log2=record["router_scale_log2"],
            max_abs_logit=record["max_abs_router_logit"],
            routing_kept=record["routing_kept"],
            scales=DownScales(**record["down_scales"]),
        )

    @property
    def records(self) -> list[dict[str, Any]]:
        """The manifest's entries of all layers."""
        return [self._record(layer) for layer in range(self.num_layers)]

    def has(self, layer: int) -> bool:
        """Whether a layer is complete."""
        return self._record_file(layer).exists()

    def save(self, layer: int, stored: StoredLayer, record: dict[str, Any]) -> None:
        """Remember a layer whose shard is written; the record comes last and marks it complete."""
        tensors = {name: getattr(stored, name) for name in _TENSORS} | pack_experts(stored.expert_neurons)
        write_shard(self._tensors_file(layer), {name: t for name, t in tensors.items() if t is not None})
        write_text(self._record_file(layer), json.dumps(record))

    def _record(self, layer: int) -> dict[str, Any]:
        return json.loads(self._record_file(layer).read_text(encoding="utf-8"))

    def _record_file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.json"

    def _tensors_file(self, layer: int) -> Path:
        return self.folder / f"stored-{layer:05d}.safetensors"


def pack_experts(experts: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
    """Id vectors of experts as tensors of a file: `expert_neurons` [E, I], or one after the other and their sizes."""
    sizes = [len(neurons) for neurons in experts]
    if len(set(sizes)) == 1:
        return {"expert_neurons": torch.stack(list(experts))}
    everyone = torch.cat([torch.empty(0, dtype=torch.int64), *experts])
    return {"expert_neurons": everyone, "expert_sizes": torch.tensor(sizes, dtype=torch.int64)}


def unpack_experts(tensors: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
    """Undo `pack_experts`."""
    sizes = tensors.get("expert_sizes")
    everyone = tensors["expert_neurons"]
    return everyone if sizes is None else everyone.split(sizes.tolist())
