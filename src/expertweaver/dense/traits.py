"""What a dense model does beyond the plainest decoder, in the words in which formats say what they can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from expertweaver.dense.family import Dims, Family

QKNorm = Literal["none", "head", "projection"]
"""Norms on queries and keys: none, one for all heads and one head wide, or one over the whole projection."""

NormPlacement = Literal["before", "after", "around"]
"""Norms on what goes into attention and FFN, on what comes out of them, or on both."""


@dataclass(frozen=True)
class Scales:
    """Constants beside the weights.

    Attributes:
        embedding: The embeddings are multiplied by it.
        residual: What attention and FFN put out is multiplied by it before it is added to the residual stream.
        attention: Attention scores are multiplied by it; None for head_dim ** -0.5.
        logits: The logits are divided by it.
    """

    embedding: float = 1.0
    residual: float = 1.0
    attention: float | None = None
    logits: float = 1.0

    def named(self) -> dict[str, float]:
        """The constants that are not the plainest ones, by name."""
        plain = Scales()
        return {name: value for name, value in vars(self).items() if value != getattr(plain, name)}


@dataclass(frozen=True)
class Traits:
    """How a model's decoder layers differ from the plainest.

    Attributes:
        biases: Names of the biases that every layer has, behind its prefix.
        qk_norm: Norms on queries and keys, by their width.
        norms: Where the norms of attention and FFN are.
        sliding_window: How many tokens back every layer looks; None where that is no limit.
        partial_rotary_factor: On which part of a head the positions are.
        adds_to_norms: A constant is added to the norms' weights, which stock targets want in the weights.
        scales: Constants beside the weights.
    """

    biases: frozenset[str]
    qk_norm: QKNorm
    norms: NormPlacement
    sliding_window: int | None
    partial_rotary_factor: float
    adds_to_norms: bool
    scales: Scales


def read_traits(config: Mapping[str, Any], family: Family, dims: Dims) -> Traits:
    """Read a model's traits from its family and its complete configuration."""
    biases = {name for name, rule in family.layer.items() if name.endswith(".bias") and rule.applies(config)}
    rules = [*family.layer.values(), *family.model.values()]
    return Traits(
        biases=frozenset(biases),
        qk_norm=_qk_norm(family),
        norms=_norm_placement(family),
        sliding_window=effective_window(config, dims),
        partial_rotary_factor=float(config["rope_parameters"].get("partial_rotary_factor", 1.0)),
        adds_to_norms=any(rule.plus for rule in rules),
        scales=_scales(config, family, dims),
    )


def effective_window(config: Mapping[str, Any], dims: Dims) -> int | None:
    """The sliding window, unless the context ends before it does."""
    window = config.get("sliding_window")
    return None if window is None or window >= dims.max_position_embeddings else int(window)


def _qk_norm(family: Family) -> QKNorm:
    if not family.qk_norm:
        return "none"
    return "head" if family.layer["self_attn.q_norm.weight"].shape == ("D",) else "projection"


def _norm_placement(family: Family) -> NormPlacement:
    if family.output_norm is None:
        return "before"
    return "around" if "input_layernorm.weight" in family.layer else "after"


def _scales(config: Mapping[str, Any], family: Family, dims: Dims) -> Scales:
    sqrt_hidden = {"sqrt_hidden_size": dims.hidden_size**0.5}
    values = {name: float({**config, **sqrt_hidden}[key]) for name, key in family.scales.items()}
    if values.get("attention") == dims.head_dim**-0.5:
        del values["attention"]
    return Scales(**values)
