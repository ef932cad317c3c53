"""GGUF architectures: the contract, rotary positions, and what llama.cpp would compute differently."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from expertweaver.dense.reader import TensorInfo
from expertweaver.gguf.architectures.base import Architecture, check_rope, load_architecture
from expertweaver.gguf.architectures.glm4_moe import check, key_values, remarks, tensors
from expertweaver.registry import module_names

NAMES = module_names("gguf/architectures")
CONFIG: dict[str, Any] = {
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 8,
    "routed_scaling_factor": 2.0,
    "norm_topk_prob": False,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "num_nextn_predict_layers": 0,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}


def stored() -> dict[str, TensorInfo]:
    """Headers of a layer as it lies on disk."""
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (96, 32),
        "model.norm.weight": (32,),
        "lm_head.weight": (96, 32),
        layer + "input_layernorm.weight": (32,),
        layer + "post_attention_layernorm.weight": (32,),
        layer + "mlp.gate.weight": (4, 32),
        layer + "mlp.gate.e_score_correction_bias": (4,),
    }
    return {name: TensorInfo(Path("x"), "F32", shape) for name, shape in shapes.items()}


def scaling(**rope: Any) -> dict[str, Any]:
    keys = key_values({**CONFIG, "rope_parameters": {"rope_theta": 10000.0, **rope}})
    return {key.removeprefix("rope.scaling."): v for key, v in keys.items() if key.startswith("rope.scaling.")}


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_keeps_the_contract(name: str) -> None:
    module: Any = load_architecture(name)
    assert name in module_names("formats"), "an architecture is called as the format that it lays out"
    assert isinstance(module.NAME, str)
    contract = {n: f for n, f in vars(Architecture).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert len(contract) >= 4
    for function, declared in contract.items():
        wanted = [p for p in inspect.signature(declared).parameters if p != "self"]
        assert list(inspect.signature(getattr(module, function)).parameters) == wanted
        assert inspect.getdoc(getattr(module, function))


def test_rotary_positions_that_key_values_can_say() -> None:
    assert scaling() == {"type": "none"}
    assert scaling(rope_type="linear", factor=2.0) == {"type": "linear", "factor": 2.0}
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
    assert scaling(**YARN) == yarn
    own = scaling(**YARN, attention_factor=2.0)["attn_factor"]
    assert own * (0.1 * torch.tensor(4.0).log() + 1) == pytest.approx(2.0)
    assert key_values(CONFIG)["rope.dimension_count"] == 4


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, "frequency factors"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "'longrope'"),
        ({**YARN, "mscale": 1.0}, "mscale"),
        ({**YARN, "beta_fast": 16.0}, "beta_fast"),
        ({**YARN, "truncate": False}, "truncate"),
    ],
)
def test_rotary_positions_that_it_cannot_say_are_refused(rope: dict[str, Any], words: str) -> None:
    [problem] = check_rope({"rope_parameters": {"rope_theta": 1e4, **rope}})
    assert words in str(problem)


def test_known_rotary_positions_pass() -> None:
    for rope in ({"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}, {**YARN, "beta_fast": 32}):
        assert check_rope({"rope_parameters": rope}) == []


@pytest.mark.parametrize(
    "change",
    [{"n_group": 2}, {"first_k_dense_replace": 1}, {"num_nextn_predict_layers": 1}, {"n_routed_experts": 1025}],
)
def test_what_the_layout_takes_for_granted_is_checked(change: dict[str, Any]) -> None:
    assert check(CONFIG) == []
    [problem] = check({**CONFIG, **change})
    assert next(iter(change)) in problem.where


def test_a_model_without_a_shared_expert_gets_one_of_zeros() -> None:
    bare = {**CONFIG, "n_shared_experts": 0}
    assert key_values(bare)["expert_shared_count"] == 1
    assert "one of zeros is added" in remarks(bare)[0]
    assert remarks(CONFIG) == []
    found = {tensor.name: tensor for tensor in tensors(bare, stored())}
    for part, shape in (("gate", (8, 32)), ("up", (8, 32)), ("down", (32, 8))):
        tensor = found[f"blk.0.ffn_{part}_shexp.weight"]
        assert (tensor.shape, tensor.sources) == (shape, ())
        assert torch.equal(tensor.assemble([]), torch.zeros(shape))


def test_routers_and_norms_are_exact() -> None:
    shared = {
        f"model.layers.0.mlp.shared_experts.{part}_proj.weight": TensorInfo(Path("x"), "F32", (16, 32))
        for part in ("gate", "up", "down")
    }
    exact = {tensor.name for tensor in tensors(CONFIG, {**stored(), **shared}) if tensor.exact}
    layer = {"attn_norm.weight", "post_attention_norm.weight", "ffn_gate_inp.weight", "exp_probs_b.bias"}
    assert exact == {f"blk.0.{name}" for name in layer} | {"output_norm.weight"}
