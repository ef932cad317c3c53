"""Reading YAML mappings strictly: no duplicate keys, no code, no aliases, no file without an end."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from expertweaver.errors import Problem, RecipeError

MAX_BYTES = 1 << 20
"""A recipe is a page of text; more is another file, or a device."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a key given twice is an error, not a silent overwrite."""
    fix = "See docs/recipe.md for the form of a recipe."
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(Problem(str(path), "a readable recipe file", str(error), "Check the path.")) from error
    if len(content) > MAX_BYTES:
        raise RecipeError(Problem(str(path), f"a recipe of at most {MAX_BYTES:,} bytes", "a longer file", fix))
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(Problem(str(path), "valid YAML", f"{error}", fix)) from error
    if not isinstance(values, dict):
        raise RecipeError(Problem(str(path), "a mapping of sections", type(values).__name__, fix))
    return values


def parse_yaml(text: str) -> Any:
    """Parse YAML of unique keys and plain values.

    Raises:
        yaml.YAMLError: Anything else, values that Python cannot hold (a 13th month) included.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases: a few lines of them stand for more values than any memory holds."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "an alias; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key in (self.construct_object(key, deep=deep) for key, _ in node.value):
            if not isinstance(key, Hashable):
                continue  # refused below, with its place
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' given twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
