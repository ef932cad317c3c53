"""Which format a model could be converted into for llama.cpp, where the one it is in will not do."""

from __future__ import annotations

from typing import Any

import pytest
from support.families import LLAMA3_ROPE, SIZES, YARN_ROPE

from expertweaver.errors import ArchitectureError
from expertweaver.gguf.fit import find_architecture, other_format
from expertweaver.recipe.loading import make_recipe

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LONG = {**PLAIN, "rope_type": "longrope"}
LAYER = "model.layers.0.self_attn."
QKV = frozenset(f"{LAYER}{part}_proj.bias" for part in "qkv")
NORMS = frozenset({f"{LAYER}q_norm.weight", f"{LAYER}k_norm.weight"})
ASKED = "Set method.router_bias=false. Set method.shared_share to a number."


def manifest(
    stored_format: str = "glm4_moe", family: str = "llama", method: str = "weave", **options: Any
) -> dict[str, Any]:
    """The parts of a record that matter."""
    settings = {"method": method, **{f"method.{key}": value for key, value in options.items()}}
    return {
        "format": stored_format,
        "recipe": make_recipe("model", settings=settings).to_values(),
        "source": {"family": family},
        "budget": {"num_slices": 8, "slice_width": 8, "active_slices": 4, "mlp_sparsity": 0.5},
    }


def config(rope: dict[str, Any] = PLAIN, **more: Any) -> dict[str, Any]:
    return {**SIZES, "head_dim": 8, "hidden_act": "silu", "rope_parameters": rope, **more}


@pytest.mark.parametrize(
    ("record", "rope", "stored", "expected"),
    [
        (manifest(), LLAMA3_ROPE, set(), f"granitemoeshared. {ASKED}"),
        (manifest(), LONG, set(), f"granitemoeshared. {ASKED}"),
        (manifest(router_bias=False, shared_share=0.25), LLAMA3_ROPE, set(), "granitemoeshared."),
        (manifest(method="random"), LLAMA3_ROPE, set(), "granitemoeshared."),
        (manifest("solar_open"), PLAIN, set(), "glm4_moe."),
        (manifest("solar_open", "qwen2"), YARN_ROPE, QKV, "glm4_moe."),
        (manifest("dots1", "qwen3"), PLAIN, NORMS, "glm4_moe."),
        (manifest("expertweaver_moe", "granite"), PLAIN, set(), f"granitemoeshared. {ASKED}"),
    ],
)
def test_the_format_that_asks_least(record: dict[str, Any], rope: dict[str, Any], stored: Any, expected: str) -> None:
    assert other_format(record, config(rope), stored) == f"Convert the model again with --format {expected}"


@pytest.mark.parametrize(
    ("record", "values", "stored"),
    [
        (manifest(), config({**PLAIN, "rope_type": "dynamic"}), set()),
        (manifest(family="qwen2"), config(LLAMA3_ROPE), QKV),
        (manifest(family="qwen3"), config(LLAMA3_ROPE), NORMS),
        (manifest("flex_olmo", "olmo2"), config(), NORMS),
        (manifest("expertweaver_moe", "gemma"), config(hidden_act="gelu"), set()),
        (manifest("expertweaver_moe", "qwen2"), config(sliding_window=8), QKV),
        (manifest("expertweaver_moe", method="read_me"), config(), set()),
        (manifest(family="unheard_of"), config(LLAMA3_ROPE), set()),
        ({**manifest(), "recipe": {"of": "another version"}}, config(LLAMA3_ROPE), set()),
    ],
)
def test_no_format_is_named_where_none_is_known(record: dict[str, Any], values: dict[str, Any], stored: Any) -> None:
    assert other_format(record, values, stored) == ""


def test_the_error_says_both_ways_out() -> None:
    with pytest.raises(ArchitectureError, match=r"with --format glm4_moe\. Or serve it with transformers or vLLM\.$"):
        find_architecture(manifest("solar_open"), config(), set())
    with pytest.raises(ArchitectureError, match=r"'flex_olmo'\. Serve this model with transformers or vLLM\.$"):
        find_architecture(manifest("flex_olmo", "olmo2"), config(), NORMS)
