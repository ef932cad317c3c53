"""Reading YAML mappings strictly: no duplicate keys, no code."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from expertweaver.errors import Problem, RecipeError


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a key given twice is an error, not a silent overwrite."""
    fix = "See docs/recipe.md for the form of a recipe."
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(Problem(str(path), "a readable recipe file", str(error), "Check the path.")) from error
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(Problem(str(path), "valid YAML", f"{error}", fix)) from error
    if not isinstance(values, dict):
        raise RecipeError(Problem(str(path), "a mapping of sections", type(values).__name__, fix))
    return values


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)
