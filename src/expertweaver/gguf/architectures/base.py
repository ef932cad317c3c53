"""What a GGUF architecture is: a module that says how a stored format looks in llama.cpp.

Shapes are in row order, the last axis is the one that lies together (GGUF itself lists them the other way round).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from expertweaver.dense.reader import TensorInfo
from expertweaver.errors import Problem
from expertweaver.registry import load_module

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
"""A key's value; its GGUF type follows from the Python type: int is uint32 (int32 in lists), float is float32."""

KeyValues = Mapping[str, Value]
Config = Mapping[str, Any]

YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
"""llama.cpp reads these from the file for two architectures only; here they must be its built-in ones."""

ROPE_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", *YARN_DEFAULTS},
}
"""Rope types that llama.cpp computes from key values alone, and the parameters of each that are written."""


def only(tensors: Sequence[Tensor]) -> Tensor:
    """Take a single source tensor as it is."""
    [tensor] = tensors
    return tensor


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Put the experts' matrices behind each other, [E, rows, columns]."""
    return torch.stack(list(tensors))


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF file and where its values come from.

    Attributes:
        name: Its name in the file.
        shape: Its shape in row order.
        sources: Tensors of the checkpoint that it is made of, in order; none for a constant.
        exact: Stays float32 whatever type was asked for (routers, biases, norms).
        assemble: Makes the tensor out of its sources.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    exact: bool = False
    assemble: Callable[[Sequence[Tensor]], Tensor] = only

    @property
    def num_elements(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)


class Architecture(Protocol):
    """The contract of a module in this room; NAME is llama.cpp's name of the architecture."""

    NAME: str

    def check(self, config: Config) -> list[Problem]:
        """Say what of this model llama.cpp would compute differently; empty if nothing."""
        ...

    def key_values(self, config: Config) -> KeyValues:
        """Sizes and switches, without the architecture's prefix."""
        ...

    def tensors(self, config: Config, stored: Mapping[str, TensorInfo]) -> list[PlannedTensor]:
        """Every tensor of the file, in order, from the checkpoint's headers."""
        ...

    def remarks(self, config: Config) -> list[str]:
        """What the user should know about the file; empty if nothing."""
        ...


def load_architecture(stored_format: str) -> Architecture:
    """The GGUF architecture of a stored format by the format's name."""
    return cast("Architecture", load_module("gguf/architectures", stored_format))


def copied(name: str, source: str, stored: Mapping[str, TensorInfo], *, exact: bool = False) -> PlannedTensor:
    """One tensor under another name."""
    return PlannedTensor(name, stored[source].shape, (source,), exact=exact)


def attention_sizes(config: Config) -> KeyValues:
    """The keys that every decoder has: sizes, heads, norm, rotary positions."""
    rope = config["rope_parameters"]
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(config["head_dim"] * rope.get("partial_rotary_factor", 1.0)),
        **_rope_scaling(rope),
    }


def _rope_scaling(rope: Config) -> KeyValues:
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return {"rope.scaling.type": "none"}
    scaling: dict[str, Value] = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        scaling["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
        if rope.get("attention_factor") is not None:  # llama.cpp multiplies its own rule by this
            own = 0.1 * math.log(rope["factor"]) + 1.0
            scaling["rope.scaling.attn_factor"] = float(rope["attention_factor"]) / own
    return scaling


def check_rope(config: Config) -> list[Problem]:
    """Find what of the rotary positions key values alone cannot say."""
    rope = dict(config["rope_parameters"])
    kind = rope.pop("rope_type", "default")
    where = "config.json: rope_parameters"
    if kind == "llama3":
        fix = (
            "llama.cpp has no place for Llama 3's frequency factors in this architecture and would drop them in "
            "silence. Serve this model with transformers or vLLM."
        )
        return [Problem(where, "rotary positions that llama.cpp reads", "rope_type 'llama3'", fix)]
    if kind not in ROPE_KEYS:
        fix = "Serve this model with transformers or vLLM."
        return [Problem(where, f"rope_type {', '.join(ROPE_KEYS)}", f"'{kind}'", fix)]
    problems = []
    known = ROPE_KEYS[kind] | {"rope_theta", "partial_rotary_factor"}
    if extra := sorted(key for key, value in rope.items() if key not in known and value is not None):
        fix = "llama.cpp would ignore them. Serve this model with transformers or vLLM."
        problems.append(Problem(where, f"only {', '.join(sorted(known))}", ", ".join(extra), fix))
    for key, default in YARN_DEFAULTS.items():
        if rope.get(key, default) not in (default, None):
            fix = "llama.cpp has this number built in. Serve this model with transformers or vLLM."
            problems.append(Problem(f"{where}.{key}", str(default), str(rope[key]), fix))
    return problems
