"""Tensors that decoders have alike: embeddings, attention, norms, routers, experts; and the keys of their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.reader import TensorInfo
from expertweaver.gguf.architectures.base import WHOLE, Config, KeyValues, Part, PlannedTensor, only
from expertweaver.gguf.architectures.parts.rotary import factor_tensors, rope_key_values

Headers = Mapping[str, TensorInfo]

ATTENTION = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_output.bias": "self_attn.o_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
"""Tensors of a layer's attention that only change their name; biases and norms are there if the checkpoint has them."""

FFN_NORM = {"ffn_norm.weight": "post_attention_layernorm.weight"}

PARTS = ("gate", "up", "down")


@dataclass(frozen=True)
class Layer:
    """One decoder layer: its number, and what the checkpoint has."""

    number: int
    config: Config
    stored: Headers

    def copied(self, names: Mapping[str, str], *, exact: bool = False) -> list[PlannedTensor]:
        """Tensors that only change their name, of those that are stored; vectors are exact anyway."""
        source, target = layer_prefix(self.number), f"blk.{self.number}."
        return [
            copied(target + name, source + origin, self.stored, exact=exact)
            for name, origin in names.items()
            if source + origin in self.stored
        ]

    def planned(self, name: str, shape: tuple[int, ...], sources: Sequence[str], part: Part = WHOLE) -> PlannedTensor:
        """A tensor that is made of others of this layer, by their names without prefix."""
        source = layer_prefix(self.number)
        names = tuple(source + origin for origin in sources)
        return PlannedTensor(f"blk.{self.number}.{name}", shape, names, part=part)

    def experts(self, pattern: str, names: Sequence[str], num_experts: int, width: int) -> list[PlannedTensor]:
        """The routed experts, stacked behind each other, [E, rows, columns].

        Args:
            pattern: Name of an expert's matrix, with places for `expert` and `name`.
            names: What the checkpoint calls gate, up and down.
            num_experts: E.
            width: Neurons of an expert.
        """
        hidden = self.config["hidden_size"]
        planned = []
        for part, name in zip(PARTS, names, strict=True):
            shape = (num_experts, *((hidden, width) if part == "down" else (width, hidden)))
            sources = [pattern.format(expert=expert, name=name) for expert in range(num_experts)]
            planned.append(replace(self.planned(f"ffn_{part}_exps.weight", shape, sources), assemble=stacked))
        return planned


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Put the experts' matrices behind each other, [E, rows, columns]."""
    return torch.stack(list(tensors))


def copied(name: str, source: str, stored: Headers, *, exact: bool = False) -> PlannedTensor:
    """One tensor under another name; vectors (norms, biases) are exact."""
    shape = stored[source].shape
    return PlannedTensor(name, shape, (source,), exact=exact or len(shape) == 1)


def decoder(config: Config, stored: Headers, layer: Callable[[Layer], list[PlannedTensor]]) -> list[PlannedTensor]:
    """Every tensor of the file: embeddings, factors of the rotary positions, layer by layer, norm and head."""
    planned = [copied("token_embd.weight", "model.embed_tokens.weight", stored), *factor_tensors(config)]
    for number in range(config["num_hidden_layers"]):
        planned += layer(Layer(number, config, stored))
    planned.append(copied("output_norm.weight", "model.norm.weight", stored))
    planned.append(copied("output.weight", "lm_head.weight", stored))
    return planned


def decoder_sizes(config: Config) -> KeyValues:
    """The keys that every decoder has: sizes, heads, norm, rotary positions."""
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        **rope_key_values(config),
    }


def paired(planned: list[PlannedTensor], config: Config) -> list[PlannedTensor]:
    """The same tensors for an architecture whose rotary positions turn neighbours, not halves of a head.

    Rows of queries and keys, and their biases, are put side by side in each head: the scores stay as they are.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def change(tensor: PlannedTensor) -> PlannedTensor:
        num_heads = heads.get(tensor.name.split(".")[-2])
        if num_heads is None:
            return tensor
        return replace(tensor, assemble=lambda rows: beside(only(rows), num_heads=num_heads))

    return [change(tensor) for tensor in planned]


def beside(tensor: Tensor, *, num_heads: int) -> Tensor:
    """Put the rows of each head's second half between those of its first, [heads * D, ...]."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)
