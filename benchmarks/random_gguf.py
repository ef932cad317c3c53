"""Make GGUF files with random weights, a dense one and sparse ones, to time llama.cpp at sizes that do not ship.

    python benchmarks/random_gguf.py OUT --num-slices 19,38,76 --mlp-sparsity 0.5 --type q8_0

writes OUT/dense-TYPE.gguf (arch llama) and OUT/sparse-SLICES-PERCENT-TYPE.gguf (arch glm4moe, as `expertweaver export`
writes it) without a vocabulary: the benchmark feeds token ids. One slice is shared. Needs the package gguf.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HEAD_SIZE = 64
SIGMOID = 2
SHARED_SLICES = 1
KINDS = gguf.GGMLQuantizationType
TYPES = {"f16": KINDS.F16, "bf16": KINDS.BF16, "q8_0": KINDS.Q8_0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden-size", type=int, default=896)
    parser.add_argument("--intermediate-size", type=int, default=4864)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--num-key-value-heads", type=int, default=2)
    parser.add_argument("--num-slices", default="19,38,76")
    parser.add_argument("--mlp-sparsity", default="0.5")
    parser.add_argument("--type", choices=TYPES, default="f16")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    _write(args, args.out / f"dense-{args.type}.gguf", None)
    for num_slices in map(int, args.num_slices.split(",")):
        for sparsity in map(float, args.mlp_sparsity.split(",")):
            active = round((1 - sparsity) * num_slices)
            _write(args, args.out / f"sparse-{num_slices}-{100 * sparsity:g}-{args.type}.gguf", (num_slices, active))


def _write(args: argparse.Namespace, file: Path, slices: tuple[int, int] | None) -> None:
    writer = gguf.GGUFWriter(file, "llama" if slices is None else "glm4moe")
    _add_sizes(writer, args, slices)
    draw = np.random.default_rng(0)

    def add(name: str, *shape: int, exact: bool = False) -> None:
        values = np.ones(shape, np.float32) if len(shape) == 1 else draw.standard_normal(shape, np.float32) * 0.02
        if exact or len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = TYPES[args.type]
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    hidden, wide = args.hidden_size, args.intermediate_size
    add("token_embd.weight", args.vocab_size, hidden)
    add("output_norm.weight", hidden)
    add("output.weight", args.vocab_size, hidden)
    for layer in range(args.num_layers):
        prefix = f"blk.{layer}."
        for name, rows in (
            ("q", hidden),
            ("k", args.num_key_value_heads * HEAD_SIZE),
            ("v", args.num_key_value_heads * HEAD_SIZE),
        ):
            add(f"{prefix}attn_{name}.weight", rows, hidden)
        add(f"{prefix}attn_output.weight", hidden, hidden)
        add(f"{prefix}attn_norm.weight", hidden)
        if slices is None:
            add(f"{prefix}ffn_norm.weight", hidden)
            _add_glu(add, prefix, "", wide, hidden)
            continue
        width, experts = wide // slices[0], slices[0] - SHARED_SLICES
        add(f"{prefix}post_attention_norm.weight", hidden)
        add(f"{prefix}ffn_gate_inp.weight", experts, hidden, exact=True)
        writer.add_tensor(f"{prefix}exp_probs_b.bias", np.zeros(experts, np.float32))
        _add_glu(add, prefix, "_shexp", width * SHARED_SLICES, hidden)
        _add_glu(add, prefix, "_exps", width, hidden, experts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(file, f"{file.stat().st_size / 1e6:.0f} MB")


def _add_glu(add: Any, prefix: str, kind: str, width: int, hidden: int, *experts: int) -> None:
    for part in ("gate", "up"):
        add(f"{prefix}ffn_{part}{kind}.weight", *experts, width, hidden)
    add(f"{prefix}ffn_down{kind}.weight", *experts, hidden, width)


def _add_sizes(writer: gguf.GGUFWriter, args: argparse.Namespace, slices: tuple[int, int] | None) -> None:
    writer.add_block_count(args.num_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(args.hidden_size)
    writer.add_feed_forward_length(args.intermediate_size)
    writer.add_head_count(args.hidden_size // HEAD_SIZE)
    writer.add_head_count_kv(args.num_key_value_heads)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(args.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    if slices is not None:
        num_slices, active = slices
        writer.add_expert_count(num_slices - SHARED_SLICES)
        writer.add_expert_used_count(active - SHARED_SLICES)
        writer.add_expert_shared_count(SHARED_SLICES)
        writer.add_expert_feed_forward_length(args.intermediate_size // num_slices)
        writer.add_uint32("glm4moe.expert_gating_func", SIGMOID)
        writer.add_expert_weights_scale(2.0)
        writer.add_expert_weights_norm(False)
        writer.add_leading_dense_block_count(0)
        writer.add_uint32("glm4moe.nextn_predict_layers", 0)


if __name__ == "__main__":
    main()
