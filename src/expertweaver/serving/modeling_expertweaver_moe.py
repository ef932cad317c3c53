"""ExpertWeaverMoe: a dense model's own transformers class whose FFNs are sparse Mixtures-of-Experts.

Everything but the FFN is the stock class of the dense family, named by `dense_model_type`: embeddings, attention,
norms before or after the FFN, sliding windows, multipliers, soft caps. An FFN is a plain sum: a shared expert, the K
routed experts of largest `x @ weight.T + bias`, each with weight one, and an output bias where there is one. Experts
may be of any width, layers may differ in everything, and a neuron may be in several experts.

This file stands alone: it needs torch and transformers only. A copy of it lies in every model folder of this class.

Axes: T tokens, H hidden_size, E routed experts, K chosen ones, I width of an expert.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

MODULE = __name__.rsplit(".", 1)[-1]
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.ExpertWeaverMoeConfig",
    "AutoModel": f"{MODULE}.ExpertWeaverMoeModel",
    "AutoModelForCausalLM": f"{MODULE}.ExpertWeaverMoeForCausalLM",
}
"""What a config.json says of the copy of this file beside it."""


class ExpertWeaverMoeConfig(PreTrainedConfig):
    """The dense model's configuration, flat, and what its FFNs became. A list has one entry for each layer.

    Attributes:
        dense_model_type: `model_type` of the dense family, whose stock class does everything but the FFN.
        num_routed_experts: E.
        num_experts_per_tok: K.
        moe_intermediate_size: Width of the routed experts; a list in the list has one entry for each expert.
        shared_expert_intermediate_size: Width of the shared expert; 0 for none.
        router_bias: Whether routers have a bias.
        mlp_output_bias: Whether a bias is added to the FFN's output.
        moe_hidden_act: Activation of the gate.
    """

    model_type = "expertweaver_moe"
    _auto_class = "AutoConfig"
    keys_to_ignore_at_inference = ("past_key_values",)

    dense_model_type: str = "llama"
    num_routed_experts: int | list[int] = 8
    num_experts_per_tok: int | list[int] = 2
    moe_intermediate_size: int | list[int] | list[list[int]] = 512
    shared_expert_intermediate_size: int | list[int] = 512
    router_bias: bool = True
    mlp_output_bias: bool = False
    moe_hidden_act: str = "silu"

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the dense family's defaults, and check that every list has an entry for each layer."""
        if self.dense_model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"dense_model_type: expected a model_type of transformers, found {self.dense_model_type!r}"
            )
        dense = CONFIG_MAPPING[self.dense_model_type](**kwargs).to_dict()
        known = {field.name for field in dataclasses.fields(self)} | {"model_type", "transformers_version"}
        super().__post_init__(**kwargs | {name: value for name, value in dense.items() if name not in known})
        self.auto_map = dict(AUTO_MAP)
        for layer in range(self.num_hidden_layers):
            self.expert_sizes(layer)

    @property
    def num_idle_params(self) -> int:
        """Parameters of the routed experts that a token does not run, at least: of unequal ones the smallest idle."""
        idle = 0
        for layer in range(self.num_hidden_layers):
            sizes = sorted(self.expert_sizes(layer), reverse=True)
            idle += sum(sizes[self.of_layer("num_experts_per_tok", layer) :])
        return 3 * self.hidden_size * idle

    def expert_sizes(self, layer: int) -> list[int]:
        """Width of each routed expert of a layer, [E]."""
        num_experts = self.of_layer("num_routed_experts", layer)
        sizes = self.of_layer("moe_intermediate_size", layer)
        sizes = [sizes] * num_experts if isinstance(sizes, int) else list(sizes)
        num_chosen = self.of_layer("num_experts_per_tok", layer)
        if len(sizes) != num_experts or not 0 <= num_chosen <= num_experts:
            raise ValueError(
                f"layer {layer}: expected {num_experts} widths in moe_intermediate_size and at most as many "
                f"num_experts_per_tok, found {len(sizes)} and {num_chosen}"
            )
        return sizes

    def of_layer(self, name: str, layer: int) -> Any:
        """A layer's own value of an attribute that may be a list."""
        value = getattr(self, name)
        if not isinstance(value, Sequence):
            return value
        if len(value) != self.num_hidden_layers:
            raise ValueError(f"{name}: expected a number or {self.num_hidden_layers} entries, found {len(value)}")
        return value[layer]


class ExpertWeaverMoeTopkRouter(nn.Module):
    """Chooses the K experts of largest affine score, in float32; of equal scores the lower id first."""

    def __init__(self, config: ExpertWeaverMoeConfig, num_experts: int, num_experts_per_tok: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = num_experts, num_experts_per_tok
        self.weight = nn.Parameter(0.02 * torch.randn(num_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_experts)) if config.router_bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score inputs [T, H]: scores [T, E], weights of the chosen [T, K], which are one, and their ids [T, K]."""
        bias = None if self.bias is None else self.bias.float()
        scores = nn.functional.linear(x.float(), self.weight.float(), bias)
        chosen = scores.sort(dim=-1, descending=True, stable=True).indices[:, : self.top_k]
        return scores, torch.ones_like(chosen, dtype=x.dtype), chosen


@use_experts_implementation
class ExpertWeaverMoeExperts(nn.Module):
    """Experts of equal width, in the layout that transformers' expert kernels know."""

    def __init__(self, config: ExpertWeaverMoeConfig, sizes: Sequence[int]) -> None:
        super().__init__()
        self.num_experts, hidden_size = len(sizes), config.hidden_size
        self.gate_up_proj = nn.Parameter(0.02 * torch.randn(self.num_experts, 2 * sizes[0], hidden_size))
        self.down_proj = nn.Parameter(0.02 * torch.randn(self.num_experts, hidden_size, sizes[0]))
        self.act_fn = ACT2FN[config.moe_hidden_act]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum the chosen experts' outputs: [T, H] to [T, H]."""
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            tokens, places = torch.where(top_k_index == expert)
            gate, up = nn.functional.linear(hidden_states[tokens], self.gate_up_proj[expert]).chunk(2, dim=-1)
            part = nn.functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
            output.index_add_(0, tokens, part * top_k_weights[tokens, places, None])
        return output


class ExpertWeaverMoeUnequalExperts(nn.Module):
    """Experts of any width, packed one after the other: gate and up rows [2I, H], rows of down's transpose [I, H]."""

    def __init__(self, config: ExpertWeaverMoeConfig, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.gate_up_rows = nn.Parameter(0.02 * torch.randn(2 * sum(sizes), config.hidden_size))
        self.down_rows = nn.Parameter(0.02 * torch.randn(sum(sizes), config.hidden_size))
        self.act_fn = ACT2FN[config.moe_hidden_act]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum the chosen experts' outputs: [T, H] to [T, H]."""
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            tokens, places = torch.where(top_k_index == expert)
            start, size = sum(self.sizes[:expert]), self.sizes[expert]
            rows = self.gate_up_rows[2 * start : 2 * (start + size)]
            gate, up = nn.functional.linear(hidden_states[tokens], rows).chunk(2, dim=-1)
            part = (self.act_fn(gate) * up) @ self.down_rows[start : start + size]
            output.index_add_(0, tokens, part * top_k_weights[tokens, places, None])
        return output


class ExpertWeaverMoeSharedExpert(nn.Module):
    """The neurons that run on every token."""

    def __init__(self, config: ExpertWeaverMoeConfig, size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.moe_hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., H] to [..., H]."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class ExpertWeaverMoeSparseMLP(nn.Module):
    """Stands in a stock decoder layer where its FFN was: shared expert, chosen experts, output bias."""

    def __init__(self, config: ExpertWeaverMoeConfig, layer: int) -> None:
        super().__init__()
        sizes, shared = config.expert_sizes(layer), config.of_layer("shared_expert_intermediate_size", layer)
        num_chosen = config.of_layer("num_experts_per_tok", layer)
        self.shared_expert = ExpertWeaverMoeSharedExpert(config, shared) if shared else None
        self.router = ExpertWeaverMoeTopkRouter(config, len(sizes), num_chosen) if sizes else None
        kind = ExpertWeaverMoeExperts if len(set(sizes)) == 1 else ExpertWeaverMoeUnequalExperts
        self.experts = kind(config, sizes) if sizes else None
        self.output_bias = nn.Parameter(torch.zeros(config.hidden_size)) if config.mlp_output_bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [..., H] to [..., H]."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        output = torch.zeros_like(x) if self.shared_expert is None else self.shared_expert(x)
        if self.router is not None and self.experts is not None and self.router.top_k:
            _, weights, chosen = self.router(x)
            output = output + self.experts(x, chosen, weights)
        if self.output_bias is not None:
            output = output + self.output_bias
        return output.view(hidden_states.shape)


class _SparseModel(PreTrainedModel):
    """Becomes, when it is made, a subclass of the dense family's stock class, whose FFNs it replaces."""

    config_class = ExpertWeaverMoeConfig
    base_model_prefix = "model"
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict: Any = ("router",)
    _stock_classes: Any = None
    _can_set_experts_implementation_cached_value: Any = None  # not what the stock class found out about itself

    def __new__(cls, config: ExpertWeaverMoeConfig | None = None, *args: Any, **kwargs: Any) -> Any:
        """Choose the stock class by `config.dense_model_type`; a copy of a finished model brings no config."""
        kind: Any = cls if config is None else _over_stock(cls, config.dense_model_type)
        return super().__new__(kind)

    def __init__(self, config: ExpertWeaverMoeConfig) -> None:
        wanted = config._experts_implementation
        config._experts_implementation = "eager"  # the stock model inside knows no experts and would refuse another
        super().__init__(config)
        decoder: Any = getattr(self, self.base_model_prefix, self)
        for index, layer in enumerate(decoder.layers):
            layer.mlp = ExpertWeaverMoeSparseMLP(config, index)
        config._experts_implementation = self.get_correct_experts_implementation(wanted)
        self.post_init()


@functools.cache
def _over_stock(cls: type, dense_model_type: str) -> type:
    """The class with the stock class of a dense family beneath it, by the same name."""
    stock = cls._stock_classes[CONFIG_MAPPING[dense_model_type]]
    return type(cls.__name__, (cls, stock), {"__module__": cls.__module__, "__doc__": cls.__doc__})


class ExpertWeaverMoeModel(_SparseModel):
    """The decoder without an output head."""

    _auto_class = "AutoModel"
    _stock_classes = MODEL_MAPPING


class ExpertWeaverMoeForCausalLM(_SparseModel, GenerationMixin):
    """The language model."""

    _auto_class = "AutoModelForCausalLM"
    _stock_classes = MODEL_FOR_CAUSAL_LM_MAPPING
