"""granitemoe: Granite's constants, softmax router without a bias, a shared expert or none; reads frequency factors.

llama.cpp takes the softmax over all experts and makes the chosen ones add up to one, which is the same as a softmax
over the chosen. Its rotary positions turn neighbours, so the rows of queries and keys are put in that order.
"""

from __future__ import annotations

from collections.abc import Mapping

from expertweaver.dense.reader import TensorInfo
from expertweaver.errors import Problem
from expertweaver.formats.parts.fit import SILU
from expertweaver.gguf.architectures.base import ELSEWHERE, Config, KeyValues, Part, PlannedTensor, check_num_experts
from expertweaver.gguf.architectures.parts.layers import ATTENTION, FFN_NORM, Layer, decoder, decoder_sizes, paired
from expertweaver.gguf.architectures.parts.rotary import WITH_FACTORS, rope_remarks

NAME = "granitemoe"
ROPES = WITH_FACTORS


def check(config: Config) -> list[Problem]:
    """Find what of a model llama.cpp would compute differently."""
    problems = check_num_experts(config, "num_local_experts")
    if config["hidden_act"] not in SILU:
        found = f"'{config['hidden_act']}'"
        problems.append(Problem("config.json: hidden_act", f"{SILU[0]}, built into llama.cpp", found, ELSEWHERE))
    return problems


def key_values(config: Config) -> KeyValues:
    """Sizes, switches and the constants; a shared expert of no width is not named."""
    shared = config["shared_intermediate_size"]
    return {
        **decoder_sizes(config),
        "expert_count": config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        **({"expert_shared_feed_forward_length": shared} if shared else {}),
        "embedding_scale": float(config["embedding_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "attention.scale": float(config["attention_multiplier"]),
        "logit_scale": float(config["logits_scaling"]),
    }


def tensors(config: Config, stored: Mapping[str, TensorInfo]) -> list[PlannedTensor]:
    """Every tensor of the file; gate and up, which the checkpoint fuses, lie apart."""
    return paired(decoder(config, stored, _layer_tensors), config)


def remarks(config: Config) -> list[str]:
    """What the user should know of the rotary positions."""
    return rope_remarks(config)


def _layer_tensors(layer: Layer) -> list[PlannedTensor]:
    config = layer.config
    planned = [
        *layer.copied({**ATTENTION, **FFN_NORM}),
        *layer.copied({"ffn_gate_inp.weight": "block_sparse_moe.router.layer.weight"}, exact=True),
        *_glu(layer, "exps", "block_sparse_moe", (config["num_local_experts"],), config["intermediate_size"]),
    ]
    if shared := config["shared_intermediate_size"]:
        planned += _glu(layer, "shexp", "shared_mlp", (), shared)
    return planned


def _glu(layer: Layer, name: str, module: str, experts: tuple[int, ...], width: int) -> list[PlannedTensor]:
    """Gate and up, the two halves of one matrix on disk, and down."""
    hidden = layer.config["hidden_size"]
    halves = [
        layer.planned(
            f"ffn_{half}_{name}.weight", (*experts, width, hidden), [f"{module}.input_linear.weight"], Part(index, 2)
        )
        for index, half in enumerate(("gate", "up"))
    ]
    return [
        *halves,
        layer.planned(f"ffn_down_{name}.weight", (*experts, hidden, width), [f"{module}.output_linear.weight"]),
    ]
