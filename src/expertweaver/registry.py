"""Named things found by looking in a folder: adding one is adding a file.

Methods and formats are Python modules, families and presets are YAML files. A name that is not there is
an error that lists the names that are and suggests the nearest.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from expertweaver.errors import Problem, RecipeError

PACKAGE_FOLDER = Path(__file__).parent


def suggestion(name: str, known: Iterable[str]) -> str:
    """Name the nearest known word, or list all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}."


def require_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise a RecipeError with a suggestion unless `name` is one of the known names."""
    names = sorted(known)
    if name not in names:
        raise RecipeError(Problem(kind, f"one of {', '.join(names)}", f"'{name}'", suggestion(name, names)))


def module_names(room: str) -> list[str]:
    """Names of the entries of a room whose entries are modules (`methods`, `formats`); its folders hold their parts."""
    modules = pkgutil.iter_modules([str(PACKAGE_FOLDER / room)])
    return sorted(module.name for module in modules if module.name != "base" and not module.ispkg)


def load_module(room: str, name: str) -> ModuleType:
    """Import one entry of a room by its name.

    Raises:
        RecipeError: No entry has this name.
    """
    require_known(room.removesuffix("s"), name, module_names(room))
    return importlib.import_module(f"expertweaver.{room}.{name}")


def data_files(folder: str) -> dict[str, Path]:
    """Paths of a room's YAML entries by name (`dense/families`, `recipe/presets`)."""
    return {path.stem: path for path in sorted((PACKAGE_FOLDER / folder).glob("*.yaml"))}
