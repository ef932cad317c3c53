"""Every source tensor has exactly one fate, decided from names and shapes before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expertweaver.dense.family import Dims, Family, TensorRule
from expertweaver.dense.reader import FLOAT_DTYPES, TensorReader
from expertweaver.errors import CheckpointError, Problem, listed


@dataclass(frozen=True)
class Origin:
    """Where a canonical tensor lies: a source tensor, or some of its rows where the family fuses several."""

    source: str
    rows: tuple[int, int] | None = None


def layer_prefix(layer: int) -> str:
    """What the canonical names of a decoder layer's tensors start with."""
    return f"model.layers.{layer}."


def find_rule(family: Family, name: str) -> TensorRule:
    """The rule of a canonical tensor name, inside or outside the decoder layers."""
    return family.model[name] if name in family.model else family.layer[name.split(".", 3)[3]]


def expected_origins(family: Family, dims: Dims, config: Mapping[str, Any]) -> dict[str, Origin]:
    """Where each canonical tensor of a model with this configuration must lie."""
    origins: dict[str, Origin] = {}
    for name, rule in family.model.items():
        tied = rule.tied_to is not None and bool(config.get("tie_word_embeddings"))
        origins[name] = Origin(str(rule.tied_to) if tied else name)
    for layer in range(dims.num_hidden_layers):
        prefix = layer_prefix(layer)
        fused = _fused_origins(family, dims, prefix)
        for name, rule in family.layer.items():
            if rule.applies(config):
                origins[prefix + name] = fused.get(name, Origin(prefix + name))
    return origins


def account(reader: TensorReader, origins: Mapping[str, Origin], family: Family) -> dict[str, str]:
    """Name the source tensors that are dropped on purpose, each with its reason.

    Raises:
        CheckpointError: Tensors are missing, or there are some that no rule names; all of them listed.
    """
    wanted = {origin.source for origin in origins.values()}
    rest = [name for name in reader.tensors if name not in wanted]
    dropped = {name: f"tied: equal to {origins[name].source}" for name in rest if name in origins}
    for name in rest:
        if any(name.endswith("." + suffix) for suffix in family.dropped):
            dropped[name] = "rotary frequencies follow from the configuration"
    problems = []
    if missing := sorted(wanted - set(reader.tensors)):
        expected = f"every tensor of a {family.name} model"
        fix = "Copy or download the model again."
        problems.append(Problem(str(reader.folder), expected, f"missing {listed(missing)}", fix))
    if unknown := sorted(set(rest) - set(dropped)):
        expected = f"only tensors that the family '{family.name}' names"
        fix = "Nothing is dropped silently: remove these tensors from the checkpoint, or add a rule to the family."
        problems.append(Problem(str(reader.folder), expected, f"also {listed(unknown)}", fix))
    if problems:
        raise CheckpointError(*problems)
    return dropped


def check_shapes(reader: TensorReader, family: Family, dims: Dims, origins: Mapping[str, Origin]) -> None:
    """Compare every stored shape and type with what the configuration implies.

    Raises:
        CheckpointError: All tensors that differ.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for name, origin in origins.items():
        shape = dims.shape(find_rule(family, name).shape)
        if origin.rows is not None:  # the last part of a fused tensor ends where the tensor ends
            shape = (origin.rows[1], *shape[1:])
        expected[origin.source] = max(shape, expected.get(origin.source, shape))
    problems = []
    for source, shape in expected.items():
        info = reader.tensors[source]
        where = f"{info.file}: {source}"
        if info.shape != shape:
            fix = "config.json and the weights belong to different models, or the file is damaged."
            problems.append(Problem(where, f"shape {list(shape)}", str(list(info.shape)), fix))
        if info.dtype not in FLOAT_DTYPES:
            fix = "Convert the unquantised model, and quantise the result."
            problems.append(Problem(where, f"type {', '.join(FLOAT_DTYPES)}", info.dtype, fix))
    if problems:
        raise CheckpointError(*problems)


def _fused_origins(family: Family, dims: Dims, prefix: str) -> dict[str, Origin]:
    origins = {}
    for source, parts in family.fused.items():
        start = 0
        for part in parts:
            rows = dims.shape(family.layer[part].shape)[0]
            origins[part] = Origin(prefix + source, (start, start + rows))
            start += rows
    return origins
