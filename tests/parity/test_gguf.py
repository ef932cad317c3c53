"""GGUF files of real conversions hold what stock transformers loads from the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sparse import convert_variant
from support.tokenizers import texts_by_id
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from expertweaver import export
from expertweaver.errors import ArchitectureError

gguf = pytest.importorskip("gguf")

GLM = ("llama-tied", "qwen2-yarn", "qwen3", "phi3-partial-rope")
VARIANTS = (
    *((variant, "glm4_moe") for variant in GLM),
    ("granite-biased", "granitemoeshared"),
    ("llama-3-rope", "granitemoeshared"),
    ("phi3-longrope", "mixtral"),
    ("qwen2", "qwen2_moe"),
    ("qwen3", "qwen3_moe"),
)
PAIRED = ("granitemoeshared", "mixtral")
"""Formats whose architectures turn neighbours in a head."""
BF16_STEP = 2.0**-8
F16_STEP = 2.0**-10
Q8_STEP = 1 / 254 + 2.0**-10
"""Largest change of a value by a type, relative to itself; for Q8_0 relative to the largest of its block."""

COMMON = {
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "vocab_size", "expert_count", "expert_used_count",
}  # fmt: skip
OWN = {
    "glm4_moe": {
        "expert_shared_count", "expert_feed_forward_length", "expert_gating_func", "expert_weights_scale",
        "expert_weights_norm", "leading_dense_block_count", "nextn_predict_layers",
    },
    "granitemoeshared": {
        "expert_shared_feed_forward_length", "embedding_scale", "residual_scale", "attention.scale", "logit_scale",
    },
    "mixtral": set[str](),
    "qwen2_moe": {"expert_feed_forward_length", "expert_shared_feed_forward_length"},
    "qwen3_moe": {"expert_feed_forward_length"},
}  # fmt: skip
"""What llama.cpp's loader of these architectures asks for, or takes a default for that need not be ours."""


@pytest.fixture(scope="module", params=VARIANTS, ids="-".join)
def sparse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant, stored_format = request.param
    return convert_variant(variant, tmp_path_factory.mktemp(variant), stored_format=stored_format)


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Keys, values as float32, and types of a file."""
    reader = gguf.GGUFReader(file)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    values = {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    return keys, values, {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def expected_tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of the file as this test understands llama.cpp, from the loaded stock model."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    found = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
        "output.weight": model.lm_head.weight,
        **factors(config),
    }
    for i, layer in enumerate(model.model.layers):
        for name, tensor in {**attention(layer, config), **ffn(layer, config)}.items():
            found[f"blk.{i}.{name}"] = tensor
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def factors(config: Any) -> dict[str, torch.Tensor]:
    """Plain frequencies over those of transformers; float32 differs in the last digit, so these are rounded."""
    rope = config.rope_parameters
    if rope["rope_type"] == "longrope":
        return {f"rope_factors_{n}.weight": torch.tensor(rope[f"{n}_factor"]) for n in ("short", "long")}
    if rope["rope_type"] != "llama3":
        return {}
    plain = rope["rope_theta"] ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    return {"rope_freqs.weight": plain / theirs}


def attention(layer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Norms and projections, the rows of queries and keys in the order of the architecture."""
    found = {"attn_norm.weight": layer.input_layernorm.weight}
    for part, name in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
        projection = getattr(layer.self_attn, f"{part}_proj")
        rows = torch.arange(len(projection.weight))
        if part in "qk" and config.model_type in PAIRED:
            half = config.head_dim // 2
            pairs = [(first, first + half) for head in rows[:: 2 * half].tolist() for first in range(head, head + half)]
            rows = torch.tensor(pairs).flatten()
        found[f"{name}.weight"] = projection.weight[rows]
        if projection.bias is not None:
            found[f"{name}.bias"] = projection.bias[rows]
        if part in "qk" and hasattr(layer.self_attn, f"{part}_norm"):
            found[f"{name}_norm.weight"] = getattr(layer.self_attn, f"{part}_norm").weight
    return found


def ffn(layer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Router and experts; a stock class keeps gate and up of all experts in one tensor."""
    moe = layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe
    router = getattr(moe, "gate", None) or moe.router
    gate, up = moe.experts.gate_up_proj.chunk(2, dim=1)
    norm = "post_attention_norm" if config.model_type == "glm4_moe" else "ffn_norm"
    found = {
        f"{norm}.weight": layer.post_attention_layernorm.weight,
        "ffn_gate_inp.weight": router.weight,
        "ffn_gate_exps.weight": gate,
        "ffn_up_exps.weight": up,
        "ffn_down_exps.weight": moe.experts.down_proj,
    }
    if config.model_type == "glm4_moe":
        found["exp_probs_b.bias"] = router.e_score_correction_bias
    if config.model_type == "granitemoeshared":
        gate, up = layer.shared_mlp.input_linear.weight.chunk(2)
        found |= {"ffn_gate_shexp.weight": gate, "ffn_up_shexp.weight": up}
        found["ffn_down_shexp.weight"] = layer.shared_mlp.output_linear.weight
    elif config.model_type in ("glm4_moe", "qwen2_moe"):
        shared = moe.shared_experts if config.model_type == "glm4_moe" else moe.shared_expert
        for part in ("gate", "up", "down"):
            found[f"ffn_{part}_shexp.weight"] = getattr(shared, f"{part}_proj").weight
    if config.model_type == "qwen2_moe":
        found["ffn_gate_inp_shexp.weight"] = moe.shared_expert_gate.weight[0]
    return found


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
            assert error.max() <= (1e-5 if name == "rope_freqs.weight" else 0), name
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
    done = export(sparse, tmp_path / "model.gguf")
    keys, _, _ = read(tmp_path / "model.gguf")
    config = AutoModelForCausalLM.from_pretrained(sparse).config
    assert keys["general.architecture"] == done.architecture
    sizes = {k.removeprefix(f"{done.architecture}."): v for k, v in keys.items() if k.startswith(done.architecture)}
    scaling = {key for key in sizes if key.startswith("rope.scaling.")}
    assert set(sizes) == COMMON | OWN[config.model_type] | scaling
    assert sizes["expert_used_count"] == config.num_experts_per_tok
    assert sizes["rope.dimension_count"] == config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)
    assert sizes["attention.key_length"] == config.head_dim
    assert keys["expertweaver.mlp_sparsity"] == pytest.approx(0.5)
    assert keys["expertweaver.method"] == ("expertweaver" if config.model_type == "glm4_moe" else "random")
    assert keys["expertweaver.source"] == "dense"
    kind = config.rope_parameters["rope_type"]
    assert sizes["rope.scaling.type"] == (kind if kind in ("yarn", "longrope") else "none")
    if kind == "yarn":
        assert (sizes["rope.scaling.factor"], sizes["rope.scaling.original_context_length"]) == (4.0, 32)
    check_expert_keys(sizes, config)


def check_expert_keys(sizes: dict[str, Any], config: Any) -> None:
    """Each format's own names of the same facts."""
    match config.model_type:
        case "glm4_moe":
            assert sizes["expert_count"] == config.n_routed_experts
            assert sizes["expert_shared_count"] == config.n_shared_experts
            assert sizes["expert_feed_forward_length"] == config.moe_intermediate_size
            assert sizes["expert_gating_func"] == gguf.ExpertGatingFuncType.SIGMOID
            assert (sizes["expert_weights_scale"], sizes["expert_weights_norm"]) == (2.0, False)
            assert (sizes["leading_dense_block_count"], sizes["nextn_predict_layers"]) == (0, 0)
        case "granitemoeshared" | "mixtral":
            assert sizes["expert_count"] == config.num_local_experts
            assert sizes["feed_forward_length"] == config.intermediate_size == 8
        case _:
            assert sizes["expert_count"] == config.num_experts
            assert sizes["expert_feed_forward_length"] == config.moe_intermediate_size


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


def test_llama_3_rope_is_refused_and_not_dropped(tmp_path: Path) -> None:
    folder = convert_variant("llama-3-rope", tmp_path)
    with pytest.raises(ArchitectureError, match=r"drop the factors.* with --format granitemoeshared\. Use another"):
        export(folder, tmp_path / "model.gguf")
    assert list(tmp_path.glob("*.gguf*")) == []
