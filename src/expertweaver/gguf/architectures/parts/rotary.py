"""Rotary positions in llama.cpp: key values, and factors of the frequencies where the architecture reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from expertweaver.errors import Problem
from expertweaver.gguf.architectures.base import ELSEWHERE, Config, KeyValues, PlannedTensor, Value

YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
"""llama.cpp reads these from the file for two architectures only; here they must be its built-in ones."""

PARAMETERS = {
    "default": set[str](),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", *YARN_DEFAULTS},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "longrope": {
        "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor",
    },
}  # fmt: skip
"""Rope types that this writer knows, and the parameters of each that are written."""

PLAIN = frozenset({"default", "linear", "yarn"})
"""Rope types that llama.cpp computes from key values alone, in every architecture here."""

WITH_FACTORS = frozenset(PARAMETERS)
"""What an architecture reads that takes factors of the frequencies from the file."""


def rope_type(config: Config) -> str:
    """The type of the rotary positions."""
    return config["rope_parameters"].get("rope_type", "default")


def check_rope(config: Config, readable: frozenset[str]) -> list[Problem]:
    """Find what of the rotary positions an architecture that reads these types cannot say."""
    rope, kind, where = dict(config["rope_parameters"]), rope_type(config), "config.json: rope_parameters"
    if kind not in readable:
        lost = "" if kind not in WITH_FACTORS else "llama.cpp would drop the factors of the frequencies. "
        expected = f"a rope_type that llama.cpp reads in this architecture ({', '.join(sorted(readable))})"
        return [Problem(where, expected, f"'{kind}'", f"{lost}{ELSEWHERE}")]
    problems = []
    known = PARAMETERS[kind] | {"rope_type", "rope_theta", "partial_rotary_factor"}
    if extra := sorted(key for key, value in rope.items() if key not in known and value is not None):
        fix = f"llama.cpp would ignore them. {ELSEWHERE}"
        problems.append(Problem(where, f"only {', '.join(sorted(known))}", ", ".join(extra), fix))
    for key, default in YARN_DEFAULTS.items() if kind == "yarn" else ():
        if rope.get(key, default) not in (default, None):
            fix = f"llama.cpp has this number built in. {ELSEWHERE}"
            problems.append(Problem(f"{where}.{key}", str(default), str(rope[key]), fix))
    return problems


def rotary_size(config: Config) -> int:
    """How many values of each head the positions turn."""
    return int(config["head_dim"] * config["rope_parameters"].get("partial_rotary_factor", 1.0))


def rope_key_values(config: Config) -> KeyValues:
    """Base, size and scaling."""
    rope, kind = config["rope_parameters"], rope_type(config)
    keys: dict[str, Value] = {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": rotary_size(config),
        "rope.scaling.type": "none" if kind == "llama3" or kind == "default" else kind,
    }
    if kind in ("linear", "yarn"):
        keys["rope.scaling.factor"] = float(rope["factor"])
    if kind in ("yarn", "longrope"):
        keys["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    if kind == "yarn" and rope.get("attention_factor") is not None:  # llama.cpp multiplies its own rule by this
        own = 0.1 * math.log(rope["factor"]) + 1.0
        keys["rope.scaling.attn_factor"] = float(rope["attention_factor"]) / own
    if kind == "longrope":
        keys["rope.scaling.attn_factor"] = _longrope_attention(config)
    return keys


def factor_tensors(config: Config) -> list[PlannedTensor]:
    """What llama.cpp divides the frequencies by, one number for each pair of a head; none for most rope types."""
    rope, kind = config["rope_parameters"], rope_type(config)
    if kind == "llama3":
        return [_constant("rope_freqs.weight", llama3_factors(config))]
    if kind == "longrope":
        return [_constant(f"rope_factors_{name}.weight", rope[f"{name}_factor"]) for name in ("long", "short")]
    return []


def rope_remarks(config: Config) -> list[str]:
    """Say what llama.cpp does differently with two sets of factors."""
    if rope_type(config) != "longrope":
        return []
    limit = config["rope_parameters"]["original_max_position_embeddings"]
    return [
        f"with a context of more than {limit} tokens llama.cpp takes the long rotary factors for every text, "
        f"transformers for texts of more than {limit} tokens only"
    ]


def llama3_factors(config: Config) -> list[float]:
    """What Llama 3 divides each rotary frequency by, [rotary_size / 2].

    Short waves stay, those longer than the original context by `low_freq_factor` are divided by `factor`, and between
    the two the frequency goes over linearly in the waves that fit into the original context.
    """
    rope, size = config["rope_parameters"], rotary_size(config)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for pair in range(size // 2):
        frequency = rope["rope_theta"] ** (-2 * pair / size)
        waves = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
        kept = min(max((waves - low) / (high - low), 0.0), 1.0)
        factors.append(1 / (kept + (1 - kept) / rope["factor"]))
    return factors


def _longrope_attention(config: Config) -> float:
    """What sines and cosines are multiplied by, by the rule of transformers."""
    rope = config["rope_parameters"]
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _constant(name: str, values: Sequence[float]) -> PlannedTensor:
    def assemble(_: Sequence[Tensor]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    return PlannedTensor(name, (len(values),), (), exact=True, assemble=assemble)
