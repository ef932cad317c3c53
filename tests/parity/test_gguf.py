"""GGUF files of real conversions hold what stock transformers loads from the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.families import LLAMA3_ROPE
from support.models import edit_config
from support.sparse import convert_variant
from support.tokenizers import texts_by_id
from transformers import AutoModelForCausalLM

from expertweaver import export
from expertweaver.errors import ArchitectureError

gguf = pytest.importorskip("gguf")

VARIANTS = ("llama-tied", "qwen2-yarn", "qwen3", "phi3-partial-rope")
BF16_STEP = 2.0**-8
F16_STEP = 2.0**-10
Q8_STEP = 1 / 254 + 2.0**-10
"""Largest change of a value by a type, relative to itself; for Q8_0 relative to the largest of its block."""

REQUIRED = {
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "vocab_size", "expert_count", "expert_used_count",
    "expert_shared_count", "expert_feed_forward_length", "expert_gating_func", "expert_weights_scale",
    "expert_weights_norm", "leading_dense_block_count", "nextn_predict_layers",
}  # fmt: skip
"""What llama.cpp's loader of this architecture asks for, or takes a default for that need not be ours."""


@pytest.fixture(scope="module", params=VARIANTS)
def sparse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_variant(request.param, tmp_path_factory.mktemp(request.param))


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Keys, values as float32, and types of a file."""
    reader = gguf.GGUFReader(file)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    values = {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    return keys, values, {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def expected_tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of the file as this test understands llama.cpp, from the loaded stock model."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
        "output.weight": model.lm_head.weight,
    }
    for i, layer in enumerate(model.model.layers):
        at, attention, mlp = f"blk.{i}.", layer.self_attn, layer.mlp
        width = mlp.experts.down_proj.shape[-1]
        found[at + "attn_norm.weight"] = layer.input_layernorm.weight
        found[at + "post_attention_norm.weight"] = layer.post_attention_layernorm.weight
        for part in ("q", "k", "v"):
            projection = getattr(attention, f"{part}_proj")
            found[f"{at}attn_{part}.weight"] = projection.weight
            if projection.bias is not None:
                found[f"{at}attn_{part}.bias"] = projection.bias
            if model.config.use_qk_norm and part != "v":
                found[f"{at}attn_{part}_norm.weight"] = getattr(attention, f"{part}_norm").weight
        found[at + "attn_output.weight"] = attention.o_proj.weight
        found[at + "ffn_gate_inp.weight"] = mlp.gate.weight
        found[at + "exp_probs_b.bias"] = mlp.gate.e_score_correction_bias
        found[at + "ffn_gate_exps.weight"] = mlp.experts.gate_up_proj[:, :width]
        found[at + "ffn_up_exps.weight"] = mlp.experts.gate_up_proj[:, width:]
        found[at + "ffn_down_exps.weight"] = mlp.experts.down_proj
        for part in ("gate", "up", "down"):
            found[f"{at}ffn_{part}_shexp.weight"] = getattr(mlp.shared_experts, f"{part}_proj").weight
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


@pytest.mark.parametrize("quantize", ["f32", "f16", "bf16", "q8_0"])
def test_the_file_holds_the_checkpoint(quantize: str, sparse: Path, tmp_path: Path) -> None:
    done = export(sparse, tmp_path / "model.gguf", quantize=quantize)
    _, found, types = read(done.path)
    expected = expected_tensors(sparse)
    assert set(found) == set(expected)
    assert done.num_tensors == len(found)
    assert done.num_bytes == done.path.stat().st_size
    for name, values in expected.items():
        assert found[name].shape == values.shape, name
        error = np.abs(found[name] - values)
        if types[name] == "F32":
            assert error.max() == 0, name
        elif types[name] == "Q8_0":
            blocks = np.abs(values).reshape(-1, 32).max(axis=1, keepdims=True)
            assert (error.reshape(-1, 32) <= Q8_STEP * blocks).all(), name
        else:
            step = F16_STEP if types[name] == "F16" else BF16_STEP
            assert (error <= step * np.abs(values) + 6e-8).all(), name
    exact = {name for name in expected if expected[name].ndim == 1 or "ffn_gate_inp" in name}
    assert {name for name, kind in types.items() if kind == "F32"} == (set(types) if quantize == "f32" else exact)
    narrow = {name for name, values in expected.items() if values.shape[-1] % 32} - exact
    assert {f"blk.{layer}.ffn_down_exps.weight" for layer in (0, 1)} <= narrow, "slices of 8 neurons"
    assert set(done.kept_f16) == (narrow if quantize == "q8_0" else set())
    if quantize == "q8_0":
        assert {name for name, kind in types.items() if kind == "F16"} == narrow


def test_the_keys_are_those_that_llama_cpp_asks_for(sparse: Path, tmp_path: Path) -> None:
    export(sparse, tmp_path / "model.gguf")
    keys, _, _ = read(tmp_path / "model.gguf")
    config = AutoModelForCausalLM.from_pretrained(sparse).config
    assert keys["general.architecture"] == "glm4moe"
    assert {f"glm4moe.{key}" for key in REQUIRED} <= set(keys)
    sizes = {key.removeprefix("glm4moe."): value for key, value in keys.items() if key.startswith("glm4moe.")}
    assert sizes["expert_count"] == config.n_routed_experts
    assert sizes["expert_used_count"] == config.num_experts_per_tok
    assert sizes["expert_shared_count"] == config.n_shared_experts
    assert sizes["expert_feed_forward_length"] == config.moe_intermediate_size
    assert sizes["expert_gating_func"] == gguf.ExpertGatingFuncType.SIGMOID
    assert (sizes["expert_weights_scale"], sizes["expert_weights_norm"]) == (2.0, False)
    assert (sizes["leading_dense_block_count"], sizes["nextn_predict_layers"]) == (0, 0)
    assert sizes["rope.dimension_count"] == config.head_dim * config.rope_parameters["partial_rotary_factor"]
    assert sizes["attention.key_length"] == config.head_dim
    assert keys["expertweaver.mlp_sparsity"] == pytest.approx(0.5)
    assert keys["expertweaver.method"] == "expertweaver"
    assert keys["expertweaver.source"] == "dense"
    yarn = config.rope_parameters["rope_type"] == "yarn"
    assert sizes["rope.scaling.type"] == ("yarn" if yarn else "none")
    if yarn:
        assert (sizes["rope.scaling.factor"], sizes["rope.scaling.original_context_length"]) == (4.0, 32)


def test_the_vocabulary_is_the_tokenizers(sparse: Path, tmp_path: Path) -> None:
    export(sparse, tmp_path / "model.gguf")
    keys, _, _ = read(tmp_path / "model.gguf")
    texts = texts_by_id(sparse)
    assert dict(enumerate(keys["tokenizer.ggml.tokens"])) == texts
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert keys["tokenizer.ggml.merges"] == ["t h"]
    kinds = dict(zip(texts.values(), keys["tokenizer.ggml.token_type"], strict=False))
    assert {text for text, kind in kinds.items() if kind == gguf.TokenType.CONTROL} == {"<s>", "</s>"}
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert keys["tokenizer.ggml.add_bos_token"] is False


def test_llama_3_rope_is_refused_and_not_dropped(sparse: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sparse, tmp_path / "copy"))
    edit_config(copy, rope_parameters=LLAMA3_ROPE)
    with pytest.raises(ArchitectureError, match="frequency factors"):
        export(copy, tmp_path / "model.gguf")
    assert list(tmp_path.glob("*.gguf*")) == []
