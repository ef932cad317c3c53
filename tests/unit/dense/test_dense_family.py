"""Families as data: inheritance, sizes, and what is told about models that no family holds."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from expertweaver.dense.family import Dims, Family, TensorRule, families, find_family, read_dims
from expertweaver.errors import ArchitectureError
from expertweaver.registry import PACKAGE_FOLDER, data_files
from expertweaver.yaml_file import read_yaml

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 96,
    "num_attention_heads": 4,
}
SYMBOLS = {"H", "F", "V", "D", "Q", "KV"}


def test_every_file_is_a_family_of_its_own_type() -> None:
    assert set(families()) == set(data_files("dense/families"))
    types = [family.model_type for family in families().values()]
    assert len(types) == len(set(types))
    for family in families().values():
        assert find_family(family.model_type, "config.json") is family


@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
def test_every_family_has_a_gated_ffn_and_says_where_every_part_lies(family: Family) -> None:
    assert {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")} <= set(family.layer)
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= set(family.model)
    rules = [*family.model.values(), *family.layer.values()]
    assert {symbol for rule in rules for symbol in rule.shape} <= SYMBOLS
    parts = [part for fused in family.fused.values() for part in fused]
    assert len(parts) == len(set(parts))
    assert set(parts) <= set(family.layer)
    assert "default" in family.rope_types


def test_an_heir_keeps_what_it_does_not_change() -> None:
    llama, qwen3, phi3 = families()["llama"], families()["qwen3"], families()["phi3"]
    assert qwen3.model == llama.model
    assert set(qwen3.layer) - set(llama.layer) == {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    assert set(llama.layer) <= set(qwen3.layer)
    assert (llama.qk_norm, qwen3.qk_norm) == (False, True)
    assert (llama.fused, set(phi3.fused)) == ({}, {"self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"})
    assert phi3.rope_types == ("default", "longrope")
    assert phi3.dropped == llama.dropped != ()


def test_an_heir_replaces_a_rule_of_the_same_name() -> None:
    llama, qwen2 = families()["llama"].layer, families()["qwen2"].layer
    name = "self_attn.q_proj.bias"
    assert (llama[name].when, qwen2[name].when) == ("attention_bias", None)
    assert qwen2["self_attn.o_proj.bias"] == llama["self_attn.o_proj.bias"]


def test_a_family_file_with_a_misspelt_key_is_refused() -> None:
    with pytest.raises(ValueError, match="shpe"):
        TensorRule.model_validate({"shape": ["H"], "shpe": ["F"]})
    values = yaml.safe_load(data_files("dense/families")["llama"].read_text("utf-8"))
    with pytest.raises(ValueError, match="droped"):
        Family.model_validate({**values, "name": "x", "droped": []})


def test_reasons_are_given_for_no_supported_model() -> None:
    reasons = read_yaml(PACKAGE_FOLDER / "dense" / "unsupported.yaml")
    assert not set(reasons) & {family.model_type for family in families().values()}
    for model_type, reason in reasons.items():
        with pytest.raises(ArchitectureError) as raised:
            find_family(model_type, "config.json")
        assert raised.value.problems[0].found == f"'{model_type}', which is not convertible: {reason}"
        assert all(name in raised.value.problems[0].expected for name in families())


def test_a_type_that_nobody_knows_has_no_reason() -> None:
    with pytest.raises(ArchitectureError) as raised:
        find_family("made_up", "config.json")
    assert raised.value.problems[0].found == "'made_up'"


def test_sizes_have_the_defaults_of_the_library() -> None:
    dims = read_dims(SIZES, "config.json")
    assert (dims.num_key_value_heads, dims.head_dim, dims.max_position_embeddings) == (4, 8, 2048)
    given = read_dims({**SIZES, "num_key_value_heads": 2, "head_dim": 16}, "config.json")
    assert (given.num_key_value_heads, given.head_dim) == (2, 16)


def test_symbols_become_numbers() -> None:
    dims = Dims(**SIZES, num_key_value_heads=2, head_dim=16, max_position_embeddings=128, hidden_act="silu")
    found = {symbol: dims.shape((symbol,))[0] for symbol in SYMBOLS}
    assert found == {"H": 32, "F": 64, "V": 96, "D": 16, "Q": 64, "KV": 32}


@pytest.mark.parametrize("value", [0, -1, 1.5, "32", None, True, [32], 2**40])
def test_a_size_that_is_none_is_named(value: Any) -> None:
    with pytest.raises(ArchitectureError) as raised:
        read_dims({**SIZES, "intermediate_size": value}, "config.json")
    [problem] = raised.value.problems
    assert (problem.where, problem.found) == ("config.json: intermediate_size", repr(value))


def test_all_bad_sizes_are_named_at_once() -> None:
    with pytest.raises(ArchitectureError) as raised:
        read_dims({"hidden_size": 0, "num_key_value_heads": 0, "num_hidden_layers": 5000}, "config.json")
    names = {problem.where.removeprefix("config.json: ") for problem in raised.value.problems}
    assert names == {*SIZES, "num_key_value_heads", "head_dim"}
