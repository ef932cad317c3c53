from __future__ import annotations

from functools import partial

import pytest
import torch
from support.comparisons import Ground
from support.families import VARIANTS, save_variant
from transformers import AutoModelForCausalLM

from expertweaver.comparison.candidate import ffn_weights, reached_mlp_sparsity, with_layers
from expertweaver.dense.model import open_dense
from expertweaver.modeling.reference import activation
from expertweaver.modeling.values import GLUWeights, LayerDesign, NeuronOracle, Partition, Router
from expertweaver.weaving import WovenLayer, serve_design


def everything(weights: GLUWeights, num_neurons: int) -> LayerDesign:
    """A design that always runs the first neurons and never the rest."""
    order = torch.arange(weights.num_neurons)
    router = Router(torch.zeros(2, weights.gate.shape[1]), torch.tensor([0.0, -1.0]), 1)
    half = num_neurons // 2
    return LayerDesign(Partition(order[:half], [order[half:num_neurons], order[num_neurons:]]), router)


def woven(design: LayerDesign) -> WovenLayer:
    return WovenLayer(design, partial(serve_design, design=design, act=activation("silu")))


@pytest.mark.parametrize("variant", ["llama", "phi3", "qwen2"])
def test_all_neurons_on_is_the_dense_model_and_no_weight_is_copied(variant: str, tmp_path: object) -> None:
    assert variant in VARIANTS
    folder = save_variant(variant, tmp_path / variant)  # pyright: ignore[reportOperatorIssue]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    weights = ffn_weights(model, open_dense(str(folder)))
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert {w.gate.untyped_storage().data_ptr() for w in weights} <= storages
    candidate = with_layers(model, weights, [woven(everything(w, 64)) for w in weights])
    assert {p.untyped_storage().data_ptr() for p in candidate.parameters()} <= storages
    ids = torch.arange(2, 30)[None]
    with torch.inference_mode():
        before, after = model(ids).logits, candidate(ids).logits
        fewer = with_layers(model, weights, [woven(everything(w, 16)) for w in weights])(ids).logits
        again = model(ids).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert (fewer - before).abs().max() > 0.1
    torch.testing.assert_close(again, before, rtol=0, atol=0)


def test_the_sparsity_reached_is_counted(ground: Ground) -> None:
    from support.statistics import fake_layers

    layers = fake_layers(num_layers=2, neurons=16)
    weights, statistics = [x.weights for x in layers], [x.statistics for x in layers]
    everyone = Partition(torch.arange(0), [torch.arange(16)])
    oracle = woven(LayerDesign(everyone, NeuronOracle("gate", 4)))
    half = woven(everything(weights[1], 16))
    assert reached_mlp_sparsity([oracle, oracle], weights, statistics) == pytest.approx(0.75)
    assert reached_mlp_sparsity([oracle, half], weights, statistics) == pytest.approx(0.375)
