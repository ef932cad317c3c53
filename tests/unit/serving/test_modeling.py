"""Our own model class by itself: what its FFN computes, what its configuration refuses, that its file stands alone."""

from __future__ import annotations

import ast
import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import SIZES
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from expertweaver.formats.expertweaver_moe import FORMAT, MODELING_FILE
from expertweaver.serving.modeling_expertweaver_moe import (
    ExpertWeaverMoeConfig,
    ExpertWeaverMoeSparseMLP,
    ExpertWeaverMoeTopkRouter,
    _over_stock,
)

MIXED: dict[str, Any] = {
    "num_routed_experts": [4, 3],
    "num_experts_per_tok": [2, 1],
    "moe_intermediate_size": [8, [4, 12, 8]],
    "shared_expert_intermediate_size": [16, 0],
    "mlp_output_bias": True,
}


def config(**changes: Any) -> ExpertWeaverMoeConfig:
    return ExpertWeaverMoeConfig(**SIZES, dense_model_type="llama", **{**MIXED, **changes})


def random_mlp(layer: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    mlp = ExpertWeaverMoeSparseMLP(config(**changes), layer)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.normal_(std=0.3)
    return mlp


def glu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def expert(mlp: Any, number: int) -> tuple[torch.Tensor, ...]:
    """Gate, up and down of a routed expert, wherever they are kept."""
    experts = mlp.experts
    if hasattr(experts, "gate_up_proj"):
        return *experts.gate_up_proj[number].chunk(2), experts.down_proj[number]
    start, size = sum(experts.sizes[:number]), experts.sizes[number]
    gate, up = experts.gate_up_rows[2 * start : 2 * (start + size)].chunk(2)
    return gate, up, experts.down_rows[start : start + size].T


@pytest.mark.parametrize("layer", [0, 1])
@torch.inference_mode()
def test_an_ffn_is_the_plain_sum_of_the_shared_and_the_chosen_experts_and_the_bias(layer: int) -> None:
    mlp = random_mlp(layer)
    x = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(1))
    for token, found in zip(x.flatten(0, 1), mlp(x).flatten(0, 1), strict=True):
        expected = mlp.output_bias.clone()
        if layer == 0:
            shared = mlp.shared_expert
            expected += glu(token, shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
        scores = mlp.router.weight @ token + mlp.router.bias
        for number in scores.topk((2, 1)[layer]).indices.tolist():
            expected += glu(token, *expert(mlp, number))
        assert torch.allclose(found, expected, atol=1e-5)


@torch.inference_mode()
def test_without_chosen_experts_only_the_shared_one_runs() -> None:
    mlp = random_mlp(0, num_experts_per_tok=0)
    x = torch.randn(5, 32)
    assert torch.equal(mlp(x), mlp.shared_expert(x) + mlp.output_bias)
    FORMAT.set_all_experts_on(mlp)
    assert not torch.allclose(mlp(x), mlp.shared_expert(x) + mlp.output_bias, atol=1e-2)


def test_equal_scores_go_to_the_lower_id() -> None:
    router = ExpertWeaverMoeTopkRouter(config(), 6, 3)
    with torch.no_grad():
        router.weight.zero_()
        assert router.bias is not None
        router.bias[4] = 1.0
    assert router(torch.randn(2, 32))[2].tolist() == [[4, 0, 1]] * 2


def test_scores_are_float32_whatever_the_model_is() -> None:
    router = ExpertWeaverMoeTopkRouter(config(), 6, 3).bfloat16()
    scores, weights, _ = router(torch.randn(2, 32).bfloat16())
    assert (scores.dtype, weights.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(weights, torch.ones_like(weights))


def test_a_bfloat16_model_keeps_its_router_in_float32(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(config()).save_pretrained(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.model.layers[0].mlp.router.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.experts.down_proj.dtype == torch.bfloat16


@torch.inference_mode()
def test_transformers_expert_kernels_can_be_chosen_and_agree() -> None:
    assert not LlamaForCausalLM._can_set_experts_implementation()  # transformers remembers this of the class beneath
    _over_stock.cache_clear()
    model: Any = AutoModelForCausalLM.from_config(config()).eval()
    ids = torch.arange(2, 12)[None]
    logits = []
    for name in ("grouped_mm", "batched_mm", "eager"):
        model.set_experts_implementation(name)
        assert model.config._experts_implementation == name
        logits.append(model(ids).logits)
    assert torch.allclose(logits[0], logits[2], atol=1e-5)
    assert torch.allclose(logits[1], logits[2], atol=1e-5)


@torch.inference_mode()
def test_a_copy_computes_the_same_and_shares_nothing() -> None:
    model: Any = AutoModelForCausalLM.from_config(config()).eval()
    copied = copy.deepcopy(model)
    ids = torch.arange(2, 12)[None]
    assert torch.equal(copied(ids).logits, model(ids).logits)
    copied.model.layers[1].mlp.output_bias.add_(1)
    assert not torch.equal(copied(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dense_model_type": "lama"}, "found 'lama'"),
        ({"num_experts_per_tok": [2, 1, 1]}, "num_experts_per_tok: expected a number or 2 entries, found 3"),
        ({"moe_intermediate_size": [8, [4, 12]]}, "layer 1: expected 3 widths .* found 2"),
        ({"num_experts_per_tok": 4}, "layer 1: expected 3 widths .* found 3 and 4"),
    ],
)
def test_a_configuration_that_does_not_fit_together_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ExpertWeaverMoeConfig(**{**SIZES, "dense_model_type": "llama", **MIXED, **changes})


def test_idle_parameters_are_counted_layer_by_layer() -> None:
    assert config().num_idle_params == 3 * 32 * (2 * 8 + 4 + 8)


def test_the_file_needs_torch_and_transformers_only() -> None:
    tree = ast.parse(MODELING_FILE.read_text("utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).split(".")[0])
    assert {"torch", "transformers"} <= names
    assert names <= {"torch", "transformers", *sys.stdlib_module_names}
