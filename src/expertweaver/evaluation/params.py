"""How many parameters a model has, and how many of them one token uses."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from expertweaver.errors import ArchitectureError, Problem

# Config field with the number of routed experts, for every sparse model type whose router and experts are known
# to us: the router is a module called ...TopkRouter that returns (router_logits, weights, expert_ids), and the
# experts' weights lie under `.experts.`. A config's attribute map makes num_experts_per_tok common to all.
NUM_EXPERTS_FIELD = {
    "deepseek_v3": "n_routed_experts",
    "dots1": "n_routed_experts",
    "ernie4_5_moe": "moe_num_experts",
    "expertweaver_moe": "num_routed_experts",
    "flex_olmo": "num_experts",
    "glm4_moe": "n_routed_experts",
    "granitemoe": "num_local_experts",
    "granitemoeshared": "num_local_experts",
    "mixtral": "num_local_experts",
    "olmoe": "num_experts",
    "qwen2_moe": "num_experts",
    "qwen3_moe": "num_experts",
    "solar_open": "n_routed_experts",
}
EXPERT_WEIGHT = re.compile(r"\.experts\.")


@dataclass(frozen=True)
class RoutedExperts:
    """E routed experts in every sparse layer, K of them chosen for a token; tuples where each layer has its own."""

    num_experts: int | tuple[int, ...]
    num_experts_per_tok: int | tuple[int, ...]

    def of_router(self, index: int) -> tuple[int, int]:
        """E and K of the router of the sparse layer with this number."""
        experts, chosen = self.num_experts, self.num_experts_per_tok
        return (
            experts if isinstance(experts, int) else experts[index],
            chosen if isinstance(chosen, int) else chosen[index],
        )


@dataclass(frozen=True)
class ParamCounts:
    """Parameters of a model; a tied tensor counts once, buffers (rotary tables, selection biases) do not count.

    Attributes:
        num_params: All of them.
        num_active_params: All but the routed experts that a token does not choose: K of E experts count, and so do
            both embeddings, the norms, the routers and the shared experts.
        num_multiplied_params: The active ones that a token is multiplied with: without an input embedding that is not
            also the output head, since a token looks up one row of it. Untying a head does not change this number,
            so it is the one to compare speed with.
    """

    num_params: int
    num_active_params: int
    num_multiplied_params: int


def routed_experts(config: PreTrainedConfig) -> RoutedExperts | None:
    """Read E and K from a config; None for a dense model.

    Raises:
        ArchitectureError: The config has routed experts, but its model type is not one that we can count.
    """
    config = config.get_text_config()
    field = NUM_EXPERTS_FIELD.get(config.model_type)
    if field is not None:
        if hasattr(config, "of_layer"):
            return _per_layer(config, field)
        return RoutedExperts(getattr(config, field), config.num_experts_per_tok)
    found = [name for name in sorted(set(NUM_EXPERTS_FIELD.values())) if getattr(config, name, None)]
    if found:
        expected = f"a dense model or one of {', '.join(NUM_EXPERTS_FIELD)}"
        fix = "Evaluate a model of one of these types; counting an unknown layout would give wrong numbers."
        where = f"model_type '{config.model_type}'"
        raise ArchitectureError(Problem(where, expected, f"a sparse model ({', '.join(found)} set)", fix))
    return None


def _per_layer(config: PreTrainedConfig, field: str) -> RoutedExperts | None:
    """E and K of the layers that run routed experts, in our own class, whose layers may differ; None if none does."""
    of_layer: Callable[[str, int], int] = getattr(config, "of_layer")  # noqa: B009
    pairs = [(of_layer(field, i), of_layer("num_experts_per_tok", i)) for i in range(config.num_hidden_layers)]
    sparse = [pair for pair in pairs if pair[1]]
    if not sparse:
        return None
    return RoutedExperts(tuple(experts for experts, _ in sparse), tuple(chosen for _, chosen in sparse))


def count_params(config_or_model: PreTrainedConfig | PreTrainedModel) -> ParamCounts:
    """Count the parameters of a model, or of the model that a config describes, without loading weights.

    A config is built on the meta device: shapes without memory. The conventions stand at `ParamCounts`.

    Raises:
        ArchitectureError: A sparse model of an unknown type, or one whose expert tensors are not where we look.
    """
    if isinstance(config_or_model, PreTrainedModel):
        return _count(config_or_model)
    with torch.device("meta"):
        return _count(AutoModelForCausalLM.from_config(config_or_model))


def _count(model: PreTrainedModel) -> ParamCounts:
    experts = routed_experts(model.config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    num_params = sum(sizes.values())
    num_routed = sum(size for name, size in sizes.items() if EXPERT_WEIGHT.search(name)) if experts else 0
    idle = getattr(model.config, "num_idle_params", None)
    if idle is None:
        idle = _num_idle(num_routed, experts, model.config.model_type)
    num_active = num_params - idle
    return ParamCounts(num_params, num_active, num_active - _num_looked_up(model))


def _num_idle(num_routed: int, experts: RoutedExperts | None, model_type: str) -> int:
    if experts is None:
        return 0
    assert isinstance(experts.num_experts, int)
    assert isinstance(experts.num_experts_per_tok, int)
    if num_routed == 0 or num_routed % experts.num_experts:
        expected = f"routed experts under '.experts.' in {experts.num_experts} equal parts"
        found = f"{num_routed} parameters there"
        fix = "Report this model: its layout is not the one its type had when this table was written."
        raise ArchitectureError(Problem(f"model_type '{model_type}'", expected, found, fix))
    return num_routed // experts.num_experts * (experts.num_experts - experts.num_experts_per_tok)


def _num_looked_up(model: PreTrainedModel) -> int:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or (head is not None and head.weight is embedding.weight):
        return 0
    return embedding.weight.numel()
