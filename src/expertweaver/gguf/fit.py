"""Whether llama.cpp can compute a converted model, and which format it could be converted into where it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from expertweaver.choosing import LLAMA_CPP, least_asked
from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.family import Family, families
from expertweaver.errors import ArchitectureError, Problem, RecipeError
from expertweaver.formats.base import Capabilities, load_format
from expertweaver.formats.parts.fit import SILU, uncommon
from expertweaver.gguf.architectures.base import ELSEWHERE, Architecture, Config, load_architecture
from expertweaver.gguf.architectures.parts.rotary import check_rope
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.loading import validate_recipe
from expertweaver.registry import module_names


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
    if name in known:
        architecture = load_architecture(name)
        problems = [*check_rope(config, architecture.ROPES), *architecture.check(config)]
        if not problems:
            return architecture
    else:
        expected = f"a format that this writer can lay out for llama.cpp ({', '.join(known)})"
        problems = [Problem("manifest.json: format", expected, f"'{name}'", ELSEWHERE)]
    instead = _instead(manifest, config, frozenset(stored))
    raise ArchitectureError(*(replace(problem, fix=problem.fix.replace(ELSEWHERE, instead)) for problem in problems))


def _instead(manifest: Mapping[str, Any], config: Config, stored: frozenset[str]) -> str:
    """The ways out: another format if there is one, and the other engines that serve the model as it is."""
    engines = ["transformers"]
    if manifest["format"] in module_names("formats"):
        can = load_format(manifest["format"]).capabilities
        lost = {LLAMA_CPP} | _lost(can, config, _first_layer(stored))
        engines = [engine for engine in can.engines if engine not in lost] or engines
    serve, other = " or ".join(engines), other_format(manifest, config, stored)
    return f"{other} Or serve it with {serve}." if other else f"Serve this model with {serve}."


def other_format(manifest: Mapping[str, Any], config: Config, stored: Iterable[str]) -> str:
    """Say into which format to convert the model for llama.cpp and what that asks of the method; empty for none."""
    try:
        method = validate_recipe(manifest["recipe"]).method
        family = families()[manifest["source"]["family"]]
        sizes = {key: manifest["budget"][key] for key in ("num_slices", "slice_width", "active_slices")}
    except (RecipeError, KeyError, TypeError):  # written by another version
        return ""
    names = _first_layer(stored)
    fitting = [
        name
        for name in module_names("gguf/architectures")
        if not check_rope(config, load_architecture(name).ROPES)
        and _holds(load_format(name).capabilities, family, config, names)
    ]
    best = least_asked(fitting, method, SliceBudget(**sizes))
    return "" if best is None else f"Convert the model again with --format {best[0]}. {best[1]}".rstrip()


def _first_layer(stored: Iterable[str]) -> set[str]:
    """Names of the first layer's tensors, without its prefix; those of others as they are."""
    return {name.removeprefix(layer_prefix(0)) for name in stored}


def _biases(names: set[str]) -> frozenset[str]:
    return frozenset(name for name in names if name.startswith("self_attn.") and name.endswith(".bias"))


def _lost(can: Capabilities, config: Config, names: set[str]) -> set[str]:
    """The engines that would not serve all of this model in a format."""
    window, biases = bool(config.get("sliding_window")), bool(_biases(names))
    has = uncommon(config, config["rope_parameters"], biases=biases, window=window)
    return {engine for what, engines in can.not_served.items() if what in has for engine in engines}


def _holds(can: Capabilities, family: Family, config: Config, names: set[str]) -> bool:
    """Whether a format surely holds this model for llama.cpp, judged by its tensors and configuration alone.

    False where more would have to be known.
    """
    biases, has_norms = _biases(names), "self_attn.q_norm.weight" in names
    return (
        (not biases or biases in can.attention_biases)
        and can.qk_norm != ("none" if has_norms else "required")
        and (can.scales or not family.scales)
        and (can.partial_rotary or config["rope_parameters"].get("partial_rotary_factor", 1.0) == 1.0)
        and family.output_norm is None
        and config.get("hidden_act") in SILU
        and not config.get("sliding_window")
        and LLAMA_CPP not in _lost(can, config, names)
    )
