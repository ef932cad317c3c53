"""Presets, files, shorthands and settings become one recipe; every problem is named by its dotted key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expertweaver.errors import RecipeError
from expertweaver.recipe.loading import SHORTHANDS, make_recipe, parse_setting, validate_recipe
from expertweaver.recipe.schema import Recipe
from expertweaver.registry import data_files
from expertweaver.yaml_file import read_yaml


def problems_of(**settings: Any) -> dict[str, tuple[str, str]]:
    """Found and fix of every problem, by its place."""
    with pytest.raises(RecipeError) as raised:
        make_recipe("model", settings={key.replace("__", "."): value for key, value in settings.items()})
    return {problem.where: (problem.found, problem.fix) for problem in raised.value.problems}


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_later_parts_win(tmp_path: Path) -> None:
    file = write(tmp_path, "source: {model: in-file}\nbudget: {mlp_sparsity: 0.5}\ncalibration: {num_samples: 9}\n")
    recipe = make_recipe("given", preset="paper-12", file=file, settings={"calibration.num_samples": 7})
    assert recipe.source.model == "given"
    assert recipe.budget.mlp_sparsity == 0.5
    assert recipe.budget.num_slices == 64
    assert recipe.calibration.num_samples == 7
    assert make_recipe(file=file).source.model == "in-file"


@pytest.mark.parametrize("shorthand", SHORTHANDS)
def test_a_shorthand_is_a_key(shorthand: str) -> None:
    section: Any = Recipe
    *path, last = SHORTHANDS[shorthand].split(".")
    for part in path:
        section = section.model_fields[part].annotation
    assert last in section.model_fields


def test_shorthands_set_their_keys() -> None:
    settings = {"method": "random", "mlp_sparsity": 0.5, "num_slices": 8, "calibration": ["a"], "dtype": "float32"}
    recipe = make_recipe("model", settings={**settings, "trust_remote_code": True, "format": "glm4_moe"})
    assert (recipe.method.name, recipe.budget.mlp_sparsity, recipe.budget.num_slices) == ("random", 0.5, 8)
    assert (recipe.calibration.paths, recipe.output.dtype) == (("a",), "float32")
    assert recipe.source.trust_remote_code is True


def test_another_method_drops_the_options_of_the_first(tmp_path: Path) -> None:
    file = write(tmp_path, "method: {name: expertweaver, tau: 0.7}\n")
    assert make_recipe("model", file=file, settings={"method": "static"}).method.name == "static"
    kept: Any = make_recipe("model", file=file, settings={"method": "expertweaver", "method.alpha_min": 0.1}).method
    assert (kept.tau, kept.alpha_min) == (0.7, 0.1)
    assert make_recipe("model", file=write(tmp_path, "method: random\n")).method.name == "random"


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_settings_does_not_matter(order: int) -> None:
    settings = [("method", "moefication"), ("method.seed", 7), ("method.num_shared_slices", 2)]
    method = make_recipe("x", preset="weave-25", settings=dict(settings[::order])).method.model_dump()
    assert (method["name"], method["seed"], method["num_shared_slices"]) == ("moefication", 7, 2)
    with pytest.raises(RecipeError, match="'tau'"):
        make_recipe("x", settings=dict([("method.tau", 0.5), ("method.name", "moefication")][::order]))


def test_settings_are_not_changed() -> None:
    budget = {"num_slices": 8}
    make_recipe("model", settings={"budget": budget, "mlp_sparsity": 0.5})
    assert budget == {"num_slices": 8}


@pytest.mark.parametrize("preset", data_files("recipe/presets"))
def test_every_preset_loads_and_its_keys_arrive(preset: str) -> None:
    values = make_recipe("model", preset=preset).to_values()
    for section, given in read_yaml(data_files("recipe/presets")[preset]).items():
        assert values[section] | given == values[section]


@pytest.mark.parametrize("preset", data_files("recipe/presets"))
def test_every_preset_has_a_header(preset: str) -> None:
    text = data_files("recipe/presets")[preset].read_text("utf-8")
    for word in ("# What: ", "# Inputs: ", f"--preset {preset}\n", "# Expected: "):
        assert word in text


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    found = problems_of(
        method="expertweaver",
        bugdet__num_slices=8,
        budget__num_slice=8,
        method__tauu=1,
        calibration__sequence_lenght=9,
        evaluate__texts=[],
    )
    assert found["bugdet"] == ("'bugdet'", "Did you mean 'budget'?")
    assert found["budget.num_slice"] == ("'num_slice'", "Did you mean 'num_slices'?")
    assert found["method.tauu"] == ("'tauu'", "Did you mean 'tau'?")
    assert found["calibration.sequence_lenght"] == ("'sequence_lenght'", "Did you mean 'sequence_length'?")
    assert found["evaluate.texts"] == ("'texts'", "Did you mean 'text'?")


def test_options_are_those_of_the_chosen_method() -> None:
    found = problems_of(method="random", method__sed=1)
    assert found == {"method.sed": ("'sed'", "Did you mean 'seed'?")}


def test_all_problems_are_reported_at_once() -> None:
    found = problems_of(mlp_sparsity=2, num_slices="abc", method__profile="both", dtype="int4", calibration__seed=-1)
    assert set(found) == {
        *("budget.mlp_sparsity", "budget.num_slices", "method.profile", "output.dtype", "calibration.seed"),
    }
    assert found["budget.mlp_sparsity"][0] == "2"


def test_a_missing_source_says_how_to_give_one() -> None:
    with pytest.raises(RecipeError, match=r"source: expected a value, found none. Set it"):
        make_recipe()
    with pytest.raises(RecipeError, match=r"source.model: expected a value"):
        validate_recipe({"source": {}})


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"source": {"model": ""}}, "source.model"),
        ({"source": {"model": "m"}, "budget": None}, "budget"),
        ({"source": {"model": "m"}, "method": ["a"]}, "method"),
        ({"source": {"model": "m"}, "method": {"name": 3}}, "method.name"),
        ({"source": {"model": "m"}, "output": {"format": "safetensors"}}, "output.format"),
        ({"source": {"model": "m"}, 1: 2}, "1"),
        ({"source": {"model": "m"}, "budget": {"num_slices": True}}, "budget.num_slices"),
    ],
)
def test_a_wrong_type_is_named_by_its_place(values: dict[str, Any], where: str) -> None:
    with pytest.raises(RecipeError) as raised:
        validate_recipe(values)
    assert [problem.where for problem in raised.value.problems] == [where]


def test_messages_do_not_repeat_themselves() -> None:
    with pytest.raises(RecipeError) as raised:
        make_recipe("model", settings={"method": "expertweaver", "mlp_sparsity": 1, "method.tau": -1})
    assert [problem.expected for problem in raised.value.problems] == ["tau positive or 'auto'", "less than 1"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("auto", "auto"), ("[a, b]", ["a", "b"]), ("true", True), ("", None), ("x=y", "x=y")],
)
def test_a_setting_is_a_key_and_yaml(text: str, value: Any) -> None:
    assert parse_setting(f"a.b={text}") == ("a.b", value)


@pytest.mark.parametrize("text", ["a.b", "", "=1", "a=[1", "a=!!python/name:os.system"])
def test_a_setting_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\na: 2\n", "'a' given twice"),
        ("a: {b: 1, b: 1}\n", "'b' given twice"),
        ("a: [\n", "parsing"),
        ("", "NoneType"),
        ("- a\n", "list"),
        ("? [a]\n: 1\n", "unhashable"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_yaml_is_read_strictly(text: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        read_yaml(write(tmp_path, text))
    assert found in raised.value.problems[0].found
    assert raised.value.problems[0].where == str(tmp_path / "recipe.yaml")


def test_a_yaml_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    for file in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(RecipeError, match="a readable recipe file"):
            read_yaml(file)


@pytest.mark.parametrize(
    ("settings", "where", "expected"),
    [
        ({"num_slices": 1}, "budget.num_slices", "greater than or equal to 2 or 'auto'"),
        ({"method": "weave", "method.shared_share": 2}, "method.shared_share", "less than or equal to 1 or 'auto'"),
        ({"method": "weave", "method.cluster_tokens": 3}, "method.cluster_tokens", "or equal to 256 or 'auto'"),
    ],
)
def test_a_value_that_fits_none_of_its_forms_is_one_problem(
    settings: dict[str, Any], where: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        make_recipe("model", settings=settings)
    [problem] = raised.value.problems
    assert problem.where == where
    assert expected in problem.expected
