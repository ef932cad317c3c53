"""llama with experts: softmax over the chosen, no shared expert, no window; reads frequency factors.

Its rotary positions turn neighbours, so the rows of queries and keys are put in that order.
"""

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
from expertweaver.gguf.architectures.parts.layers import (
    ATTENTION,
    FFN_NORM,
    Layer,
    decoder,
    decoder_sizes,
    paired,
)
from expertweaver.gguf.architectures.parts.rotary import WITH_FACTORS, rope_remarks

NAME = "llama"
ROPES = WITH_FACTORS

PARTS_ON_DISK = ("w1", "w3", "w2")
"""Gate, up and down."""


def check(config: Config) -> list[Problem]:
    """Find what of a model llama.cpp would compute differently."""
    return [
        *check_fixed(config, {"sliding_window": None}, f"llama.cpp has no window here. {ELSEWHERE}"),
        *check_num_experts(config, "num_local_experts"),
    ]


def key_values(config: Config) -> KeyValues:
    """Sizes."""
    return {
        **decoder_sizes(config),
        "expert_count": config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
    }


def tensors(config: Config, stored: Mapping[str, TensorInfo]) -> list[PlannedTensor]:
    """Every tensor of the file, layer by layer."""
    return paired(decoder(config, stored, _layer_tensors), config)


def remarks(config: Config) -> list[str]:
    """What the user should know of the rotary positions."""
    return rope_remarks(config)


def _layer_tensors(layer: Layer) -> list[PlannedTensor]:
    num_experts, width = layer.config["num_local_experts"], layer.config["intermediate_size"]
    return [
        *layer.copied({**ATTENTION, **FFN_NORM}),
        *layer.copied({"ffn_gate_inp.weight": "block_sparse_moe.gate.weight"}, exact=True),
        *layer.experts("block_sparse_moe.experts.{expert}.{name}.weight", PARTS_ON_DISK, num_experts, width),
    ]
