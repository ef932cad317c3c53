"""GGUF architectures: the contract, and what llama.cpp would compute differently; glm4_moe's layout."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import VARIANTS, save_variant
from support.llamacpp import PAIRS, REFUSED

from expertweaver.dense.model import open_dense
from expertweaver.dense.reader import TensorInfo
from expertweaver.formats.base import Layout, load_format
from expertweaver.gguf.architectures.base import Architecture, Part, PlannedTensor, load_architecture
from expertweaver.gguf.architectures.glm4_moe import check, key_values, remarks, tensors
from expertweaver.gguf.architectures.parts.rotary import PLAIN, WITH_FACTORS, check_rope
from expertweaver.registry import module_names

NAMES = module_names("gguf/architectures")
LAYOUT = Layout(num_experts=6, num_experts_per_tok=2, num_shared_slices=2, slice_width=8)
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


def config_of(variant: str, stored_format: str, folder: Path) -> dict[str, Any]:
    """The configuration that a conversion of a variant into a format would write."""
    dense = open_dense(str(save_variant(variant, folder / variant)))
    return load_format(stored_format).config(dense, LAYOUT, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_keeps_the_contract(name: str) -> None:
    module: Any = load_architecture(name)
    assert name in module_names("formats"), "an architecture is called as the format that it lays out"
    assert isinstance(module.NAME, str)
    assert module.ROPES in (PLAIN, WITH_FACTORS)
    contract = {n: f for n, f in vars(Architecture).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert len(contract) >= 4
    for function, declared in contract.items():
        wanted = [p for p in inspect.signature(declared).parameters if p != "self"]
        assert list(inspect.signature(getattr(module, function)).parameters) == wanted
        assert inspect.getdoc(getattr(module, function))


def test_what_llama_cpp_cannot_compute_is_refused_and_all_else_passes(tmp_path: Path) -> None:
    assert set(REFUSED) == set(NAMES)
    assert set().union(*REFUSED.values()) <= set(VARIANTS)
    found: dict[str, set[str]] = {name: set() for name in NAMES}
    for variant, name in PAIRS:
        config, architecture = config_of(variant, name, tmp_path), load_architecture(name)
        if [*check_rope(config, architecture.ROPES), *architecture.check(config)]:
            found[name].add(variant)
    assert found == REFUSED


CHANGES = {
    "glm4_moe": ({"n_group": 2}, {"first_k_dense_replace": 1}, {"num_nextn_predict_layers": 1}),
    "granitemoeshared": ({"hidden_act": "gelu"},),
    "mixtral": ({"sliding_window": 10},),
    "qwen2_moe": (
        {"norm_topk_prob": True}, {"use_sliding_window": True}, {"mlp_only_layers": [0]}, {"decoder_sparse_step": 2},
        {"head_dim": 16},
    ),
    "qwen3_moe": ({"norm_topk_prob": False}, {"attention_bias": True}, {"decoder_sparse_step": 2}),
}  # fmt: skip
COUNTS = {
    "glm4_moe": "n_routed_experts", "granitemoeshared": "num_local_experts", "mixtral": "num_local_experts",
    "qwen2_moe": "num_experts", "qwen3_moe": "num_experts",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_a_layout_takes_for_granted_is_checked(name: str, tmp_path: Path) -> None:
    config = config_of("qwen3" if name == "qwen3_moe" else "llama", name, tmp_path)
    check_it = load_architecture(name).check
    assert check_it(config) == []
    assert check_it({**config, COUNTS[name]: 1024}) == []
    for change in ({COUNTS[name]: 1025}, *CHANGES[name]):
        [problem] = check_it({**config, **change})
        assert next(iter(change)) in problem.where


def test_a_model_without_a_shared_expert_gets_one_of_zeros() -> None:
    bare = {**CONFIG, "n_shared_experts": 0}
    assert check(bare) == []
    assert key_values(bare)["expert_shared_count"] == 1
    assert "one of zeros is added" in remarks(bare)[0]
    assert remarks(CONFIG) == []
    found = {tensor.name: tensor for tensor in tensors(bare, stored())}
    for part, shape in (("gate", (8, 32)), ("up", (8, 32)), ("down", (32, 8))):
        tensor = found[f"blk.0.ffn_{part}_shexp.weight"]
        assert (tensor.shape, tensor.sources) == (shape, ())
        assert torch.equal(tensor.assemble([]), torch.zeros(shape))


def test_granite_without_a_shared_expert_names_none(tmp_path: Path) -> None:
    config = config_of("granite", "granitemoeshared", tmp_path)
    granite = load_architecture("granitemoeshared")
    assert granite.key_values(config)["expert_shared_feed_forward_length"] == 16
    routed_only = granite.key_values({**config, "shared_intermediate_size": 0})
    assert "expert_shared_feed_forward_length" not in routed_only
    constants = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")
    assert [granite.key_values(config)[key] for key in constants] == [6.0, 0.3, 0.2, 3.0]


def test_routers_and_norms_are_exact() -> None:
    shared = {
        f"model.layers.0.mlp.shared_experts.{part}_proj.weight": TensorInfo(Path("x"), "F32", (16, 32))
        for part in ("gate", "up", "down")
    }
    exact = {tensor.name for tensor in tensors(CONFIG, {**stored(), **shared}) if tensor.exact}
    layer = {"attn_norm.weight", "post_attention_norm.weight", "ffn_gate_inp.weight", "exp_probs_b.bias"}
    assert exact == {f"blk.0.{name}" for name in layer} | {"output_norm.weight"}


def test_parts_of_a_fused_source() -> None:
    fused = torch.arange(2 * 4 * 3).reshape(2, 4, 3).float()
    halves = [PlannedTensor("x", (2, 2, 3), ("a",), part=Part(index, 2)).values(lambda _: fused) for index in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1), fused)
    whole = partial(PlannedTensor, "x", (2, 4, 3), ("a",))
    assert torch.equal(whole().values(lambda _: fused), fused)
