"""The ideal by numbers that were worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Glm4MoeConfig, LlamaConfig

from expertweaver.bench.ideal import Shape, Size, decode_bytes, distinct_experts, prefill_flops
from expertweaver.bench.results import Spread
from expertweaver.bench.shapes import folder_facts, gguf_shape
from expertweaver.errors import CheckpointError

DENSE = Shape(Size(1000, 2000), Size(100, 200), Size(0, 0), 0, 0, num_layers=2, query_size=8, cache_bytes=32)
SPARSE = Shape(Size(400, 800), Size(100, 200), Size(600, 1200), 6, 2, num_layers=2, query_size=8, cache_bytes=32)


def test_distinct_experts_under_uniform_routing() -> None:
    assert distinct_experts(6, 2, 1) == pytest.approx(2)
    assert distinct_experts(4, 1, 2) == pytest.approx(4 * (1 - 9 / 16))
    assert distinct_experts(6, 6, 3) == pytest.approx(6)
    assert distinct_experts(6, 2, 1000) == pytest.approx(6)


def test_bytes_of_a_step() -> None:
    assert decode_bytes(DENSE, batch=1, context=10) == 2000 + 200 + 10 * 32
    assert decode_bytes(SPARSE, batch=1, context=10) == pytest.approx(800 + 200 + 1200 / 3 + 320)
    touched = 6 * (1 - (4 / 6) ** 2)
    assert decode_bytes(SPARSE, batch=2, context=10) == pytest.approx(1000 + 1200 * touched / 6 + 640)
    assert decode_bytes(SPARSE, batch=2, context=10, distinct=3) == pytest.approx(1000 + 600 + 640)


def test_operations_of_a_prompt() -> None:
    attention = 2 * 2 * 10 * 10 * 8 / 2 * 2  # two products of two operations, half of the square, two layers
    assert prefill_flops(DENSE, length=10) == 2 * 1000 * 10 + 2 * 100 + attention
    assert prefill_flops(SPARSE, length=10) == pytest.approx(2 * (400 + 200) * 10 + 200 + attention)


def test_spread() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)


COMMON: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
ATTENTION = 2 * (2 * 32 * 32 + 2 * 32 * 16)
NORMS = 5 * 32


@pytest.mark.parametrize("tied", [False, True])
def test_shape_of_a_dense_folder(tmp_path: Path, tied: bool) -> None:
    LlamaConfig(**COMMON, tie_word_embeddings=tied, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    facts = folder_facts(tmp_path, width=4)
    fixed = ATTENTION + NORMS + 2 * 3 * 32 * 48
    head = 64 * 32
    assert facts.shape == Shape(Size(fixed, 4 * fixed), Size(head, 4 * head), Size(0, 0), 0, 0, 2, 32, 2 * 16 * 2 * 4)
    assert (facts.vocab_size, facts.max_length) == (64, 64)


def test_shape_of_a_sparse_folder(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "moe_intermediate_size": 8, "n_routed_experts": 5, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "first_k_dense_replace": 0,
    }  # fmt: skip
    Glm4MoeConfig(**COMMON, **sizes).save_pretrained(tmp_path)
    shape = folder_facts(tmp_path, width=2).shape
    fixed, routed = ATTENTION + NORMS + 2 * (5 * 32 + 3 * 32 * 8), 2 * 5 * 3 * 32 * 8
    assert (shape.fixed, shape.routed) == (Size(fixed, 2 * fixed), Size(routed, 2 * routed))
    assert (shape.num_experts, shape.num_experts_per_tok) == (5, 2)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a readable config\.json"):
        folder_facts(tmp_path, width=4)


def test_shape_of_a_gguf_file() -> None:
    values = {
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8, "block_count": 2,
        "embedding_length": 32, "expert_count": 5, "expert_used_count": 2,
    }  # fmt: skip
    parts = {
        "token_embd.weight": Size(2048, 4096), "output.weight": Size(2048, 2176),
        "blk.0.ffn_gate_exps.weight": Size(10, 20), "blk.0.ffn_gate_shexp.weight": Size(3, 6),
        "blk.1.attn_q.weight": Size(5, 10),
    }  # fmt: skip
    shape = gguf_shape(values, parts)
    assert (shape.fixed, shape.head, shape.routed) == (Size(8, 16), Size(2048, 2176), Size(10, 20))
    assert (shape.num_experts, shape.query_size, shape.cache_bytes) == (5, 32, 2 * 2 * 8 * 2 * 2)
    del parts["output.weight"]
    assert gguf_shape(values, parts).head == Size(2048, 4096), "a tied head is the embedding"
