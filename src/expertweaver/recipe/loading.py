"""From a preset, a file, shorthands and dotted settings to one validated Recipe, with all problems at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from expertweaver.errors import ExpertWeaverError, Problem, RecipeError, shortened
from expertweaver.recipe.schema import DEFAULT_METHOD, MethodSection, Recipe, method_options
from expertweaver.registry import data_files, module_names, require_known, suggestion
from expertweaver.yaml_file import parse_yaml, read_yaml

SHORTHANDS = {
    "method": "method.name",
    "mlp_sparsity": "budget.mlp_sparsity",
    "num_slices": "budget.num_slices",
    "calibration": "calibration.paths",
    "format": "output.format",
    "dtype": "output.dtype",
    "trust_remote_code": "source.trust_remote_code",
}
"""Names that the command line and the Python functions take in place of a dotted key."""


MAX_DEPTH = 8
"""Parts of a dotted key; no key has as many."""


def make_recipe(
    source: str | Path | None = None,
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """Build a recipe; later parts win: preset, file, `source`, settings.

    Args:
        source: The dense model: a folder or a hub id.
        preset: Name of a preset that ships with the package.
        file: A recipe as YAML.
        settings: Dotted keys (`budget.mlp_sparsity`) or shorthands (`mlp_sparsity`), with their values.

    Raises:
        RecipeError: An unknown key (with a suggestion), a wrong type or a value out of range; all of them.
    """
    values: dict[str, Any] = {}
    if preset is not None:
        presets = data_files("recipe/presets")
        require_known("preset", preset, presets)
        _merge(values, read_yaml(presets[preset]))
    if file is not None:
        _merge(values, read_yaml(Path(file)))
    if source is not None:
        _merge(values, {"source": {"model": str(source)}})
    given: dict[str, Any] = {}  # settings say one thing together, in whatever order they stand
    for key, value in (settings or {}).items():
        _merge(given, _nested(SHORTHANDS.get(key, key), value), keep_options=True)
    _merge(values, given)
    return validate_recipe(values)


def validate_recipe(values: Mapping[str, Any]) -> Recipe:
    """Validate plain values, translating every problem into our four-part form."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        problems = [problem for entry in error.errors() for problem in _translate(entry, values)]
        raise RecipeError(*_joined(problems)) from None


def parse_setting(text: str) -> tuple[str, Any]:
    """Split a `key=value` of the command line; the value is YAML (`0.5`, `true`, `[a, b]`).

    Raises:
        RecipeError: No '=' in the text, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(Problem("--set", "key=value", f"'{text}'", "Write for instance --set method.tau=0.5."))
    try:
        return key, parse_yaml(value)
    except yaml.YAMLError as error:
        found = f"'{shortened(value)}' ({shortened(str(error))})"
        raise RecipeError(Problem(f"--set {key}", "a YAML value", found, "Quote it.")) from error


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    parts = dotted.split(".")
    if len(parts) > MAX_DEPTH:
        fix = "docs/recipe.md lists the keys."
        raise RecipeError(Problem(shortened(dotted), f"a key of at most {MAX_DEPTH} parts", str(len(parts)), fix))
    for part in reversed(parts):
        value = {part: value}
    return value


def _merge(into: dict[str, Any], values: Mapping[str, Any], *, keep_options: bool = False) -> None:
    """Merge nested mappings; changing the method's name drops the options of the earlier one, unless they are kept.

    What stands where a section should is kept, and found by the validation, though a later part names a key of it.
    """
    for key, value in values.items():
        if key == "method" and isinstance(value, str):
            value = {"name": value}
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if key == "method" and not keep_options and value.get("name", old.get("name")) != old.get("name"):
                old.clear()
            _merge(old, value, keep_options=keep_options)
        elif key not in into or not isinstance(value, dict):
            into[key] = copy.deepcopy(value)


def _translate(entry: Any, values: Mapping[str, Any]) -> tuple[Problem, ...]:
    cause = entry.get("ctx", {}).get("error")
    if isinstance(cause, ExpertWeaverError):
        return cause.problems
    location = _place(entry["loc"], values)
    where = ".".join(location) or "recipe"
    if entry["type"] == "extra_forbidden":
        known = _fields_beside(location, values)
        return (Problem(where, "a known key", f"'{location[-1]}'", suggestion(location[-1], known)),)
    if entry["type"] == "missing":
        return (Problem(where, "a value", "none", f"Set it, for instance --set {where}=..."),)
    expected = entry["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return (
        Problem(where, expected, shortened(repr(entry["input"])), "Correct the value; docs/recipe.md lists the keys."),
    )


def _place(location: Sequence[str | int], values: Any) -> list[str]:
    """The key that an error is about; below a value that is no section come the forms that it was tried as."""
    place = []
    for part in location:
        if place and not isinstance(values, Mapping | list | tuple):
            break
        place.append(str(part))
        values = values.get(part) if isinstance(values, Mapping) else values
    return place


def _joined(problems: Sequence[Problem]) -> list[Problem]:
    """One problem for a value that fits none of several forms, such as a number or a word."""
    joined: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        key = (problem.where, problem.found)
        expected = f"{joined[key].expected} or {problem.expected}" if key in joined else problem.expected
        joined[key] = replace(problem, expected=expected)
    return list(joined.values())


def _fields_beside(location: list[str], values: Mapping[str, Any]) -> list[str]:
    """The keys that the section holding the last part of `location` would accept."""
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        if part == "method":
            section = _chosen_method(values)
            continue
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        nested = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if nested:
            section = nested[0]
    return list(section.model_fields)


def _chosen_method(values: Mapping[str, Any]) -> type[MethodSection]:
    method = values.get("method")
    name = method.get("name", DEFAULT_METHOD) if isinstance(method, dict) else DEFAULT_METHOD
    return method_options(name) if name in module_names("methods") else MethodSection
