"""Every source tensor has one fate; every shape follows from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from expertweaver.dense.accounting import Origin, account, check_shapes, expected_origins, find_rule
from expertweaver.dense.family import Dims, families
from expertweaver.dense.reader import TensorInfo, TensorReader
from expertweaver.errors import CheckpointError

DIMS = Dims(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    vocab_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    hidden_act="silu",
)
FILE = Path("model.safetensors")
CONFIG: dict[str, Any] = {}


def complete(family: str, config: Mapping[str, Any] = CONFIG) -> dict[str, TensorInfo]:
    """The headers of a checkpoint that has exactly what it must."""
    rules = families()[family]
    tensors: dict[str, TensorInfo] = {}
    for name, origin in expected_origins(rules, DIMS, config).items():
        rows, *columns = DIMS.shape(find_rule(rules, name).shape)
        if origin.rows is not None:
            rows = max(origin.rows[1], *(o.rows[1] for o in same_source(family, origin.source) if o.rows))
        tensors[origin.source] = TensorInfo(FILE, "F32", (rows, *columns))
    return tensors


def same_source(family: str, source: str) -> list[Origin]:
    origins = expected_origins(families()[family], DIMS, CONFIG).values()
    return [origin for origin in origins if origin.source == source]


def reader(tensors: Mapping[str, TensorInfo]) -> TensorReader:
    return TensorReader(Path("model"), tensors, "")


def run_account(tensors: Mapping[str, TensorInfo], family: str = "llama", **config: Any) -> dict[str, str]:
    rules = families()[family]
    return account(reader(tensors), expected_origins(rules, DIMS, config), rules)


def run_shapes(tensors: Mapping[str, TensorInfo], family: str = "llama") -> None:
    rules = families()[family]
    check_shapes(reader(tensors), rules, DIMS, expected_origins(rules, DIMS, CONFIG))


@pytest.mark.parametrize("family", families())
def test_a_complete_model_is_accounted_for(family: str) -> None:
    tensors = complete(family)
    assert run_account(tensors, family) == {}
    run_shapes(tensors, family)


@pytest.mark.parametrize("family", families())
def test_every_missing_tensor_is_named(family: str) -> None:
    for name in complete(family):
        rest = {other: info for other, info in complete(family).items() if other != name}
        with pytest.raises(CheckpointError) as raised:
            run_account(rest, family)
        assert raised.value.problems[0].found == f"missing {name}"


def test_an_unknown_tensor_is_named_and_never_dropped() -> None:
    for name in ("extra", "model.layers.2.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias", "lm_head.bias"):
        with pytest.raises(CheckpointError) as raised:
            run_account({**complete("llama"), name: TensorInfo(FILE, "F32", (1,))})
        assert raised.value.problems[0].found == f"also {name}"


def test_long_lists_are_cut_and_counted() -> None:
    extra = {f"extra.{number:02}": TensorInfo(FILE, "F32", (1,)) for number in range(30)}
    with pytest.raises(CheckpointError, match=r"extra\.00, .*extra\.11 and 18 more"):
        run_account({**complete("llama"), **extra})


def test_what_is_dropped_on_purpose_has_a_reason() -> None:
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    extra = {frequencies: TensorInfo(FILE, "F32", (4,))}
    assert run_account({**complete("llama"), **extra}) == {
        frequencies: "rotary frequencies follow from the configuration"
    }
    tied = run_account(complete("llama"), tie_word_embeddings=True)
    assert tied == {"lm_head.weight": "tied: equal to model.embed_tokens.weight"}


def test_a_tied_head_may_be_absent_and_an_untied_one_may_not() -> None:
    rest = {name: info for name, info in complete("llama").items() if name != "lm_head.weight"}
    assert run_account(rest, tie_word_embeddings=True) == {}
    with pytest.raises(CheckpointError, match=r"missing lm_head\.weight"):
        run_account(rest)


def test_a_flag_of_the_config_adds_tensors() -> None:
    plain = expected_origins(families()["llama"], DIMS, {})
    biased = expected_origins(families()["llama"], DIMS, {"attention_bias": True, "mlp_bias": False})
    added = {name.split(".", 3)[3] for name in set(biased) - set(plain)}
    assert added == {f"self_attn.{part}_proj.bias" for part in "qkvo"}


def test_a_fused_tensor_is_divided_in_order() -> None:
    origins = expected_origins(families()["phi3"], DIMS, CONFIG)
    prefix = "model.layers.1."
    rows = {part: origins[f"{prefix}self_attn.{part}_proj.weight"].rows for part in "qkv"}
    assert rows == {"q": (0, 32), "k": (32, 48), "v": (48, 64)}
    assert origins[f"{prefix}mlp.up_proj.weight"] == Origin(f"{prefix}mlp.gate_up_proj.weight", (64, 128))
    assert origins[f"{prefix}mlp.down_proj.weight"] == Origin(f"{prefix}mlp.down_proj.weight")


@pytest.mark.parametrize("family", families())
def test_every_wrong_shape_is_named_with_both_shapes(family: str) -> None:
    for name, info in complete(family).items():
        wrong = (info.shape[0] + 1, *info.shape[1:])
        with pytest.raises(CheckpointError) as raised:
            run_shapes({**complete(family), name: TensorInfo(FILE, "F32", wrong)}, family)
        [problem] = raised.value.problems
        assert (problem.where, problem.expected) == (f"{FILE}: {name}", f"shape {list(info.shape)}")
        assert problem.found == str(list(wrong))


@pytest.mark.parametrize("dtype", ["I8", "I64", "F64", "F8_E4M3", "BOOL"])
def test_weights_of_another_type_are_refused(dtype: str) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=f"{name}: expected type F32, BF16, F16, found {dtype}"):
        run_shapes({**complete("llama"), name: TensorInfo(FILE, dtype, (64, 32))})


def test_all_problems_are_reported_at_once() -> None:
    names = ["model.norm.weight", "lm_head.weight"]
    with pytest.raises(CheckpointError) as raised:
        run_shapes({**complete("llama"), **{name: TensorInfo(FILE, "I8", (7,)) for name in names}})
    assert len(raised.value.problems) == 2 * len(names)
