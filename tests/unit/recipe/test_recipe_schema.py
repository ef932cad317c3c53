"""The recipe: frozen, complete, and the same after a trip through a file."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from expertweaver.recipe.loading import make_recipe, validate_recipe
from expertweaver.recipe.schema import MethodSection, Recipe, Section, method_options
from expertweaver.registry import module_names


def sections() -> list[type[BaseModel]]:
    """Every section class, the methods' own included."""
    methods = [method_options(name) for name in module_names("methods")]
    return [*(cls for cls in Section.__subclasses__() if cls is not Recipe and cls is not MethodSection), *methods]


def test_a_source_is_all_that_is_needed() -> None:
    recipe = make_recipe("model")
    assert recipe.source.model == "model"
    assert recipe.method.name == "weave"
    assert recipe.source.trust_remote_code is False


def test_values_hold_every_default_and_read_back_the_same() -> None:
    values = make_recipe("model", settings={"method": "random", "method.seed": 3}).to_values()
    assert values["method"] == {"name": "random", "repair": False, "num_shared_slices": 1, "seed": 3}
    assert set(values) == set(Recipe.model_fields)
    assert validate_recipe(json.loads(json.dumps(values))).to_values() == values
    assert validate_recipe(yaml.safe_load(yaml.safe_dump(values))) == validate_recipe(values)


def test_a_recipe_cannot_be_changed() -> None:
    recipe = make_recipe("model")
    for section, key in ((recipe, "method"), (recipe.budget, "num_slices"), (recipe.method, "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, None)


@pytest.mark.parametrize("section", sections(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_key_is_described_and_no_other_is_taken(section: type[BaseModel]) -> None:
    names = section.model_fields
    assert section.__doc__
    undescribed = [name for name, info in names.items() if not info.description and name != "name"]
    assert undescribed == []
    assert section.model_config.get("extra") == "forbid"
    assert section.model_config.get("frozen") is True


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["budget.mlp_sparsity", "method.tau", "method.alpha_min", "method.tau_quantile"])
def test_no_number_may_be_infinite_or_none_at_all(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        make_recipe("model", settings={key: value})


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_a_seed_that_is_accepted_can_be_used(seed: int) -> None:
    import torch

    layer = 5000
    for name in ("expertweaver", "random"):
        recipe = make_recipe("model", settings={"method": name, "method.seed": seed, "calibration.seed": seed})
        options: Any = recipe.method
        torch.Generator().manual_seed(options.seed * 100_003 + layer)
    with pytest.raises(ValueError, match="less than"):
        make_recipe("model", settings={"calibration.seed": 2**32})
