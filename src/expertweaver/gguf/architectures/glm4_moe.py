"""glm4moe: shared expert, sigmoid router with a selection bias, rotate-half positions; no frequency factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from expertweaver.dense.reader import TensorInfo
from expertweaver.errors import Problem
from expertweaver.gguf.architectures.base import Config, KeyValues, PlannedTensor, check_fixed, check_num_experts
from expertweaver.gguf.architectures.parts.layers import ATTENTION, PARTS, Layer, decoder, decoder_sizes
from expertweaver.gguf.architectures.parts.rotary import PLAIN

NAME = "glm4moe"
ROPES = PLAIN

SIGMOID = 2
"""llama.cpp's number of the sigmoid among its gating functions."""

FIXED = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
"""What this writer's layout takes for granted."""

ROUTER = {"ffn_gate_inp.weight": "mlp.gate.weight", "exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
"""Stay float32 when the rest is quantised: their values are tiny, and a choice hangs on small differences."""


def check(config: Config) -> list[Problem]:
    """Find what of a model llama.cpp would compute differently."""
    return [*check_fixed(config, FIXED), *check_num_experts(config, "n_routed_experts")]


def key_values(config: Config) -> KeyValues:
    """Sizes and switches; a model without a shared expert gets one of zeros, see `tensors`."""
    return {
        **decoder_sizes(config),
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
    return decoder(config, stored, _layer_tensors)


def remarks(config: Config) -> list[str]:
    """Say that a shared expert was added, if it was."""
    if config["n_shared_experts"]:
        return []
    return ["llama.cpp needs a shared expert here and the model has none; one of zeros is added and costs some time"]


def _layer_tensors(layer: Layer) -> list[PlannedTensor]:
    num_experts, width = layer.config["n_routed_experts"], layer.config["moe_intermediate_size"]
    return [
        *layer.copied({**ATTENTION, "post_attention_norm.weight": "post_attention_layernorm.weight"}),
        *layer.copied(ROUTER, exact=True),
        *layer.experts("mlp.experts.{expert}.{name}_proj.weight", PARTS, num_experts, width),
        *_shared_expert(layer, width),
    ]


def _shared_expert(layer: Layer, width: int) -> list[PlannedTensor]:
    """The shared expert; one of zeros where there is none, because llama.cpp then adds silu(x) * x instead."""
    if layer.config["n_shared_experts"]:
        names = {f"ffn_{part}_shexp.weight": f"mlp.shared_experts.{part}_proj.weight" for part in PARTS}
        return layer.copied(names)
    hidden = layer.config["hidden_size"]
    shapes = {part: (hidden, width) if part == "down" else (width, hidden) for part in PARTS}
    return [_zeros(layer.planned(f"ffn_{part}_shexp.weight", shape, ())) for part, shape in shapes.items()]


def _zeros(tensor: PlannedTensor) -> PlannedTensor:
    def assemble(_: Sequence[Tensor]) -> Tensor:
        return torch.zeros(tensor.shape)

    return replace(tensor, assemble=assemble)
