"""Whether llama.cpp can compute a converted model, and which format it could be converted into where it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from expertweaver.choosing import least_asked
from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.family import Family, families
from expertweaver.errors import ArchitectureError, Problem, RecipeError
from expertweaver.formats.base import Capabilities, load_format
from expertweaver.gguf.architectures.base import ELSEWHERE, Architecture, Config, load_architecture
from expertweaver.gguf.architectures.parts.rotary import check_rope, rope_type
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.loading import validate_recipe
from expertweaver.registry import module_names

SILU = ("silu", "swish")
"""What llama.cpp has built into the architectures here."""


def find_architecture(manifest: Mapping[str, Any], config: Config, stored: Iterable[str]) -> Architecture:
    """The architecture of a converted model.

    Args:
        manifest: The conversion's record.
        config: The converted model's.
        stored: Names of its tensors.

    Raises:
        ArchitectureError: There is none, or llama.cpp would compute this model differently.
    """
    name, known = manifest["format"], module_names("gguf/architectures")
    other = other_format(manifest, config, stored)
    instead = f"{other} Or serve it with transformers or vLLM." if other else ELSEWHERE
    if name not in known:
        expected = f"a format that this writer can lay out for llama.cpp ({', '.join(known)})"
        raise ArchitectureError(Problem("manifest.json: format", expected, f"'{name}'", instead))
    architecture = load_architecture(name)
    if problems := [*check_rope(config, architecture.ROPES, instead), *architecture.check(config)]:
        raise ArchitectureError(*problems)
    return architecture


def other_format(manifest: Mapping[str, Any], config: Config, stored: Iterable[str]) -> str:
    """Say into which format to convert the model for llama.cpp and what that asks of the method; empty for none."""
    try:
        method = validate_recipe(manifest["recipe"]).method
    except RecipeError:  # written by another version
        return ""
    family = families().get(manifest["source"]["family"])
    names = {name.removeprefix(layer_prefix(0)) for name in stored}
    fitting = [
        name
        for name in module_names("gguf/architectures")
        if family is not None
        and rope_type(config) in load_architecture(name).ROPES
        and _holds(load_format(name).capabilities, family, config, names)
    ]
    budget = SliceBudget(**{key: manifest["budget"][key] for key in ("num_slices", "slice_width", "active_slices")})
    best = least_asked(fitting, method, budget)
    return "" if best is None else f"Convert the model again with --format {best[0]}. {best[1]}".rstrip()


def _holds(can: Capabilities, family: Family, config: Config, names: set[str]) -> bool:
    """Whether a format holds a model of the plainest kind, by what is stored of it; no for all that is less plain."""
    biases = frozenset(name for name in names if name.startswith("self_attn.") and name.endswith(".bias"))
    has_norms = "self_attn.q_norm.weight" in names
    return (
        (not biases or biases in can.attention_biases)
        and can.qk_norm != ("none" if has_norms else "required")
        and (can.scales or not family.scales)
        and (can.partial_rotary or config["rope_parameters"].get("partial_rotary_factor", 1.0) == 1.0)
        and family.output_norm is None
        and config.get("hidden_act") in SILU
        and not config.get("sliding_window")
    )
