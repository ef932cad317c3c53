"""The documentation says what the code does: recipe keys, verbs, public names, options of commands, links."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
import typer.main
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import expertweaver
from expertweaver.cli.app import app
from expertweaver.recipe.loading import SHORTHANDS
from expertweaver.recipe.schema import MethodSection, Recipe, method_options
from expertweaver.registry import data_files, module_names

ROOT = Path(__file__).parents[2]
RECIPE_PAGE = ROOT / "docs/recipe.md"
IGNORED_FOLDERS = {"node_modules", "build", "dist", "demo", "out"}

Key = tuple[str | None, str]
"""A method (None for what every method has) and a dotted recipe key."""

OPTIONS_HEADING = re.compile(r"### Options of `(\w+)`")
KEY_ROW = re.compile(r"\| `([a-z_.]+)` \| (.*?) \| `(.*?)` \| (.*) \|")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """Every Markdown page of the project."""

    def walk(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith(".") and path.name not in IGNORED_FOLDERS:
                yield from walk(path)
            elif path.suffix == ".md":
                yield path

    return list(walk(ROOT))


def all_text() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in pages())


# --- recipe keys ------------------------------------------------------------------------------------------------------


def known_keys() -> dict[Key, FieldInfo]:
    """Every recipe key of the code; what a method has as every method does, it does not have again."""
    keys: dict[Key, FieldInfo] = {}
    for section, field in Recipe.model_fields.items():
        model = MethodSection if section == "method" else field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        keys |= {(None, f"{section}.{name}"): inner for name, inner in model.model_fields.items()}
    for method in module_names("methods"):
        options = method_options(method)
        own = [name for name in options.model_fields if name in vars(options)["__annotations__"] and name != "name"]
        keys |= {(method, f"method.{name}"): options.model_fields[name] for name in own}
    return keys


def documented_keys(text: str) -> dict[Key, tuple[str, str]]:
    """Type and default of every key that a table of the page holds."""
    found: dict[Key, tuple[str, str]] = {}
    method = None
    for line in text.splitlines():
        if line.startswith("#"):
            heading = OPTIONS_HEADING.fullmatch(line)
            method = heading[1] if heading else None
        elif row := KEY_ROW.fullmatch(line):
            assert (method, row[1]) not in found, f"{row[1]} stands in the page twice"
            found[method, row[1]] = row[2], row[3]
    return found


def default_as_documented(key: Key, field: FieldInfo) -> str:
    if key == (None, "method.name"):
        return Recipe.model_validate({"source": {"model": "x"}}).method.name
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


def words_of_type(annotation: Any, field: FieldInfo) -> list[str]:
    """What the type column of a key has to say: its choices, and its limits."""

    def choices(part: Any) -> list[str]:
        if get_origin(part) is Literal:
            return [f"`{choice}`" for choice in get_args(part)]
        return [word for inner in get_args(part) for word in choices(inner)]

    def kinds(part: Any) -> list[str]:
        names: dict[Any, str] = {bool: "true or false", int: "integer", float: "number", type(None): "null"}
        return [names[part]] if part in names else [word for inner in get_args(part) for word in kinds(inner)]

    limits = [
        f"{words} {getattr(limit, name)}"
        for limit in field.metadata
        for name, words in (("ge", "at least"), ("le", "at most"), ("lt", "below"), ("gt", "above"))
        if hasattr(limit, name)
    ]
    return choices(annotation) + kinds(annotation) + limits


def recipe_problems(text: str) -> list[str]:
    """Where the page and the code differ."""
    known, documented = known_keys(), documented_keys(text)
    problems = [f"{key} is not documented" for key in known.keys() - documented.keys()]
    problems += [f"{key} is documented and unknown" for key in documented.keys() - known.keys()]
    for key in known.keys() & documented.keys():
        kind, default = documented[key]
        expected = default_as_documented(key, known[key])
        if default != expected:
            problems.append(f"{key}: default {default}, in the code {expected}")
        problems += [
            f"{key}: the type does not say {word}"
            for word in words_of_type(known[key].annotation, known[key])
            if word not in kind
        ]
    return problems


def test_the_recipe_page_is_in_step_with_the_code() -> None:
    assert recipe_problems(RECIPE_PAGE.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("| `240` |", "| `241` |", "'calibration.num_samples'): default 241, in the code 240"),
        ("| `method.tau` |", "| `method.tauu` |", "'method.tauu') is documented and unknown"),
        ("| `method.tau` |", "| `method.tauu` |", "('expertweaver', 'method.tau') is not documented"),
        ("### Options of `random`", "### Random", "('random', 'method.seed') is not documented"),
        ("`all` or `active`", "`all`", "the type does not say `active`"),
        ("at least 0, below 1", "at least 0", "the type does not say below 1"),
    ],
)
def test_a_page_that_is_out_of_step_is_found_out(old: str, new: str, problem: str) -> None:
    text = RECIPE_PAGE.read_text(encoding="utf-8")
    assert old in text
    problems = recipe_problems(text.replace(old, new, 1))
    assert any(problem in found for found in problems), problems


def test_the_keys_of_the_code_are_seen() -> None:
    known = known_keys()
    assert (None, "budget.mlp_sparsity") in known
    assert ("expertweaver", "method.tau") in known
    assert (None, "method.repair") in known
    assert ("random", "method.repair") not in known
    assert {section for _, key in known for section in [key.split(".")[0]]} == set(Recipe.model_fields)


def test_every_shorthand_and_its_key_stand_in_one_row() -> None:
    text = RECIPE_PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `--[\w-]+`.* \| `(\w+)` \| `([\w.]+)` \|$", text, re.MULTILINE))
    assert rows == SHORTHANDS


@pytest.mark.parametrize("room", ["methods", "formats", "presets"])
def test_every_name_there_is_to_choose_is_on_the_recipe_page(room: str) -> None:
    names = list(data_files("recipe/presets")) if room == "presets" else module_names(room)
    assert names
    text = RECIPE_PAGE.read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


# --- verbs, names, commands -------------------------------------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def in_code(name: str, text: str) -> bool:
    """Whether a name begins an inline piece of code, alone or as a call."""
    return re.search(rf"`{re.escape(name)}[`(]", text) is not None


def test_every_verb_is_documented() -> None:
    text = all_text()
    assert commands()
    assert [verb for verb in commands() if f"`expertweaver {verb}" not in text] == []


def test_every_public_name_is_documented() -> None:
    text = all_text()
    assert "convert" in expertweaver.__all__
    assert [name for name in expertweaver.__all__ if not in_code(name, text)] == []


def test_a_word_of_plain_text_does_not_document_a_name() -> None:
    assert not in_code("plan", "We plan to do so; see `planning.py` and `make_plan`.")


def documented_commands() -> list[tuple[str, list[str]]]:
    """Every `expertweaver ...` line of the shell blocks: its page, its words."""
    found = []
    for page in pages():
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "bash":
                lines = block.replace("\\\n", " ").splitlines()
                found += [(page.name, line.split()) for line in lines if line.startswith("expertweaver ")]
    return found


def command_problems(words: list[str]) -> list[str]:
    """Verbs, options and recipe keys of one command line that do not exist."""
    verbs = commands()
    if words[1] not in verbs:
        return [f"no verb {words[1]}"]
    options = {name for parameter in verbs[words[1]].params for name in parameter.opts}
    problems = [f"{words[1]} has no option {word}" for word in words if word.startswith("--") and word not in options]
    keys = {key for _, key in known_keys()}
    settings = [after.partition("=")[0] for word, after in itertools.pairwise(words) if word == "--set"]
    return problems + [f"no recipe key {key}" for key in settings if key not in keys]


def test_documented_commands_have_verbs_options_and_keys_that_exist() -> None:
    found = documented_commands()
    assert {"convert", "plan", "evaluate"} <= {words[1] for _, words in found}
    assert [(page, problem) for page, words in found for problem in command_problems(words)] == []


@pytest.mark.parametrize("line", ["weave x", "plan x --sparsity 1", "convert x y --set budget.sparsity=1"])
def test_a_wrong_command_is_found_out(line: str) -> None:
    assert command_problems(["expertweaver", *line.split()])


def test_documented_python_compiles_and_imports_only_public_names() -> None:
    blocks = [
        (page, block) for page in pages() for kind, block in FENCE.findall(page.read_text("utf-8")) if kind == "python"
    ]
    assert blocks
    for page, block in blocks:
        compile(block, str(page), "exec")
        for names in re.findall(r"^from expertweaver import (.+)$", block, re.MULTILINE):
            assert set(names.split(", ")) <= set(expertweaver.__all__), f"{page}: {names}"


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that headings get on GitHub: lower case, spaces to dashes, other signs dropped."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_problems(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    problems = []
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists():
            problems.append(f"{page.name}: {target}: no such file")
        elif anchor and anchor not in anchors(text if path == page else path.read_text(encoding="utf-8")):
            problems.append(f"{page.name}: {target}: no such heading")
    return problems


def test_relative_links_resolve() -> None:
    found = pages()
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipe.md"} <= {page.name for page in found}
    assert [p for page in found for p in link_problems(page, page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("link", ["[a](docs/nothing.md)", "[a](docs/recipe.md#nothing)", "[a](#nothing)"])
def test_a_dead_link_is_found_out(link: str) -> None:
    assert link_problems(ROOT / "README.md", f"# Title\n\n{link}\n")
    assert not link_problems(ROOT / "README.md", "# A `b`: c\n\n[a](docs/recipe.md#presets) [b](#a-b-c)\n")


def test_no_placeholder_is_left() -> None:
    marks = re.compile(r"TODO|FIXME|TBD|^[A-Z]+-[A-Z]+$", re.MULTILINE)
    assert marks.search("COST-TABLE")
    assert {page.name: found[0] for page in pages() if (found := marks.findall(page.read_text("utf-8")))} == {}
