"""Model families as data: which tensors a checkpoint of the family has, and what our words for them are."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from expertweaver.errors import ArchitectureError, Problem
from expertweaver.registry import PACKAGE_FOLDER, data_files
from expertweaver.yaml_file import read_yaml


class TensorRule(BaseModel):
    """One canonical tensor: its symbolic shape, the config flag it depends on, the tensor it may be tied to.

    `plus` is added to the stored values: a norm that multiplies by 1 + w is, in our words, one whose weight is 1 + w.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    shape: tuple[str, ...]
    when: str | None = None
    tied_to: str | None = None
    plus: float = 0.0

    def applies(self, config: Mapping[str, Any]) -> bool:
        """Whether a model with this configuration has the tensor."""
        return self.when is None or bool(config.get(self.when))


class Family(BaseModel):
    """A family of dense GLU models; the fields are documented in families/llama.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    summary: str
    model_type: str
    qk_norm: bool
    rope_types: tuple[str, ...]
    act_field: str = "hidden_act"
    output_norm: str | None = None
    sliding_window: bool = False
    scales: dict[str, str] = {}
    model: dict[str, TensorRule]
    layer: dict[str, TensorRule]
    fused: dict[str, tuple[str, ...]] = {}
    dropped: tuple[str, ...] = ()


MAX_SIZE = 2**31
MAX_LAYERS = 4096
"""More is damage, not depth: the tensor names of every layer are listed in memory."""


@dataclass(frozen=True)
class Dims:
    """Sizes of a dense GLU model, in the words of Hugging Face's configuration."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    hidden_act: str

    def shape(self, symbols: tuple[str, ...]) -> tuple[int, ...]:
        """Turn a rule's symbolic shape into numbers."""
        sizes = {
            "H": self.hidden_size,
            "F": self.intermediate_size,
            "V": self.vocab_size,
            "D": self.head_dim,
            "Q": self.num_attention_heads * self.head_dim,
            "KV": self.num_key_value_heads * self.head_dim,
        }
        return tuple(sizes[symbol] for symbol in symbols)


@functools.cache
def families() -> dict[str, Family]:
    """All families by name."""
    files = data_files("dense/families")
    return {name: Family(name=name, **_inherited(name)) for name in files}


def find_family(model_type: str, where: str) -> Family:
    """The family of a `model_type`.

    Raises:
        ArchitectureError: No family has it; the message lists the supported ones and, where known, the reason.
    """
    found = [family for family in families().values() if family.model_type == model_type]
    if found:
        return found[0]
    reasons = read_yaml(PACKAGE_FOLDER / "dense/unsupported.yaml")
    supported = ", ".join(f"{family.model_type} ({family.summary})" for family in families().values())
    why = f", which is not convertible: {reasons[model_type]}" if model_type in reasons else ""
    expected = f"model_type of a supported family: {supported}"
    raise ArchitectureError(
        Problem(where, expected, f"'{model_type}'{why}", "Convert a model of one of these families.")
    )


def check_num_layers(config: Mapping[str, Any], where: str) -> None:
    """Refuse an absurd number of layers in a config.json as it was read: filling in its defaults would take forever.

    Raises:
        ArchitectureError: num_hidden_layers is there and is no sensible number.
    """
    if "num_hidden_layers" in config:
        _require_sizes({"num_hidden_layers": config["num_hidden_layers"]}, where)


def read_dims(config: Mapping[str, Any], where: str, *, act_field: str = "hidden_act") -> Dims:
    """Read the sizes from a config.json, and the activation from the field that the family keeps it in.

    Raises:
        ArchitectureError: A size is missing, not a positive integer, or absurd; all such sizes at once.
    """
    heads, key_value_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    values = {
        "hidden_size": config.get("hidden_size"),
        "intermediate_size": config.get("intermediate_size"),
        "num_hidden_layers": config.get("num_hidden_layers"),
        "vocab_size": config.get("vocab_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if key_value_heads is None else key_value_heads,
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
    }
    head_dim = config.get("head_dim")
    if head_dim is None and _is_size(values["hidden_size"]) and _is_size(heads):
        head_dim = values["hidden_size"] // heads
    values["head_dim"] = head_dim
    _require_sizes(values, where)
    return Dims(**values, hidden_act=str(config.get(act_field, "silu")))


FULL_ATTENTION = "full_attention"


def layer_type(config: Mapping[str, Any], layer: int) -> str:
    """What kind of attention a layer has, in transformers' words."""
    kinds = config.get("layer_types")
    return FULL_ATTENTION if kinds is None else kinds[layer]


def sliding_window(config: Mapping[str, Any], layer: int) -> int | None:
    """How many tokens a layer's attention reaches, the token itself included; None for all of them."""
    if config.get("layer_types") is not None and layer_type(config, layer) == FULL_ATTENTION:
        return None
    return config.get("sliding_window")


def _require_sizes(values: Mapping[str, Any], where: str) -> None:
    fix = "Repair the config.json or download the model again."
    limits = {name: MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE for name in values}
    problems = [
        Problem(f"{where}: {name}", f"a whole number from 1 to {limits[name]}", repr(value), fix)
        for name, value in values.items()
        if not _is_size(value, limits[name])
    ]
    if problems:
        raise ArchitectureError(*problems)


def _is_size(value: Any, limit: int = MAX_SIZE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= limit


def _inherited(name: str) -> dict[str, Any]:
    values = read_yaml(data_files("dense/families")[name])
    parent = values.pop("inherits", None)
    if parent is None:
        return values
    base = _inherited(parent)
    merged = {**base, **values}
    for section in ("model", "layer"):
        tensors = {**base[section], **values.get(section, {})}
        merged[section] = {name: rule for name, rule in tensors.items() if rule is not None}
    return merged
