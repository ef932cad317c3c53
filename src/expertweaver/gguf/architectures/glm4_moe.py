"""glm4moe: shared expert, sigmoid router with a selection bias, rotate-half positions; no frequency factors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.reader import TensorInfo
from expertweaver.errors import Problem
from expertweaver.gguf.architectures.base import (
    Config,
    KeyValues,
    PlannedTensor,
    attention_sizes,
    check_rope,
    copied,
    stacked,
)

NAME = "glm4moe"
SIGMOID = 2
"""llama.cpp's number of the sigmoid among its gating functions."""

MAX_EXPERTS = 1024
"""More make llama.cpp stop when it loads the file."""

FIXED = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
"""What this writer's layout takes for granted; every conversion writes it so."""

LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
}
"""Tensors of a layer that only change their name; biases and norms on q and k are there if the checkpoint has them."""

ROUTER = ("ffn_gate_inp.weight", "exp_probs_b.bias")
"""Stay float32 when the rest is quantised: their values are tiny, and a choice hangs on small differences."""


def check(config: Config) -> list[Problem]:
    """Find what of a model llama.cpp would compute differently."""
    problems = check_rope(config)
    for key, value in FIXED.items():
        if config.get(key) != value:
            fix = "Convert the model again: ExpertWeaver writes this value."
            problems.append(Problem(f"config.json: {key}", str(value), str(config.get(key)), fix))
    if config["n_routed_experts"] > MAX_EXPERTS:
        fix = "Convert the model into fewer slices (--num-slices)."
        found = str(config["n_routed_experts"])
        problems.append(Problem("config.json: n_routed_experts", f"at most {MAX_EXPERTS} in llama.cpp", found, fix))
    return problems


def key_values(config: Config) -> KeyValues:
    """Sizes and switches; a model without a shared expert gets one of zeros, see `tensors`."""
    return {
        **attention_sizes(config),
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": max(1, config["n_shared_experts"]),
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_gating_func": SIGMOID,
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": bool(config["norm_topk_prob"]),
        "leading_dense_block_count": 0,
        "nextn_predict_layers": 0,
    }


def tensors(config: Config, stored: Mapping[str, TensorInfo]) -> list[PlannedTensor]:
    """Every tensor of the file, layer by layer."""
    planned = [copied("token_embd.weight", "model.embed_tokens.weight", stored)]
    for layer in range(config["num_hidden_layers"]):
        planned += _layer_tensors(layer, config, stored)
    planned.append(copied("output_norm.weight", "model.norm.weight", stored, exact=True))
    planned.append(copied("output.weight", "lm_head.weight", stored))
    return planned


def remarks(config: Config) -> list[str]:
    """Say that a shared expert was added, if it was."""
    if config["n_shared_experts"]:
        return []
    return ["llama.cpp needs a shared expert here and the model has none; one of zeros is added and costs some time"]


def _layer_tensors(layer: int, config: Config, stored: Mapping[str, TensorInfo]) -> list[PlannedTensor]:
    source, target = layer_prefix(layer), f"blk.{layer}."
    planned = [
        copied(target + name, source + origin, stored, exact=name in ROUTER or len(stored[source + origin].shape) == 1)
        for name, origin in LAYER_NAMES.items()
        if source + origin in stored
    ]
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]
    for part, rows in (("gate", width), ("up", width), ("down", hidden)):
        experts = tuple(
            f"{source}mlp.experts.{expert}.{part}_proj.weight" for expert in range(config["n_routed_experts"])
        )
        shape = (len(experts), rows, hidden + width - rows)
        planned.append(PlannedTensor(f"{target}ffn_{part}_exps.weight", shape, experts, assemble=stacked))
        planned.append(_shared_expert(f"{target}ffn_{part}_shexp.weight", source, part, config, stored))
    return planned


def _shared_expert(
    name: str, source: str, part: str, config: Config, stored: Mapping[str, TensorInfo]
) -> PlannedTensor:
    """A part of the shared expert; of zeros where there is none, because llama.cpp then adds silu(x) * x instead."""
    if config["n_shared_experts"]:
        return copied(name, f"{source}mlp.shared_experts.{part}_proj.weight", stored)
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]
    shape = (hidden, width) if part == "down" else (width, hidden)
    return PlannedTensor(name, shape, (), assemble=lambda _: torch.zeros(shape))
