"""Recipes and settings made to break a loader: refused in four parts with exit code 2; and how many cases there are."""

from __future__ import annotations

import os

import pytest
import test_bad_input
import test_bad_request
import test_bad_text
import test_hostile_config
import test_hostile_text
import test_hostile_weights
from support.commands import Bench, Case, Complaint, bad_request, check_refused
from support.spoils import bad_recipe

KEYS = "docs/recipe.md"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def bad_file(
    name: str, text: str | bytes, expected: str, found: str, where: str = "recipe.yaml", fix: str = ""
) -> Case:
    return bad_recipe(f"file: {name}", text, Complaint(where, expected, found, fix))


def bad_yaml(name: str, text: str | bytes, found: str) -> Case:
    return bad_file(name, text, "valid YAML", found, fix="See docs/recipe.md")


def bad_key(name: str, text: str, where: str, expected: str, found: str) -> Case:
    return bad_file(name, text, expected, found, where)


def bad_setting(name: str, text: str, where: str, expected: str, found: str, fix: str) -> Case:
    return bad_request(f"--set: {name}", Complaint(where, expected, found, fix), "--set", text)


FILES = (
    bad_yaml("aliases of aliases of aliases", LAUGHS, "an alias"),
    bad_yaml("a list in itself", "calibration:\n  paths: &a [*a]\n", "an alias"),
    bad_yaml("a map in itself", "method: &a\n  name: *a\n", "an alias"),
    bad_yaml("a 99th month", "method:\n  seed: 2001-99-99\n", "month must be in 1..12"),
    bad_yaml("a number too long", "method:\n  seed: " + "1" * 5000 + "\n", "4300 digits"),
    bad_yaml("a key that is a list", "? [a, b]\n: 2\n", "unhashable key"),
    bad_yaml("a function", "!!python/name:os.system x\n", "could not determine"),
    bad_yaml("an object", "a: !!python/object/new:os.system [exit 1]\n", "could not determine"),
    bad_yaml("two documents", "a: 1\n---\nb: 2\n", "a single document"),
    bad_yaml("null characters", "a: 1\nb\0: 1\n", "not allowed"),
    bad_yaml("a tab", "budget:\n\tnum_slices: 8\n", "cannot start any token"),
    bad_yaml("a name twice, deep inside", "method: {name: weave, name: static}\n", "given twice"),
    bad_yaml("a key of 5,000 letters", "k" * 5000 + ": 1\n", "mapping values are not allowed"),
    bad_yaml("too deep by indents", "".join(" " * depth + "a:\n" for depth in range(700)), "recursion"),
    bad_file("empty", "", "a mapping of sections", "NoneType"),
    bad_file("a page of HTML", "<html></html>", "a mapping of sections", "str"),
    bad_file("Latin-1", "# caf\xe9".encode("latin-1"), "a readable recipe file", "0xe9"),
    bad_file("two megabytes", b"# " + b"x" * (2 << 20), "a recipe of at most 1,048,576 bytes", "a longer file"),
    bad_request(
        "file: a device without an end",
        Complaint("/dev/zero", "a recipe of at most", "a longer file", "docs/recipe.md"),
        *("--recipe", "/dev/zero"),
    ),
    bad_key("a number for a key", "1: 2\n", "1", "Keys should be strings", "1"),
    bad_key("null for a key", "~: 2\n", "None", "Keys should be strings", "None"),
    bad_key("a key that steers a terminal", '"\\e[2J": 1\n', "\x1b[2J", "a known key", "\x1b[2J"),
    bad_key("a method that is a list", "method: [weave]\n", "method", "a name or a mapping", "['weave']"),
    bad_key("a method that is null", "method: null\n", "method", "a name or a mapping", "None"),
    bad_key("a method that is a set", "method: !!set {weave}\n", "method", "a name or a mapping", "{'weave'}"),
    bad_key("a name that is a list", "method: {name: [weave]}\n", "method.name", "one of", "weave"),
    bad_key("a name that is a path", "method: {name: ../../x}\n", "method.name", "one of", "'../../x'"),
    bad_key("a name that is a module", "method: {name: base}\n", "method.name", "one of", "'base'"),
    bad_key("a name with two underlines", "method: {name: __init__}\n", "method.name", "one of", "'__init__'"),
    bad_key("a format that is a path", "output: {format: ../evil}\n", "output.format", "one of", "'../evil'"),
    bad_key("a format that is a list", "output: {format: [glm4_moe]}\n", "output.format", "a valid string", "glm4"),
    bad_key("a section that is text", "budget: lots\n", "budget", "a valid dictionary", "'lots'"),
    bad_key("a section that is null", "budget:\n", "budget", "a valid dictionary", "None"),
    bad_key("a section that is a number", "calibration: 3\n", "calibration", "a valid dictionary", "3"),
    bad_key("an infinite share", "budget: {mlp_sparsity: .inf}\n", "budget.mlp_sparsity", "a finite number", "inf"),
    bad_key("bytes for a seed", "method: {seed: !!binary aGk=}\n", "method.seed", "a valid integer", "b'hi'"),
    bad_key("trust that is a word", "source: {trust_remote_code: maybe}\n", "source.trust", "a valid boolean", "maybe"),
)
SETTINGS = (
    bad_setting("2,000 points", ".".join("a" * 2000) + "=1", "a.a.a", "a key of at most 8 parts", "2000", KEYS),
    bad_setting("points only", "...=1", "recipe", "a known key", "''", "Known"),
    bad_setting("too deep", "method.seed=" + "[" * 5000, "--set method.seed", "a YAML value", "recursion", "Quote it"),
    bad_setting("a 99th month", "method.seed=2001-99-99", "--set method.seed", "a YAML value", "month", "Quote it"),
    bad_setting("a number too long", "method.seed=" + "1" * 5000, "--set method.seed", "a YAML", "4300", "Quote it"),
    bad_setting("aliases", "method.seed=[&a [x], *a]", "--set method.seed", "a YAML value", "an alias", "Quote it"),
    bad_setting("a null", 'method.seed="a\0b"', "--set method.seed", "a YAML value", "not allowed", "Quote it"),
    bad_setting(
        "code", "method.seed=!!python/object/apply:os.getcwd []", "--set", "a YAML value", "could not", "Quote"
    ),
    bad_setting("a method that is null", "method=null", "method.name", "one of", "None", "Known"),
    bad_setting("a long value", "method.seed=" + "x" * 9000, "method.seed", "a valid integer", "more characters", KEYS),
)

CASES = (*FILES, *SETTINGS)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_recipes_made_to_break_a_loader_are_refused(case: Case, bench: Bench) -> None:
    check_refused(case, bench)


TABLES = (
    test_bad_input, test_bad_request, test_bad_text, test_hostile_config, test_hostile_text, test_hostile_weights,
)  # fmt: skip


def test_the_tables_hold_more_than_a_hundred_cases_of_different_names(capsys: pytest.CaptureFixture[str]) -> None:
    """The count that docs/reliability.md states: `pytest -s -k hundred` prints it."""
    cases = [case for module in TABLES for case in module.CASES] + [*CASES]
    names = [case.name for case in cases]
    hostile = len(CASES) + len(test_hostile_config.CASES) + len(test_hostile_text.CASES)
    hostile += len(test_hostile_weights.CASES) + len(test_hostile_text.MODELS)
    with capsys.disabled():
        if os.environ.get("EXPERTWEAVER_SHOW"):
            print(f"\ncases: {len(cases) + len(test_hostile_text.MODELS)}, of them hostile: {hostile}")
    assert hostile > 100
    assert len(set(names)) > 0.95 * len(names)
