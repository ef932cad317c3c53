"""Our own class as a format: designs of any shape, stored and loaded into the class's own FFN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import SIZES, save_variant
from torch import Tensor

from expertweaver.dense.model import DenseModel, open_dense
from expertweaver.formats.base import Layout, StoredLayer, all_experts_ffn, stored_ffn
from expertweaver.formats.expertweaver_moe import FORMAT
from expertweaver.modeling.reference import activation, dense_ffn, designed_ffn
from expertweaver.modeling.values import GLUWeights, LayerDesign, Partition, Router
from expertweaver.serving.modeling_expertweaver_moe import ExpertWeaverMoeConfig, ExpertWeaverMoeSparseMLP

LAYOUT = Layout(num_experts=0, num_experts_per_tok=0, num_shared_slices=0, slice_width=8)
GELU = activation("gelu_pytorch_tanh")


def ffn() -> GLUWeights:
    generator = torch.Generator().manual_seed(0)
    gate, up, down = (torch.randn(64, 32, generator=generator) * 0.3 for _ in range(3))
    return GLUWeights(gate, up, down.T.contiguous(), "gelu_pytorch_tanh")


def design(sizes: list[int], *, shared: int, chosen: int, bias: bool) -> LayerDesign:
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(64, generator=generator)
    assert shared + sum(sizes) == 64
    experts = [part.sort().values for part in order[shared:].split(sizes)]
    router = Router(
        torch.randn(len(sizes), 32, generator=generator), torch.randn(len(sizes), generator=generator), chosen
    )
    output_bias = torch.randn(32, generator=generator) if bias else None
    return LayerDesign(Partition(order[:shared].sort().values, experts), router, bias=output_bias)


def tokens() -> Tensor:
    return torch.randn(50, 32, generator=torch.Generator().manual_seed(2))


def loaded(stored: StoredLayer, weights: GLUWeights) -> Any:
    """The class's own FFN with the tensors of a layer, in a configuration of one layer."""
    sizes = stored.sizes(LAYOUT)
    config = ExpertWeaverMoeConfig(
        **{**SIZES, "num_hidden_layers": 1},
        num_routed_experts=[len(sizes.experts)],
        num_experts_per_tok=[sizes.num_experts_per_tok],
        moe_intermediate_size=[list(sizes.experts)],
        shared_expert_intermediate_size=[sizes.shared],
        mlp_output_bias=sizes.has_output_bias,
        moe_hidden_act=weights.hidden_act,
    )
    mlp = ExpertWeaverMoeSparseMLP(config, 0)
    tensors = FORMAT.layer_tensors(0, stored, weights, torch.float32)
    FORMAT.load_layer(mlp, {name.removeprefix("model.layers.0.mlp."): tensor for name, tensor in tensors.items()})
    return mlp


@pytest.mark.parametrize(
    ("sizes", "shared", "chosen", "bias"),
    [([8] * 6, 16, 2, False), ([4, 12, 8, 24], 16, 2, True), ([20, 44], 0, 1, False), ([40], 24, 0, True)],
)
@torch.inference_mode()
def test_what_is_stored_computes_what_was_designed(sizes: list[int], shared: int, chosen: int, bias: bool) -> None:
    weights, made, x = ffn(), design(sizes, shared=shared, chosen=chosen, bias=bias), tokens()
    stored = FORMAT.store_layer(made, LAYOUT, x)
    mlp = loaded(stored, weights)
    expected = designed_ffn(x, weights, made, GELU)
    assert torch.allclose(mlp(x), expected, atol=1e-5)
    assert torch.allclose(stored_ffn(weights, stored, LAYOUT, FORMAT, torch.float32, GELU)(x), expected, atol=1e-5)
    FORMAT.set_all_experts_on(mlp)
    everything = dense_ffn(x, weights, GELU) + (torch.zeros(32) if made.bias is None else made.bias)
    assert torch.allclose(mlp(x), everything, atol=1e-5)
    assert torch.allclose(all_experts_ffn(x, weights, stored, torch.float32, GELU), everything, atol=1e-5)


@torch.inference_mode()
def test_a_neuron_of_two_experts_is_stored_in_both_and_counted_twice_with_all_on() -> None:
    weights, x = ffn(), tokens()
    experts = [torch.arange(0, 40), torch.arange(30, 60)]
    made = LayerDesign(
        Partition(torch.empty(0, dtype=torch.int64), experts), Router(torch.randn(2, 32), torch.zeros(2), 1)
    )
    stored = FORMAT.store_layer(made, LAYOUT, x)
    mlp = loaded(stored, weights)
    assert torch.allclose(mlp(x), designed_ffn(x, weights, made, GELU), atol=1e-5)
    FORMAT.set_all_experts_on(mlp)
    both = torch.stack([dense_ffn(x, weights.slice(neurons), GELU) for neurons in experts]).sum(dim=0)
    assert torch.allclose(all_experts_ffn(x, weights, stored, torch.float32, GELU), both, atol=1e-5)
    assert torch.allclose(mlp(x), both, atol=1e-5)


def test_a_tie_at_the_border_is_told() -> None:
    made = design([8] * 6, shared=16, chosen=2, bias=False)
    zero = LayerDesign(made.partition, Router(torch.zeros(6, 32), torch.tensor([0.0, 2, 1, 1, 0, 0]), 2))
    stored = FORMAT.store_layer(zero, LAYOUT, tokens())
    routing = FORMAT.reference_routing(tokens(), stored, LAYOUT)
    assert routing.chosen[0].tolist() == [1, 2]
    assert routing.tied.all()
    assert not FORMAT.reference_routing(tokens(), FORMAT.store_layer(made, LAYOUT, tokens()), LAYOUT).tied.any()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> DenseModel:
    return open_dense(str(save_variant("gemma3", tmp_path_factory.mktemp("gemma3"))))


def test_numbers_stand_alone_where_layers_are_alike_and_in_lists_where_not(dense: DenseModel) -> None:
    def written(*layers: list[int]) -> Any:
        stored = [
            FORMAT.store_layer(design(s, shared=64 - sum(s), chosen=1, bias=False), LAYOUT, tokens()) for s in layers
        ]
        layout = Layout(0, 0, 0, 8, layers=tuple(layer.sizes(LAYOUT) for layer in stored))
        return FORMAT.config(dense, layout, torch.bfloat16)

    assert written([8] * 4, [8] * 4)["moe_intermediate_size"] == 8
    assert written([8] * 4, [16] * 2)["moe_intermediate_size"] == [8, 16]
    assert written([8, 4], [8, 4])["moe_intermediate_size"] == [[8, 4], [8, 4]], "not one entry for each layer"
    found = written([8] * 4, [16] * 2)
    assert (found["num_routed_experts"], found["num_experts_per_tok"]) == ([4, 2], 1)
    assert found["shared_expert_intermediate_size"] == 32
    assert "experts_implementation" not in found
    assert written([4] * 2, [4] * 2)["experts_implementation"] == "eager"
    assert (found["dense_model_type"], found["moe_hidden_act"]) == ("gemma3_text", "gelu_pytorch_tanh")


def test_biases_on_the_ffn_are_refused(tmp_path: Path) -> None:
    from support.models import edit_config, edit_tensors

    folder = save_variant("llama", tmp_path)
    edit_config(folder, mlp_bias=True)
    sizes = {"gate_proj": 64, "up_proj": 64, "down_proj": 32}
    edit_tensors(
        folder, {f"model.layers.{i}.mlp.{name}.bias": torch.zeros(n) for i in range(2) for name, n in sizes.items()}
    )
    [problem] = FORMAT.check(open_dense(str(folder)), torch.float32)
    assert problem.found == "mlp.gate_proj.bias, mlp.up_proj.bias, mlp.down_proj.bias"
