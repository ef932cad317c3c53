"""qwen2moe: softmax over all experts, a shared expert behind a gate; reads no frequency factors.

llama.cpp takes hidden_size for the width of queries, so heads of another size do not fit. It computes the
gate's sigmoid as silu(z) / z, which is not a number at zero: the format's gate is tiny and never zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from expertweaver.dense.reader import TensorInfo
from expertweaver.errors import Problem
from expertweaver.gguf.architectures.base import (
    ELSEWHERE,
    Config,
    KeyValues,
    PlannedTensor,
    check_fixed,
    check_num_experts,
    only,
)
from expertweaver.gguf.architectures.parts.layers import ATTENTION, FFN_NORM, PARTS, Layer, decoder, decoder_sizes
from expertweaver.gguf.architectures.parts.rotary import PLAIN

NAME = "qwen2moe"
ROPES = PLAIN

FIXED = {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False}
"""What llama.cpp, or this writer's layout, takes for granted."""

ROUTER = {"ffn_gate_inp.weight": "mlp.gate.weight"}


def check(config: Config) -> list[Problem]:
    """Find what of a model llama.cpp would compute differently."""
    problems = [*check_fixed(config, FIXED), *check_num_experts(config, "num_experts")]
    width = config["num_attention_heads"] * config["head_dim"]
    if width != config["hidden_size"]:
        expected = f"num_attention_heads x head_dim to be hidden_size {config['hidden_size']}, as llama.cpp has it"
        problems.append(Problem("config.json: head_dim", expected, str(width), ELSEWHERE))
    return problems


def key_values(config: Config) -> KeyValues:
    """Sizes and switches."""
    return {
        **decoder_sizes(config),
        "expert_count": config["num_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
    }


def tensors(config: Config, stored: Mapping[str, TensorInfo]) -> list[PlannedTensor]:
    """Every tensor of the file, layer by layer."""
    return decoder(config, stored, _layer_tensors)


def remarks(config: Config) -> list[str]:
    """Nothing to tell."""
    return []


def _layer_tensors(layer: Layer) -> list[PlannedTensor]:
    num_experts, width = layer.config["num_experts"], layer.config["moe_intermediate_size"]
    gate = layer.planned("ffn_gate_inp_shexp.weight", (layer.config["hidden_size"],), ["mlp.shared_expert_gate.weight"])
    return [
        *layer.copied({**ATTENTION, **FFN_NORM}),
        *layer.copied(ROUTER, exact=True),
        *layer.experts("mlp.experts.{expert}.{name}_proj.weight", PARTS, num_experts, width),
        replace(gate, exact=True, assemble=_as_vector),
        *layer.copied({f"ffn_{part}_shexp.weight": f"mlp.shared_expert.{part}_proj.weight" for part in PARTS}),
    ]


def _as_vector(gate: Sequence[Tensor]) -> Tensor:
    [row] = only(gate)
    return row
