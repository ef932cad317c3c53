"""Which format a model could be converted into for llama.cpp, where the one it is in will not do."""

from __future__ import annotations

from typing import Any

import pytest
from support.families import DYNAMIC_ROPE, LLAMA3_ROPE, SIZES, VARIANTS, YARN_ROPE

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


GLM4_MOE: dict[str, Any] = {
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0, "n_routed_experts": 8,
}  # fmt: skip
QWEN2_MOE: dict[str, Any] = {
    "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False,
    "num_experts": 8,
}  # fmt: skip
QWEN3_MOE: dict[str, Any] = {**QWEN2_MOE, "norm_topk_prob": True, "attention_bias": True}


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
        (manifest("expertweaver_moe", method="random"), PLAIN, set(), "glm4_moe."),
    ],
)
def test_the_format_that_asks_least(record: dict[str, Any], rope: dict[str, Any], stored: Any, expected: str) -> None:
    assert other_format(record, config(rope), stored) == f"Convert the model again with --format {expected}"


@pytest.mark.parametrize(
    ("record", "values", "stored"),
    [
        (manifest(), config(DYNAMIC_ROPE), set()),
        (manifest(), config({**YARN_ROPE, "mscale": 1.0}), set()),
        (manifest("qwen3_moe", "qwen3"), config(), QKV | NORMS | {f"{LAYER}o_proj.bias"}),
        (manifest(family="qwen2"), config(LLAMA3_ROPE), QKV),
        (manifest(family="qwen3"), config(LLAMA3_ROPE), NORMS),
        (manifest("flex_olmo", "olmo2"), config(), NORMS),
        (manifest("expertweaver_moe", "gemma"), config(hidden_act="gelu"), set()),
        (manifest("expertweaver_moe", "qwen2"), config(sliding_window=8), QKV),
        (manifest("expertweaver_moe", method="read_me"), config(), set()),
        (manifest(family="unheard_of"), config(LLAMA3_ROPE), set()),
        ({**manifest(), "recipe": {"of": "another version"}}, config(LLAMA3_ROPE), set()),
        ({**manifest(), "source": None}, config(LLAMA3_ROPE), set()),
        ({**manifest(), "budget": {}}, config(LLAMA3_ROPE), set()),
    ],
)
def test_no_format_is_named_where_none_is_known(record: dict[str, Any], values: dict[str, Any], stored: Any) -> None:
    assert other_format(record, values, stored) == ""


@pytest.mark.parametrize(
    ("record", "values", "stored", "fix"),
    [
        (manifest("solar_open"), config(), set(), "{}glm4_moe. Or serve it with transformers."),
        (manifest("dots1", "qwen3"), config(), NORMS, "{}glm4_moe. Or serve it with transformers."),
        (manifest("flex_olmo", "olmo2"), config(), NORMS, "Serve this model with transformers or vLLM."),
        (manifest("expertweaver_moe", "gemma2"), config(), set(), "Serve this model with transformers."),
        (manifest("of_tomorrow", "qwen2"), config(LLAMA3_ROPE), QKV, "Serve this model with transformers."),
        (
            manifest("glm4_moe"), config(LLAMA3_ROPE, **GLM4_MOE), set(),
            "llama.cpp would drop the factors of the frequencies. "
            f"{{}}granitemoeshared. {ASKED} Or serve it with transformers or vLLM or SGLang.",
        ),
        (
            manifest("qwen2_moe", method="random"), config(head_dim=16, **QWEN2_MOE), set(),
            "{}glm4_moe. Or serve it with transformers or vLLM.",
        ),
        (
            manifest("qwen2_moe", "seed_oss", method="random"), config(head_dim=16, **QWEN2_MOE), QKV,
            "{}glm4_moe. Or serve it with transformers or vLLM.",
        ),
        (
            manifest("qwen3_moe", "qwen3", method="random"), config(**QWEN3_MOE), QKV | NORMS,
            "llama.cpp has no bias on o_proj here. {}glm4_moe. Or serve it with transformers or vLLM.",
        ),
        (
            manifest("mixtral", "mistral"), config(sliding_window=8, num_local_experts=8), set(),
            "llama.cpp has no window here. Serve this model with transformers or vLLM.",
        ),
        (
            manifest("granitemoeshared", "gemma"), config(hidden_act="gelu", num_local_experts=8), set(),
            "Serve this model with transformers.",
        ),
    ],
)  # fmt: skip
def test_the_error_says_every_way_out(record: dict[str, Any], values: dict[str, Any], stored: Any, fix: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        find_architecture(record, values, stored)
    [problem] = caught.value.problems
    assert problem.fix == fix.format("Convert the model again with --format ")


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_our_own_class_is_refused_whatever_its_dense_configuration_has(variant: str) -> None:
    family, make = VARIANTS[variant]
    with pytest.raises(ArchitectureError, match=r"erve (this model|it) with transformers\.$"):
        find_architecture(manifest("expertweaver_moe", family), make().to_dict(), set())


def test_every_problem_names_the_other_format() -> None:
    record = manifest("qwen2_moe", method="random")
    with pytest.raises(ArchitectureError) as caught:
        find_architecture(record, config(LLAMA3_ROPE, head_dim=16, **QWEN2_MOE), set())
    assert len(caught.value.problems) == 2
    assert all("with --format granitemoeshared. Or serve it" in problem.fix for problem in caught.value.problems)


def test_a_model_that_fits_needs_nothing_of_its_record_but_the_format() -> None:
    assert find_architecture({"format": "glm4_moe"}, config(**GLM4_MOE), set()).NAME == "glm4moe"
    with pytest.raises(ArchitectureError, match="Serve this model with transformers or vLLM or SGLang"):
        find_architecture({"format": "glm4_moe"}, config(LLAMA3_ROPE, **GLM4_MOE), set())
