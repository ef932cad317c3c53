"""Glm4MoeForCausalLM: shared expert and DeepSeek-V3 router; native in transformers, vLLM, SGLang and llama.cpp.

The training-free model is a plain sum of experts, but this class weighs each by routed_scaling_factor * sigmoid(logit).
So the router is scaled by a power of two until every logit is near zero: 2 * sigmoid(0) = 1, and the order of the
experts stays. Near zero the sigmoid has slope 1/4, which turns a router's bias b into a selection bias b / 4.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.model import DenseModel
from expertweaver.errors import Problem
from expertweaver.formats.base import Capabilities, Layout, ServedRouting, StoredLayer
from expertweaver.modeling.reference import choose_by_sigmoid, choose_experts, chosen_mask, sigmoid_scores
from expertweaver.modeling.values import GLUWeights, LayerDesign, Router
from expertweaver.partition.budget import GROUPED_BLOCK

CAPABILITIES = Capabilities()

MAX_ABS_LOGIT = 6e-3
"""Unit weights are then exact to 3e-3 in float32; rounded to bfloat16, those of logits above -3.9e-3 are one."""

PINNED_BIAS = 2.0
"""Selection bias of an expert that is always chosen; scores lie in (0, 1)."""

ROUTED_SCALING_FACTOR = 2.0

INEXPRESSIBLE = ("self_attn.o_proj.bias", "mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias")


def check(dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
    """Find what of a model glm4_moe cannot hold."""
    where = dense.folder.name
    problems = []
    names = sorted({name.split(".", 3)[3] for name in dense.origins if name.startswith("model.layers.")})
    if biases := [name for name in names if name in INEXPRESSIBLE]:
        fix = "No stock MoE class has these; convert a model without them."
        problems.append(Problem(where, "a model without biases on o_proj and the FFN", ", ".join(biases), fix))
    if dense.dims.hidden_act not in ("silu", "swish"):
        fix = "The engines hard-code silu for glm4_moe."
        problems.append(Problem(where, "hidden_act silu", f"'{dense.dims.hidden_act}'", fix))
    if dense.family.output_norm is not None:
        fix = "Pass --format expertweaver_moe, our own class, which keeps the source's decoder layers."
        problems.append(Problem(where, "an FFN whose output is added as it is", "a norm after the FFN", fix))
    if dense.reach is not None:
        found = f"a sliding window of {dense.reach} in a context of {dense.dims.max_position_embeddings}"
        fix = "Pass --format expertweaver_moe, or use a version of the model without a window."
        problems.append(Problem(where, "full attention in every layer", found, fix))
    if dtype == torch.float16:
        fix = "Pass --dtype bfloat16 or --dtype float32: the scaled router underflows in float16."
        problems.append(Problem("output.dtype", "bfloat16 or float32", "float16", fix))
    return problems


def config(dense: DenseModel, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json; everything whose class default differs is set explicitly."""
    import transformers

    dims, source = dense.dims, dense.config
    rope = dict(source["rope_parameters"])
    rope.setdefault("partial_rotary_factor", 1.0)
    kept = ("initializer_range", "rms_norm_eps", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "dtype": str(dtype).removeprefix("torch."),
        "transformers_version": transformers.__version__,
        "vocab_size": dims.vocab_size,
        "hidden_size": dims.hidden_size,
        "intermediate_size": dims.intermediate_size,
        "num_hidden_layers": dims.num_hidden_layers,
        "num_attention_heads": dims.num_attention_heads,
        "num_key_value_heads": dims.num_key_value_heads,
        "head_dim": dims.head_dim,
        "hidden_act": dims.hidden_act,
        "max_position_embeddings": dims.max_position_embeddings,
        "rope_parameters": rope,
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "attention_bias": layer_prefix(0) + "self_attn.q_proj.bias" in dense.origins,
        "attention_dropout": 0.0,
        "use_qk_norm": dense.family.qk_norm,
        "tie_word_embeddings": False,
        "moe_intermediate_size": layout.slice_width,
        "n_routed_experts": layout.num_experts,
        "num_experts_per_tok": layout.num_experts_per_tok,
        "n_shared_experts": layout.num_shared_slices,
        "routed_scaling_factor": ROUTED_SCALING_FACTOR,
        "norm_topk_prob": False,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "num_nextn_predict_layers": 0,
        **{key: source.get(key) for key in kept},
        **_experts_implementation(layout.slice_width),
    }


def store_layer(design: LayerDesign, layout: Layout, probe_inputs: Tensor) -> StoredLayer:
    """Fold the router into the format's arithmetic and pin the shared slices that exceed the layout's.

    Args:
        design: The layer's partition and router.
        layout: The uniform sizes.
        probe_inputs: FFN inputs that set the range of the router's logits, [P, H].
    """
    partition, router = design.partition, design.router
    assert isinstance(router, Router), "planning refuses methods that go beyond stock"
    assert design.bias is None, "likewise"
    in_shared = layout.num_shared_slices * layout.slice_width
    pinned = partition.shared_neurons[in_shared:].view(-1, layout.slice_width)
    weight, bias, scale_log2 = fold_router(router, probe_inputs)
    zeros = torch.zeros(len(pinned), weight.shape[1])
    stored_weight = torch.cat([zeros, weight])
    stored_bias = torch.cat([torch.full((len(pinned),), PINNED_BIAS), bias])
    logits = probe_inputs @ weight.T
    stored_choice, _ = choose_by_sigmoid(probe_inputs, stored_weight, stored_bias, layout.num_experts_per_tok)
    wanted = choose_experts(probe_inputs, router) + len(pinned)
    kept = chosen_mask(stored_choice, layout.num_experts)[:, len(pinned) :]
    same = (kept == chosen_mask(wanted, layout.num_experts)[:, len(pinned) :]).all(dim=1)
    return StoredLayer(
        shared_neurons=partition.shared_neurons[:in_shared],
        expert_neurons=torch.cat([pinned, torch.stack(list(partition.expert_neurons))]),
        router_weight=stored_weight,
        selection_bias=stored_bias,
        scale_log2=scale_log2,
        max_abs_logit=float(logits.abs().max()),
        routing_kept=float(same.double().mean()),
        down=design.down,
    )


def fold_router(router: Router, probe_inputs: Tensor) -> tuple[Tensor, Tensor, int]:
    """Turn an affine router into a nearly constant sigmoid router that chooses the same experts.

    The mean over experts is subtracted (the order stays) and weights are rounded to bfloat16, unless the method has
    done so already; then everything is multiplied by a power of two, which is exact.

    Returns:
        Weight [E, H], selection bias [E], and the power of two.
    """
    weight = router.weight if router.is_stored_form else (router.weight - router.weight.mean(dim=0)).bfloat16().float()
    bias = router.bias - router.bias.mean()
    if not weight.any() and not bias.any():  # nothing to choose by: lower ids first, the same in every engine
        bias = -torch.arange(len(bias), dtype=torch.float32)
    largest = float((probe_inputs @ weight.T).abs().max())
    scale_log2 = math.floor(math.log2(MAX_ABS_LOGIT / largest)) if largest > 0 else -10
    scale = 2.0**scale_log2
    return weight * scale, bias * scale / 4, scale_log2


def layer_tensors(layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """Slice the FFN into shared and routed experts under their names on disk."""
    prefix = layer_prefix(layer) + "mlp."
    served = stored.served(weights)
    tensors = _glu_tensors(f"{prefix}shared_experts.", served.slice(stored.shared_neurons), dtype)
    for expert, neurons in enumerate(stored.expert_neurons):
        tensors |= _glu_tensors(f"{prefix}experts.{expert}.", served.slice(neurons), dtype)
    tensors[f"{prefix}gate.weight"] = stored.router_weight.to(dtype)
    tensors[f"{prefix}gate.e_score_correction_bias"] = stored.selection_bias
    return tensors


def set_all_experts_on(mlp: nn.Module) -> None:
    """Zero the router, whose sigmoid is then exactly 1/2 for every expert, and run all experts."""
    router: Any = mlp.gate
    with torch.no_grad():
        router.weight.zero_()
        router.e_score_correction_bias.zero_()
    router.top_k = router.num_experts


def load_layer(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load a stock decoder layer, whose experts are fused: gate_up_proj [E, 2I, H] and down_proj [E, H, I]."""
    experts = sorted({int(name.split(".")[2]) for name in tensors if name.startswith("mlp.experts.")})
    fused = {name: tensor for name, tensor in tensors.items() if not name.startswith("mlp.experts.")}

    def part(expert: int, name: str) -> Tensor:
        return tensors[f"mlp.experts.{expert}.{name}_proj.weight"]

    fused["mlp.experts.gate_up_proj"] = torch.stack([torch.cat([part(e, "gate"), part(e, "up")]) for e in experts])
    fused["mlp.experts.down_proj"] = torch.stack([part(e, "down") for e in experts])
    module.load_state_dict(fused, strict=True, assign=True)


def reference_routing(x: Tensor, stored: StoredLayer, layout: Layout) -> ServedRouting:
    """The served model's choice and weights, in our own arithmetic."""
    chosen, tied = choose_by_sigmoid(x, stored.router_weight, stored.selection_bias, layout.num_experts_per_tok)
    return ServedRouting(chosen, sigmoid_scores(x, stored.router_weight) * ROUTED_SCALING_FACTOR, tied)


def _experts_implementation(slice_width: int) -> dict[str, str]:
    """Ask transformers for its plain loop over experts where its default kernel would refuse the width."""
    return {} if slice_width % GROUPED_BLOCK == 0 else {"experts_implementation": "eager"}


def _glu_tensors(prefix: str, weights: GLUWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    parts = {"gate": weights.gate, "up": weights.up, "down": weights.down}
    return {f"{prefix}{name}_proj.weight": part.to(dtype).contiguous() for name, part in parts.items()}
