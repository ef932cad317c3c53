"""Our experts function gives what the stock loop gives, whatever the loads and widths, and leaves no trace on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, LlamaConfig, LlamaForCausalLM

from expertweaver.errors import ArchitectureError
from expertweaver.serving import INDEX_LOOP
from expertweaver.serving import index_loop as module
from expertweaver.serving.index_loop import leave_index_loop, use_index_loop

HIDDEN = 32
NUM_EXPERTS = 6


def sparse_model(width: int = 16) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
        "moe_intermediate_size": width, "n_routed_experts": NUM_EXPERTS, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "first_k_dense_replace": 0,
    }  # fmt: skip
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter.normal_(std=0.3)
    return model


def experts_of(model: Any) -> Any:
    return model.model.layers[0].mlp.experts


@torch.no_grad()
def run_experts(model: Any, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return experts_of(model)(x, chosen, weights)


CHOICES = {
    "one token": torch.tensor([[4, 1]]),
    "one token, any order": torch.tensor([[1, 4]]),
    "unequal loads, some never chosen": torch.tensor([[0, 1], [0, 1], [0, 3], [0, 1], [0, 1]]),
    "one expert for all": torch.tensor([[5], [5], [5]]),
    "many tokens": torch.rand(300, NUM_EXPERTS, generator=torch.Generator().manual_seed(0)).topk(2).indices,
}


@pytest.mark.parametrize("width", [16, 12])
@pytest.mark.parametrize("name", CHOICES)
def test_outputs_are_those_of_the_stock_loop(name: str, width: int) -> None:
    chosen, model = CHOICES[name], sparse_model(width)
    draw = torch.Generator().manual_seed(1)
    x, weights = torch.randn(len(chosen), HIDDEN, generator=draw), torch.rand(chosen.shape, generator=draw)
    model.set_experts_implementation("eager")
    expected = run_experts(model, x, chosen, weights)
    found = run_experts(use_index_loop(model), x, chosen, weights)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_each_number_of_tokens_has_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token, few for each expert (the engine's kernel, where the width allows it), many for each."""
    ways: list[str] = []
    for name in ("_one_token", "_many_tokens", "grouped_mm"):
        function = getattr(module, name)

        def watched(*arguments: Any, _name: str = name, _function: Any = function) -> Any:
            ways.append(_name)
            return _function(*arguments)

        monkeypatch.setattr(module, name, watched)
    few = torch.tensor([[0, 1]] * (16 * NUM_EXPERTS - 1))
    many = torch.tensor([[0, 1]] * (16 * NUM_EXPERTS))  # 32 an expert with two chosen
    for width in (16, 12):
        model = use_index_loop(sparse_model(width))
        for chosen in (few[:1], few, many):
            run_experts(model, torch.zeros(len(chosen), HIDDEN), chosen, torch.ones(chosen.shape))
    assert ways == ["_one_token", "grouped_mm", "_many_tokens", "_one_token", "_many_tokens", "_many_tokens"]


def test_it_is_used_by_the_whole_model_and_saved_as_before(tmp_path: Path) -> None:
    model = sparse_model()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = model(ids).logits
        model.save_pretrained(tmp_path / "before")
        assert use_index_loop(model) is model
        assert model.get_experts_implementation()[""] == INDEX_LOOP
        assert experts_of(model).down_proj.stride()[1:] == (1, HIDDEN), "by columns"
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
        model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    leave_index_loop(model, "eager")
    assert experts_of(model).down_proj.is_contiguous()
    assert model.get_experts_implementation()[""] == "eager"


def test_a_dense_model_is_refused() -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(ArchitectureError, match="expected stock experts"):
        use_index_loop(LlamaForCausalLM(config))
