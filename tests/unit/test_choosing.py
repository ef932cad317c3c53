"""Which format is chosen, and what is said of those that were not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.families import save_text, save_variant

from expertweaver import convert, inspect, make_recipe, plan
from expertweaver.choosing import by_preference, choose_format, format_problems
from expertweaver.dense.model import DenseModel, open_dense
from expertweaver.errors import ArchitectureError
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import MethodSection, method_options
from expertweaver.registry import module_names

BUDGET = SliceBudget(num_slices=8, slice_width=8, active_slices=4)


def method(name: str, **options: Any) -> MethodSection:
    return method_options(name).model_validate({"name": name, **options})


PLAIN_WEAVE = method("weave", router_bias=False, shared_share=0.25)
ROUTED_WEAVE = method("weave", router_bias=False, shared_share=0)


def dense(variant: str, folder: Path) -> DenseModel:
    return open_dense(str(save_variant(variant, folder / variant)))


def test_the_default_format_is_tried_first_and_then_the_best_known() -> None:
    order = by_preference()
    assert order[0] == "glm4_moe"
    assert sorted(order) == module_names("formats")
    assert order.index("qwen2_moe") < order.index("dots1") < order.index("solar_open")


@pytest.mark.parametrize(
    ("variant", "section", "expected"),
    [
        ("llama", method("weave"), "glm4_moe"),
        ("llama", PLAIN_WEAVE, "glm4_moe"),
        ("qwen3", method("static"), "glm4_moe"),
        ("granite", PLAIN_WEAVE, "granitemoeshared"),
        ("granite", ROUTED_WEAVE, "granitemoeshared"),
        ("mistral-window", ROUTED_WEAVE, "mixtral"),
        ("mistral-window", method("random", num_shared_slices=0), "mixtral"),
        ("olmo2", ROUTED_WEAVE, "flex_olmo"),
        ("olmo2", method("random", num_shared_slices=0), "flex_olmo"),
        ("olmo2", PLAIN_WEAVE, "expertweaver_moe"),
        ("olmo2", method("weave"), "expertweaver_moe"),
        ("gemma2", ROUTED_WEAVE, "expertweaver_moe"),
    ],
)
def test_auto_takes_the_first_exact_format(variant: str, section: MethodSection, expected: str, tmp_path: Path) -> None:
    choice = choose_format("auto", dense(variant, tmp_path), "float32", section, BUDGET)
    assert choice.name == expected
    assert choice.notes[0].startswith(f"format {expected}, chosen by auto: it holds this model and method exactly")
    assert ("glm4_moe cannot hold" in choice.notes[0]) == (expected != "glm4_moe")


def test_a_pair_that_no_format_holds_is_refused_with_the_reason_of_each(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError) as caught:
        choose_format("auto", dense("granite", tmp_path), "float32", method("cmoe"), BUDGET)
    problems = {problem.where: problem for problem in caught.value.problems}
    assert list(problems) == [f"format {name}" for name in by_preference()]
    assert all("|gate_act * up_value|" in problem.found for problem in problems.values())
    assert "residual 0.3" in problems["format glm4_moe"].found
    assert "expertweaver compare" in problems["format expertweaver_moe"].fix


def test_our_own_class_is_taken_only_where_no_stock_class_is_exact(tmp_path: Path) -> None:
    assert by_preference()[-1] == "expertweaver_moe"
    choice = choose_format("auto", dense("granite", tmp_path), "float32", method("weave"), BUDGET)
    assert choice.name == "expertweaver_moe"
    assert "granitemoeshared cannot hold a router with a bias" in choice.notes[0]


@pytest.mark.parametrize(
    ("name", "section", "found", "fix"),
    [
        ("qwen2_moe", method("weave", shared_share=0.25), "a router with a bias", "method.router_bias=false"),
        ("qwen2_moe", method("static"), "a router with a bias", "another method"),
        ("qwen2_moe", method("weave", router_bias=False), "that each layer chooses", "method.shared_share to a number"),
        ("qwen2_moe", ROUTED_WEAVE, "no shared slice", "method.shared_share to a number"),
        ("qwen2_moe", method("expertweaver"), "that each layer chooses", "another method"),
        ("mixtral", PLAIN_WEAVE, "2 shared slices", "method.shared_share to 0"),
        ("mixtral", method("random"), "1 shared slices", "method.num_shared_slices to 0"),
        ("mixtral", method("cmoe"), "|gate_act * up_value|", "expertweaver compare"),
    ],
)
def test_a_method_that_a_format_cannot_hold_is_refused(
    name: str, section: MethodSection, found: str, fix: str, tmp_path: Path
) -> None:
    [problem] = format_problems(name, dense("llama", tmp_path), "float32", section, BUDGET)
    assert problem.where == f"method {section.name}"
    assert name in problem.expected
    assert found in problem.found
    assert fix in problem.fix


def test_inspect_names_the_formats_that_hold_the_model(tmp_path: Path) -> None:
    assert inspect(str(save_variant("mistral-window", tmp_path / "window")))["formats"] == [
        "expertweaver_moe",
        "mixtral",
    ]
    qwen3 = inspect(str(save_variant("qwen3", tmp_path / "qwen3")))["formats"]
    assert qwen3 == ["dots1", "expertweaver_moe", "glm4_moe", "qwen3_moe"]


def test_where_norms_are_and_how_wide_is_told(tmp_path: Path) -> None:
    def found(variant: str, name: str) -> list[str]:
        return [problem.found for problem in format_problems(name, sources[variant], "float32", ROUTED_WEAVE, BUDGET)]

    sources = {variant: dense(variant, tmp_path) for variant in ("olmo2", "gemma3", "qwen3")}
    assert found("olmo2", "qwen3_moe") == ["over the whole projection", "norms after attention and FFN"]
    assert found("olmo2", "mixtral") == ["q_norm and k_norm", "norms after attention and FFN"]
    assert found("qwen3", "flex_olmo") == ["one head wide", "norms before attention and FFN"]
    assert "norms before and after attention and FFN" in found("gemma3", "flex_olmo")


def test_what_an_engine_leaves_out_is_told(tmp_path: Path) -> None:
    notes = choose_format("mixtral", dense("mistral-window", tmp_path), "float32", ROUTED_WEAVE, BUDGET).notes
    assert len(notes) == 1
    assert "llama.cpp would not serve a sliding window" in notes[0]
    assert choose_format("mixtral", dense("mistral", tmp_path), "float32", ROUTED_WEAVE, BUDGET).notes == ()
    notes = choose_format("mixtral", dense("phi3-longrope", tmp_path), "float32", ROUTED_WEAVE, BUDGET).notes
    assert len(notes) == 1
    assert "beyond 32 tokens" in notes[0]


@pytest.mark.parametrize(
    ("section", "best"),
    [
        (method("weave"), "granitemoeshared. Set method.router_bias=false. Set method.shared_share to a number"),
        (method("weave", router_bias=False), "granitemoeshared. Set method.shared_share to a number"),
        (PLAIN_WEAVE, "granitemoeshared"),
        (method("random"), "granitemoeshared"),
        (method("static"), "granitemoeshared. Use another method, such as weave with method.router_bias=false and a "
         "fixed method.shared_share"),
    ],
)  # fmt: skip
def test_a_format_that_an_engine_reads_is_named_with_what_it_asks(
    section: MethodSection, best: str, tmp_path: Path
) -> None:
    told, where = choose_format("auto", dense("llama-3-rope", tmp_path), "float32", section, BUDGET).notes[1:]
    assert "llama.cpp would not serve factors of the rotary frequencies" in told
    assert where == f"llama.cpp would serve this model in the format {best}"


def test_more_experts_than_llama_cpp_loads_are_told(tmp_path: Path) -> None:
    def notes(variant: str, section: MethodSection, num_slices: int) -> tuple[str, ...]:
        budget = SliceBudget(num_slices=num_slices, slice_width=8, active_slices=400)
        return choose_format("glm4_moe", sources[variant], "float32", section, budget).notes

    sources = {variant: dense(variant, tmp_path) for variant in ("llama", "llama-3-rope")}
    told = "llama.cpp loads at most 1,024 routed experts, and there may be {}: see --num-slices"
    assert notes("llama", method("weave"), 1024) == ()
    assert notes("llama", method("weave"), 1025) == (told.format("1,025"),)
    assert notes("llama", method("random", num_shared_slices=1), 1025) == ()
    assert notes("llama", method("random", num_shared_slices=1), 1026) == (told.format("1,025"),)
    lost, many = notes("llama-3-rope", method("random", num_shared_slices=1), 1026)
    assert "factors of the rotary frequencies" in lost
    assert many == told.format("1,025"), "and no format that would serve it"


def test_no_format_is_named_where_none_is_known(tmp_path: Path) -> None:
    [told] = choose_format("glm4_moe", dense("internlm3", tmp_path), "float32", method("weave"), BUDGET).notes
    assert "llama.cpp would not serve rotary positions that change with the length" in told
    [told] = choose_format("mixtral", dense("phi3-window", tmp_path), "float32", ROUTED_WEAVE, BUDGET).notes
    assert "llama.cpp would not serve a sliding window" in told


def test_the_choice_is_made_by_the_plan_and_kept_in_the_manifest(tmp_path: Path) -> None:
    settings = {
        "format": "auto",
        "num_slices": 8,
        "mlp_sparsity": 0.5,
        "method.router_bias": False,
        "method.shared_share": 0.25,
        "calibration": [str(save_text(tmp_path / "text.jsonl"))],
        "calibration.sequence_length": 32,
    }
    recipe = make_recipe(save_variant("granite", tmp_path / "granite"), settings=settings)
    todo = plan(recipe, estimate_time=False)
    assert todo.format == "granitemoeshared"
    done = convert(recipe, tmp_path / "out")
    assert done.manifest["format"] == "granitemoeshared"
    assert done.manifest["recipe"]["output"]["format"] == "auto"
    assert todo.warnings[0] in done.manifest["warnings"]
    assert {layer["num_shared"] for layer in done.manifest["layers"]} == {2}
    assert done.manifest["layers"][1]["measures"]["error"] < done.manifest["layers"][1]["measures"]["error_before"]
