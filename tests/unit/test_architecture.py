"""The plan of the house: who may import whom, what every method and format must have, how long things may be."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expertweaver.formats.base import Capabilities, Format, load_format
from expertweaver.methods.base import Method, load_method
from expertweaver.recipe.schema import MethodSection
from expertweaver.registry import PACKAGE_FOLDER, load_module, module_names

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MATHS = ("partition", "router", "repair", "modeling")
IO_ROOMS = ("dense", "checkpoint", "cli", "report", "evaluation", "formats", "methods", "calibration", "recipe")
BORDER = ("dense", "formats")
"""The only rooms that may ask what kind of model it is."""

SOURCES = sorted(PACKAGE_FOLDER.rglob("*.py"))
TESTS = sorted(Path(__file__).parents[1].rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_of(file: Path) -> str:
    parts = ["expertweaver", *file.relative_to(PACKAGE_FOLDER).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The folder below the package, or the module's own name where it lies in none."""
    return [*module.split("."), ""][1]


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), filename=str(file))


def imports_of(tree: ast.Module) -> set[str]:
    """Modules of the package that a file imports, wherever in it, as dotted names; `from x import y` gives both."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would hide who imports whom"
            names.add(str(node.module))
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "expertweaver"}


def functions_of(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length_of(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is None:
        return lines
    return lines - ((first.end_lineno or 0) - first.lineno + 1)


GRAPH = {module_of(file): imports_of(parse(file)) for file in SOURCES}


def importers(rooms: tuple[str, ...], of: tuple[str, ...]) -> list[str]:
    """Modules in some rooms that import from others."""
    return sorted(
        f"{module} imports {name}"
        for module, names in GRAPH.items()
        if room_of(module) in rooms
        for name in names
        if room_of(name) in of
    )


def test_the_graph_was_read() -> None:
    """Without it, every rule below would hold of nothing."""
    assert len(GRAPH) > 50
    assert "expertweaver.planning" in GRAPH["expertweaver.conversion"]
    assert "expertweaver.evaluation.quality" in GRAPH["expertweaver.conversion"], "an import inside a function counts"
    assert "expertweaver.cli.convert" in GRAPH["expertweaver.cli.app"]
    for room in (*MATHS, *IO_ROOMS):
        assert any(room_of(module) == room for module in GRAPH), room
    assert importers(("cli",), ("conversion",)) != []


def test_maths_never_imports_input_or_output() -> None:
    assert importers(MATHS, IO_ROOMS) == []


def test_maths_reads_and_writes_no_file() -> None:
    for file in SOURCES:
        if room_of(module_of(file)) in MATHS:
            text = file.read_text("utf-8")
            assert not [
                word for word in ("pathlib", "open(", "safetensors", "import json", "print(") if word in text
            ], file


def test_nothing_outside_the_command_line_imports_it() -> None:
    doors = {"cli", "__main__"}
    others = tuple({room_of(module) for module in GRAPH} - doors)
    assert importers(others, ("cli",)) == []


def test_method_files_do_not_know_each_other() -> None:
    for name in module_names("methods"):
        others = {f"expertweaver.methods.{other}" for other in module_names("methods") if other != name}
        assert not GRAPH[f"expertweaver.methods.{name}"] & others


def test_format_files_do_not_know_each_other_nor_the_methods() -> None:
    known = {f"expertweaver.{room}.{name}" for room in ("methods", "formats") for name in module_names(room)}
    for name in module_names("formats"):
        assert not GRAPH[f"expertweaver.formats.{name}"] & (known - {f"expertweaver.formats.{name}"})


def asks_for_the_model_type(tree: ast.Module) -> bool:
    """Whether a comparison has `model_type` (a name, an attribute, a key) on either side."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            words = {ast.unparse(inner) for inner in ast.walk(node)}
            if any(word == "model_type" or word.endswith((".model_type", "'model_type'")) for word in words):
                return True
    return False


def test_only_the_border_asks_what_kind_of_model_it_is() -> None:
    assert asks_for_the_model_type(parse(PACKAGE_FOLDER / "dense" / "family.py"))
    assert asks_for_the_model_type(ast.parse("x = config['model_type'] == 'llama'"))
    assert not asks_for_the_model_type(ast.parse("x = {'model_type': config.get('model_type')}"))
    found = [module_of(file) for file in SOURCES if asks_for_the_model_type(parse(file))]
    assert [module for module in found if room_of(module) not in BORDER] == []


def test_importing_the_package_and_its_command_line_loads_no_heavy_module() -> None:
    """Imports at the top of a file, followed from the command line; the subprocess test sees the same from outside."""
    heavy = ("torch", "transformers", "numpy", "safetensors", "plotly", "rich")
    pending, seen = ["expertweaver.cli.app"], set[str]()
    while pending:
        module = pending.pop()
        if module in seen or module not in GRAPH:
            continue
        seen.add(module)
        file = PACKAGE_FOLDER.parent / Path(*module.split("."))
        tree = parse(file / "__init__.py" if file.is_dir() else file.with_suffix(".py"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        pending += imports_of(ast.Module(body=list(top), type_ignores=[]))
        names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module).split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
        assert not names & set(heavy), f"{module} imports {names & set(heavy)}"
    assert "expertweaver.errors" in seen


def contract_of(protocol: type) -> set[str]:
    return {name for name, value in vars(protocol).items() if inspect.isfunction(value) and not name.startswith("_")}


def check_function(keeper: Any, name: str, protocol: type) -> None:
    function = getattr(keeper, name, None)
    assert inspect.isfunction(function) or inspect.ismethod(function), f"{keeper} has no {name}"
    assert inspect.getdoc(function), f"{name} of {keeper} has no docstring"
    wanted = list(inspect.signature(getattr(protocol, name)).parameters)[1:]
    assert list(inspect.signature(function).parameters) == wanted, f"{name} of {keeper}"


@pytest.mark.parametrize("name", module_names("methods"))
def test_every_method_keeps_the_contract(name: str) -> None:
    method: Any = load_method(name)
    assert contract_of(Method) == {"allocate", "design"}
    for function in contract_of(Method):
        check_function(method, function, Method)
    assert inspect.getdoc(method)
    assert issubclass(method.Options, MethodSection)
    assert method.Options.__doc__ != MethodSection.__doc__
    assert method.Options.model_fields["name"].default == name, "the name in the recipe is the name of the file"


@pytest.mark.parametrize("name", module_names("formats"))
def test_every_format_keeps_the_contract(name: str) -> None:
    form: Any = load_format(name)
    assert len(contract_of(Format)) >= 7
    for function in contract_of(Format):
        check_function(form, function, Format)
    assert isinstance(form.capabilities, Capabilities)
    assert inspect.getdoc(load_module("formats", name))


def test_every_public_thing_has_a_docstring() -> None:
    missing = [
        f"{file.relative_to(PACKAGE_FOLDER)}:{node.lineno} {node.name}"
        for file in SOURCES
        for node in parse(file).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert missing == []


@pytest.mark.parametrize("file", SOURCES, ids=module_of)
def test_files_and_functions_are_short(file: Path) -> None:
    assert len(file.read_text("utf-8").splitlines()) <= MAX_FILE_LINES
    long = {function.name: length_of(function) for function in functions_of(parse(file))}
    assert {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES} == {}


def test_the_length_of_a_function_leaves_its_docstring_out() -> None:
    [function] = functions_of(ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n'))
    assert length_of(function) == 3


def test_test_files_are_short_too() -> None:
    lengths = {str(file.name): len(file.read_text("utf-8").splitlines()) for file in TESTS}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_nothing_points_outside_the_repository() -> None:
    words = ("/" + "work", "shared" + "/data", "../" + "shared")
    suffixes = {".py", ".yaml", ".md", ".json", ".toml", ".txt"}
    files = [file for file in PACKAGE_FOLDER.rglob("*") if file.suffix in suffixes]
    assert len(files) > len(SOURCES)
    files += TESTS
    found = [f"{file}: {word}" for file in files for word in words if word in file.read_text("utf-8")]
    assert found == []
