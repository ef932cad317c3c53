"""qwen3moe: norms on queries and keys, softmax over the chosen, no shared expert; reads no frequency factors."""

from __future__ import annotations

from collections.abc import Mapping

from expertweaver.dense.reader import TensorInfo
from expertweaver.errors import Problem
from expertweaver.gguf.architectures.base import (
    ELSEWHERE,
    Config,
    KeyValues,
    PlannedTensor,
    check_fixed,
    check_num_experts,
)
from expertweaver.gguf.architectures.parts.layers import ATTENTION, FFN_NORM, PARTS, Layer, decoder, decoder_sizes
from expertweaver.gguf.architectures.parts.rotary import PLAIN

NAME = "qwen3moe"
ROPES = PLAIN

FIXED = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False}
"""What llama.cpp, or this writer's layout, takes for granted."""

NO_BIASES = {"attention_bias": False}


def check(config: Config) -> list[Problem]:
    """Find what of a model llama.cpp would compute differently."""
    return [
        *check_fixed(config, FIXED),
        *check_fixed(config, NO_BIASES, f"llama.cpp has no bias on o_proj here. {ELSEWHERE}"),
        *check_num_experts(config, "num_experts"),
    ]


def key_values(config: Config) -> KeyValues:
    """Sizes and switches."""
    return {
        **decoder_sizes(config),
        "expert_count": config["num_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
    }


def tensors(config: Config, stored: Mapping[str, TensorInfo]) -> list[PlannedTensor]:
    """Every tensor of the file, layer by layer."""
    return decoder(config, stored, _layer_tensors)


def remarks(config: Config) -> list[str]:
    """Nothing to tell."""
    return []


def _layer_tensors(layer: Layer) -> list[PlannedTensor]:
    num_experts, width = layer.config["num_experts"], layer.config["moe_intermediate_size"]
    return [
        *layer.copied({**ATTENTION, **FFN_NORM}),
        *layer.copied({"ffn_gate_inp.weight": "mlp.gate.weight"}, exact=True),
        *layer.experts("mlp.experts.{expert}.{name}_proj.weight", PARTS, num_experts, width),
    ]
