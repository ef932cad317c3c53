"""Parameter counts against sums written out by hand, on every sparse type that we claim to know."""

from __future__ import annotations

import pytest
import torch
from tiny_models import NUM_EXPERTS, NUM_EXPERTS_PER_TOK, config_of, model_of
from transformers import Glm4MoeConfig, PreTrainedModel

from expertweaver import register
from expertweaver.errors import ArchitectureError
from expertweaver.evaluation.params import NUM_EXPERTS_FIELD, ParamCounts, count_params, routed_experts

V, H, F, L = 64, 32, 48, 2
ATTENTION = H * 32 + 2 * H * 16 + 32 * H  # q, k and v of two heads, o
NORMS = 2 * H


def test_dense_tied_head_counts_once() -> None:
    layer = ATTENTION + NORMS + 3 * H * F
    body = L * layer + H
    assert count_params(config_of("llama")) == ParamCounts(2 * V * H + body, 2 * V * H + body, V * H + body)
    tied = config_of("llama", tie_word_embeddings=True)
    assert count_params(tied) == ParamCounts(V * H + body, V * H + body, V * H + body)


@pytest.mark.parametrize("num_shared", [1, 2])
def test_glm4_moe_by_hand(num_shared: int) -> None:
    width, router = 16, NUM_EXPERTS * H
    fixed = L * (ATTENTION + NORMS + router + 3 * H * width * num_shared) + H + 2 * V * H
    expert = 3 * H * width
    expected = ParamCounts(
        num_params=fixed + L * NUM_EXPERTS * expert,
        num_active_params=fixed + L * NUM_EXPERTS_PER_TOK * expert,
        num_multiplied_params=fixed + L * NUM_EXPERTS_PER_TOK * expert - V * H,
    )
    assert count_params(config_of("glm4_moe", n_shared_experts=num_shared)) == expected


@pytest.mark.parametrize("model_type", NUM_EXPERTS_FIELD)
def test_every_known_type(model_type: str) -> None:
    register()
    model = model_of(model_type)
    counts = count_params(model)
    assert counts == count_params(model.config), "a config counts like the model it describes"
    assert counts.num_params == sum(p.numel() for p in model.parameters())
    assert counts.num_params - counts.num_active_params == num_idle(model)


def num_idle(model: PreTrainedModel) -> int:
    """Parameters of E - K experts of each layer, from the modules that hold expert weights."""
    experts = [m for m in model.modules() if type(m).__name__.endswith("Experts")]
    assert experts
    parameters = [p for module in experts for p in module.parameters()]
    assert all(p.shape[0] == NUM_EXPERTS for p in parameters)
    return sum(p[: NUM_EXPERTS - NUM_EXPERTS_PER_TOK].numel() for p in parameters)


def test_all_experts_on_means_all_active() -> None:
    counts = count_params(config_of("glm4_moe", num_experts_per_tok=NUM_EXPERTS))
    assert counts.num_active_params == counts.num_params


def test_a_config_is_counted_without_memory() -> None:
    """46 layers of GLM-4.5 size would need 400 GB in fp32."""
    counts = count_params(Glm4MoeConfig(num_mtp_layers=0))
    assert counts.num_params > 100e9
    assert counts.num_active_params < counts.num_params / 8
    assert torch.empty(0).device.type == "cpu", "the default device is back"


def test_dense_models_have_no_routed_experts() -> None:
    assert routed_experts(config_of("llama")) is None
    assert routed_experts(config_of("qwen3")) is None


def test_unknown_sparse_type_is_refused() -> None:
    message = r"model_type 'jamba': expected .*glm4_moe.*found a sparse model \(num_experts, .*set\)"
    with pytest.raises(ArchitectureError, match=message):
        routed_experts(config_of("jamba", num_experts=4))


def test_experts_that_are_not_where_we_look() -> None:
    model = model_of("glm4_moe", first_k_dense_replace=L)
    with pytest.raises(ArchitectureError, match=r"'\.experts\.' in 5 equal parts, found 0 parameters there"):
        count_params(model)
