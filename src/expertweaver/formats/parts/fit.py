"""Whether a stock class can say what a dense model does: the model's traits against the class's capabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from expertweaver.dense.model import DenseModel
from expertweaver.errors import Problem
from expertweaver.formats.base import Capabilities


def block_problems(name: str, can: Capabilities, dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
    """What of a model, and of the type it is to be written in, a format cannot hold."""
    return [*_layer_problems(name, can, dense), *_constant_problems(name, can, dense), *_dtype_problems(dense, dtype)]


def _layer_problems(name: str, can: Capabilities, dense: DenseModel) -> list[Problem]:
    traits, where = dense.traits, dense.folder.name
    problems = []

    def refuse(expected: str, found: str, fix: str) -> None:
        problems.append(Problem(where, expected, found, fix))

    if mlp := sorted(bias for bias in traits.biases if bias.startswith("mlp.")):
        refuse("a model without biases on the FFN", ", ".join(mlp), "No stock MoE class has these.")
    attention = traits.biases - set(mlp)
    if attention and attention not in can.attention_biases:
        allowed = " or ".join(_bias_words(biases) for biases in can.attention_biases) or "none"
        refuse(f"attention biases that {name} has ({allowed})", ", ".join(sorted(attention)), ANOTHER)
    if dense.dims.hidden_act not in can.activations:
        fix = f"The engines hard-code their activation for {name}."
        refuse(f"hidden_act {can.activations[0]}", f"'{dense.dims.hidden_act}'", fix)
    if traits.qk_norm != "none" and can.qk_norm == "none":
        refuse("no norms on queries and keys", "q_norm and k_norm", ANOTHER)
    elif traits.qk_norm not in ("none", can.qk_norm_width):
        refuse(f"norms on queries and keys {WIDE[can.qk_norm_width]}", WIDE[traits.qk_norm], ANOTHER)
    if traits.qk_norm == "none" and can.qk_norm == "required":
        refuse(f"norms on queries and keys, which {name} always has", "no such norms", ANOTHER)
    if traits.norms != can.norms:
        refuse(f"norms {PLACED[can.norms]}", f"norms {PLACED[traits.norms]}", ANOTHER)
    if traits.sliding_window is not None and not (can.sliding_window and dense.family.sliding_window):
        found = f"a sliding window of {traits.sliding_window} in a context of {dense.dims.max_position_embeddings}"
        refuse("full attention in every layer", found, ANOTHER)
    if traits.partial_rotary_factor != 1 and not can.partial_rotary:
        refuse("rotary positions on whole heads", f"on {traits.partial_rotary_factor:g} of each head", ANOTHER)
    return problems


def _constant_problems(name: str, can: Capabilities, dense: DenseModel) -> list[Problem]:
    constants = dense.traits.scales.named()
    if can.scales or not constants:
        return []
    found = ", ".join(f"{key} {value:g}" for key, value in constants.items())
    expected = f"no constants beside the weights, for which {name} has no place"
    return [Problem(dense.folder.name, expected, found, ANOTHER)]


def _dtype_problems(dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
    problems = []
    if dtype == torch.float16:
        fix = "Pass --dtype bfloat16 or --dtype float32: the scaled router underflows in float16."
        problems.append(Problem("output.dtype", "bfloat16 or float32", "float16", fix))
    if dense.traits.adds_to_norms and dtype != torch.float32:
        fix = (
            "Pass --dtype float32: adding one to a norm's weight, as the stock classes need it, is not exact otherwise."
        )
        found = str(dtype).removeprefix("torch.")
        problems.append(Problem("output.dtype", f"float32 for {dense.family.name}", found, fix))
    return problems


def unserved(can: Capabilities, dense: DenseModel) -> dict[str, tuple[str, ...]]:
    """What this model has that some engines do not serve in a format, and which."""
    traits, rope = dense.traits, dense.config["rope_parameters"]
    has = uncommon(vars(dense.dims), rope, biases=bool(traits.biases), window=traits.sliding_window is not None)
    return {what: engines for what, engines in can.not_served.items() if what in has}


def uncommon(sizes: Mapping[str, Any], rope: Mapping[str, Any], *, biases: bool, window: bool) -> set[str]:
    """What a model has that some engine may not serve in some format.

    Args:
        sizes: Width, heads and activation, by their names in config.json.
        rope: The parameters of its rotary positions.
        biases: Whether its attention has biases.
        window: Whether a window slides over its context.
    """
    width, num_heads, kind = sizes["hidden_size"], sizes["num_attention_heads"], rope.get("rope_type")
    has = {
        BIASES: biases,
        ACTIVATION: sizes.get("hidden_act") not in SILU,
        HEADS: (sizes.get("head_dim") or width // num_heads) * num_heads != width,
        GROUPED: sizes["num_key_value_heads"] != num_heads,
        WINDOW: window,
        FACTORS: kind in ("llama3", "longrope"),
        DYNAMIC: kind == "dynamic",
    }
    return {what for what, there in has.items() if there}


def engine_notes(name: str, can: Capabilities, dense: DenseModel) -> list[str]:
    """What of a model some engines do not serve in this format, though its class can say it."""
    notes = [
        f"format {name}: by our reading of the code, {' and '.join(engines)} would not serve {what}, which this "
        "model has"
        for what, engines in unserved(can, dense).items()
    ]
    if dense.sequence_limit[0] == "original_max_position_embeddings":
        notes.append(
            f"a generation that grows beyond {dense.sequence_limit[1]} tokens keeps the keys of its short positions, "
            "where the source's class starts its cache anew"
        )
    return notes


BIASES = "attention biases"
ACTIVATION = "an activation other than silu"
SILU = ("silu", "swish")
"""What transformers calls it."""
HEADS = "heads of another size than hidden_size / num_attention_heads"
GROUPED = "fewer heads for keys than for queries"
WINDOW = "a sliding window"
FACTORS = "factors of the rotary frequencies (Llama 3, longrope)"
DYNAMIC = "rotary positions that change with the length"
WIDE = {"head": "one head wide", "projection": "over the whole projection"}
PLACED = {
    "before": "before attention and FFN",
    "after": "after attention and FFN",
    "around": "before and after attention and FFN",
}
ANOTHER = "Pass --format auto to see whether another format can."


def _bias_words(biases: frozenset[str]) -> str:
    return ", ".join(sorted(bias.removeprefix("self_attn.").removesuffix("_proj.bias") for bias in biases))
