"""Slices of an FFN under their names on disk, and the way back into a stock decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expertweaver.dense.accounting import layer_prefix
from expertweaver.formats.base import StoredLayer
from expertweaver.modeling.values import GLUWeights


@dataclass(frozen=True)
class Names:
    """Where a class keeps its FFN on disk, behind the prefix of a decoder layer.

    Attributes:
        experts: What the experts' names start with; their number follows.
        router: The router's weight.
        shared: What the shared expert's names start with; None where the class has none.
        parts: Names of gate, up and down.
    """

    experts: str = "mlp.experts."
    router: str = "mlp.gate.weight"
    shared: str | None = None
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


PLAIN = Names()


def sliced_tensors(
    layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype, names: Names
) -> dict[str, Tensor]:
    """Slice an FFN into the shared expert and the routed ones, one 2-D tensor a matrix, and add the router."""
    prefix = layer_prefix(layer)
    written = stored.written(weights, dtype)
    tensors = {}
    if names.shared is not None:
        tensors |= glu_tensors(prefix + names.shared, written.slice(stored.shared_neurons), names)
    for expert, neurons in enumerate(stored.expert_neurons):
        tensors |= glu_tensors(f"{prefix}{names.experts}{expert}.", written.slice(neurons), names)
    tensors[prefix + names.router] = stored.router_weight.to(dtype)
    return tensors


def load_sliced(module: nn.Module, tensors: dict[str, Tensor], names: Names) -> None:
    """Load a stock layer, whose experts are fused: gate_up_proj [E, 2I, H] and down_proj [E, H, I] of `mlp.experts`."""
    experts = sorted({_expert_id(name, names) for name in tensors if name.startswith(names.experts)})
    fused = {name: tensor for name, tensor in tensors.items() if not name.startswith(names.experts)}
    fused["mlp.gate.weight"] = fused.pop(names.router)
    gate, up, down = names.parts

    def part(expert: int, name: str) -> Tensor:
        return tensors[f"{names.experts}{expert}.{name}.weight"]

    fused["mlp.experts.gate_up_proj"] = torch.stack([torch.cat([part(e, gate), part(e, up)]) for e in experts])
    fused["mlp.experts.down_proj"] = torch.stack([part(e, down) for e in experts])
    module.load_state_dict(fused, strict=True, assign=True)


def _expert_id(name: str, names: Names) -> int:
    return int(name.removeprefix(names.experts).split(".")[0])


def glu_tensors(prefix: str, weights: GLUWeights, names: Names) -> dict[str, Tensor]:
    """Gate, up and down under their names behind a prefix."""
    parts = zip(names.parts, (weights.gate, weights.up, weights.down), strict=True)
    return {f"{prefix}{name}.weight": part.contiguous() for name, part in parts}
