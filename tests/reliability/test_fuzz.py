"""Anything at all given to the readers of weights and of recipes: either it is read, or refused by an error of ours.

    python -m coverage run --branch --include='*/dense/reader.py,*/recipe/loading.py,*/yaml_file.py' \\
        -m pytest tests/reliability/test_fuzz.py && python -m coverage report -m

says what of these modules the fuzz run reaches. EXPERTWEAVER_FUZZ sets the examples of each test (100 without it).
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from expertweaver.dense.reader import INDEX_NAME, SINGLE_NAME, TensorReader
from expertweaver.errors import ExpertWeaverError, RecipeError
from expertweaver.recipe.loading import make_recipe, parse_setting

EXAMPLES = int(os.environ.get("EXPERTWEAVER_FUZZ", "100"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "I8", "shape": [], "data_offsets": [32, 33]},
}
DATA = bytes(33)
SPECIAL = st.sampled_from(
    [-1, 0, 1, 2**31, 2**63, 2**64, 10**30, 0.5, float("inf"), True, None, "", "F32", "..", "a/b"]
)
ANYTHING = st.recursive(
    SPECIAL | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=64)


@contextmanager
def folder_with(**files: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / {"weights": SINGLE_NAME, "index": INDEX_NAME}.get(file, file)).write_bytes(content)
        yield Path(name)


def packed(header: bytes, data: bytes = DATA) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def read_all(folder: Path) -> dict[str, Any]:
    """Open a folder and read what it claims to hold; only our own errors may come out."""
    try:
        reader = TensorReader.open(folder)
        return {name: reader.read(name) for name in reader.tensors}
    except ExpertWeaverError as error:
        check(error)
        return {}


def check(refusal: ExpertWeaverError) -> None:
    """A refusal has problems, each with its four parts, and fits on a few screens."""
    assert refusal.problems
    for problem in refusal.problems:
        assert all((problem.where, problem.expected, problem.found, problem.fix)), problem
    assert len(str(refusal)) < 100_000


def test_what_the_fuzz_starts_from_is_read() -> None:
    with folder_with(weights=packed(json.dumps(HEADER).encode())) as folder:
        assert sorted(read_all(folder)) == ["a", "b", "c"]
    index = {"weight_map": {"a": "x", "b": "x", "c": "x"}}
    with folder_with(index=json.dumps(index).encode(), x=packed(json.dumps(HEADER).encode())) as folder:
        assert sorted(read_all(folder)) == ["a", "b", "c"]
    assert make_recipe("model", settings={"budget.num_slices": 8}).budget.num_slices == 8


@fuzz
@given(st.binary(max_size=256))
def test_any_bytes_for_a_weight_file(content: bytes) -> None:
    with folder_with(weights=content) as folder:
        read_all(folder)


@fuzz
@given(st.integers(0, 10**6), BYTES, st.integers(0, 40))
def test_a_good_weight_file_with_some_bytes_changed(place: int, new: bytes, removed: int) -> None:
    good = packed(json.dumps(HEADER).encode())
    start = place % len(good)
    with folder_with(weights=good[:start] + new + good[start + removed :]) as folder:
        read_all(folder)


@fuzz
@given(
    st.sampled_from(["a", "b", "c", "__metadata__", "new"]),
    ANYTHING,
    st.sampled_from(["dtype", "shape", "data_offsets", None]),
)
def test_a_header_with_any_value_anywhere(name: str, value: Any, key: str | None) -> None:
    header = json.loads(json.dumps(HEADER))
    if key is None:
        header[name] = value
    else:
        header.setdefault(name, {})[key] = value
    with folder_with(weights=packed(json.dumps(header).encode())) as folder:
        read_all(folder)


@fuzz
@given(ANYTHING | st.dictionaries(st.just("weight_map"), ANYTHING))
def test_any_json_for_an_index(value: Any) -> None:
    with folder_with(index=json.dumps(value).encode(), x=packed(json.dumps(HEADER).encode())) as folder:
        read_all(folder)


NAMES = st.sampled_from(["x", "y", "x" * 5000]) | st.text(max_size=20)


@fuzz
@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), NAMES), st.sampled_from(["a", "d"]))
def test_an_index_of_any_names(weight_map: dict[str, str], name: str) -> None:
    other = {name: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}
    index = json.dumps({"weight_map": weight_map}).encode()
    first, second = packed(json.dumps(HEADER).encode()), packed(json.dumps(other).encode(), bytes(2))
    with folder_with(index=index, x=first, y=second) as folder:
        found = read_all(folder)
        assert not found or set(found) == set(weight_map), "a tensor was dropped, or made up"


@fuzz
@given(st.binary(min_size=len(DATA), max_size=len(DATA)))
def test_any_numbers_in_a_good_file(data: bytes) -> None:
    with folder_with(weights=packed(json.dumps(HEADER).encode(), data)) as folder:
        found = read_all(folder)
        assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@fuzz
@given(st.lists(st.sampled_from(["x.safetensors", "pytorch_model.bin", "model.pt", "notes.txt"]), unique=True))
def test_a_folder_without_weights_that_are_read(names: list[str]) -> None:
    with folder_with(**dict.fromkeys(names, b"")) as folder:
        assert read_all(folder) == {}


@fuzz
@given(st.binary(max_size=200))
def test_any_bytes_for_an_index(content: bytes) -> None:
    with folder_with(index=content, weights=packed(json.dumps(HEADER).encode())) as folder:
        assert read_all(folder) == {}


def load(text: bytes) -> None:
    """Load a recipe; only a RecipeError with four parts may come out."""
    with folder_with(recipe=text) as folder:
        try:
            make_recipe("model", file=folder / "recipe")
        except RecipeError as error:
            check(error)


SECTIONS = ("source", "calibration", "method", "budget", "output", "evaluate")
KEYS = (
    "model",
    "paths",
    "num_samples",
    "seed",
    "name",
    "repair",
    "mlp_sparsity",
    "num_slices",
    "format",
    "text",
    "tau",
)
RECIPES = st.dictionaries(
    st.sampled_from(SECTIONS) | st.text(max_size=5),
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), ANYTHING, max_size=4) | ANYTHING,
    max_size=4,
)
SNIPPETS = st.sampled_from(
    [
        *("&a ", "*a", "<<: ", "? ", ": ", "- ", "!!set ", "!!binary ", "!!python/name:os ", "2001-99-99", "[", "]"),
        *("{", "}", "\n", "  ", "method", "budget: ", "name", "|\n", ">\n", "'", '"', "%YAML 1.1\n", "---\n", "...\n"),
        *("\t", "#", "0x", "1e9", "1:99", ".inf", "~", "\\u0000", "\x00", "\ufeff"),
    ]
)


@fuzz
@given(RECIPES)
def test_any_values_for_a_recipe(values: dict[str, Any]) -> None:
    try:
        text = yaml.safe_dump(values, allow_unicode=True)
    except UnicodeEncodeError:
        assume(False)
        return
    load(text.encode("utf-8", "surrogatepass"))


@fuzz
@given(st.lists(SNIPPETS | st.text(max_size=4), max_size=20))
def test_any_text_for_a_recipe(parts: list[str]) -> None:
    load("".join(parts).encode("utf-8", "surrogatepass"))


@fuzz
@given(st.binary(max_size=64))
def test_any_bytes_for_a_recipe(content: bytes) -> None:
    load(content)


@fuzz
@given(
    st.sampled_from(["method.seed", "budget", "method", "a.b", "method.name", ""]),
    st.lists(SNIPPETS | st.text(max_size=4), max_size=8),
)
def test_any_text_for_a_setting(key: str, parts: list[str]) -> None:
    try:
        name, value = parse_setting(f"{key}={''.join(parts)}")
        make_recipe("model", settings={"method": "weave", name: value})
    except RecipeError as error:
        check(error)


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_any_depth(depth: int) -> None:
    for text in ("[" * depth, "{a: " * depth, "- " * depth, "a:\n".join(" " * i for i in range(min(depth, 1000)))):
        load(text.encode())
    with folder_with(weights=packed(b"[" * depth), index=b"[" * depth) as folder:
        assert read_all(folder) == {}
