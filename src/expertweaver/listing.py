"""What there is to choose from: methods, families, formats, presets."""

from __future__ import annotations

import ast

from expertweaver.registry import PACKAGE_FOLDER, data_files, module_names
from expertweaver.yaml_file import read_yaml


def list_entries(kind: str) -> dict[str, str]:
    """Names and one-line descriptions of the `methods`, `families`, `formats` or `presets`, without importing them."""
    if kind in ("methods", "formats"):
        return {name: _first_docstring_line(kind, name) for name in module_names(kind)}
    if kind == "families":
        return {name: read_yaml(path)["summary"] for name, path in data_files("dense/families").items()}
    return {name: _preset_summary(path.read_text("utf-8")) for name, path in data_files("recipe/presets").items()}


def _first_docstring_line(room: str, name: str) -> str:
    source = (PACKAGE_FOLDER / room / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def _preset_summary(text: str) -> str:
    """The header's `What:` paragraph."""
    header = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    words: list[str] = []
    for line in header:
        if line.startswith("Inputs:"):
            break
        words.append(line.removeprefix("What:").strip())
    return " ".join(words)
