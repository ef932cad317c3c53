"""FLAP's score, bias and global threshold against their definitions on the calibration inputs."""

from __future__ import annotations

import pytest
import torch
from support.statistics import FakeLayer, fake_layers

from expertweaver.methods import flap
from expertweaver.modeling.reference import activation, dense_ffn, designed_ffn, neuron_activations
from expertweaver.modeling.values import LayerDesign, Router
from expertweaver.partition.budget import SliceBudget

BUDGET = SliceBudget(num_slices=8, slice_width=6, active_slices=4)
ACT = activation("silu")
LAYERS = fake_layers(num_layers=3, neurons=48)


def design_all(layers: list[FakeLayer] = LAYERS, **options: object) -> list[LayerDesign]:
    chosen = flap.Options.model_validate(options)
    allocations = flap.allocate(chosen, [layer.statistics for layer in layers], BUDGET, len(layers))
    return [
        flap.design(chosen, index, layer.statistics, layer.weights, allocation, BUDGET)
        for index, (layer, allocation) in enumerate(zip(layers, allocations, strict=True))
    ]


def score(layer: FakeLayer) -> torch.Tensor:
    """Variance of neuron_act over the inputs times the squared norm of the down column."""
    act = neuron_activations(layer.inputs, layer.weights, ACT)[1].double()
    return act.var(dim=0, correction=0) * layer.weights.down.double().square().sum(dim=0)


def kept_neurons(found: LayerDesign) -> set[int]:
    """Neurons that run on every token."""
    router, kept = found.router, set(found.partition.shared_neurons.tolist())
    assert isinstance(router, Router)
    assert not router.weight.any()
    for expert in router.bias.topk(router.num_experts_per_tok).indices.tolist():
        kept |= set(found.partition.expert_neurons[expert].tolist())
    return kept


@pytest.mark.parametrize("bias", [True, False])
def test_every_layer_keeps_the_neurons_that_fluctuate_most(bias: bool) -> None:
    for layer, found in zip(LAYERS, design_all(bias=bias), strict=True):
        assert kept_neurons(found) == set(score(layer).topk(24).indices.tolist())
    contribution = LAYERS[0].statistics.contribution
    assert kept_neurons(design_all()[0]) != set(contribution.topk(24).indices.tolist()), "variance, not energy"


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_bias_is_the_mean_output_of_the_dropped_neurons(scope: str) -> None:
    """So on the calibration inputs the mean output is the dense one's; without the bias it is not."""
    plain = design_all(scope=scope, bias=False)
    for layer, found, without in zip(LAYERS, design_all(scope=scope), plain, strict=True):
        dense = dense_ffn(layer.inputs, layer.weights, ACT).mean(dim=0)
        assert torch.allclose(designed_ffn(layer.inputs, layer.weights, found, ACT).mean(dim=0), dense, atol=1e-4)
        assert without.bias is None
        off = designed_ffn(layer.inputs, layer.weights, without, ACT).mean(dim=0)
        assert not torch.allclose(off, dense, atol=0.1)


def test_a_global_threshold_divides_the_same_total_by_standard_scores() -> None:
    designs = design_all(scope="global")
    kept = [len(kept_neurons(found)) for found in designs]
    assert sum(kept) == 3 * 24
    assert len(set(kept)) > 1
    standard = [(score(layer) - score(layer).mean()) / score(layer).std(correction=0) for layer in LAYERS]
    threshold = torch.cat(standard).sort(descending=True).values[3 * 24 - 1]
    for values, found in zip(standard, designs, strict=True):
        assert kept_neurons(found) == set((values >= threshold).nonzero().flatten().tolist())


def test_a_neuron_that_never_acts_is_dropped_first_and_adds_nothing() -> None:
    [layer] = fake_layers(num_layers=1, neurons=48)
    layer.weights.up[:24] = 0
    statistics = layer.statistics
    for sums in (statistics.neuron_act_sum, statistics.neuron_act_squared, statistics.contribution):
        sums[:24] = 0
    [found] = design_all([layer])
    assert kept_neurons(found) == set(range(24, 48))
    assert found.bias is not None
    assert not found.bias.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "an output bias"),
        ({"bias": False}, None),
        ({"scope": "global", "bias": False}, "layers of unequal width"),
        ({"scope": "global"}, "an output bias and layers of unequal width"),
    ],
)
def test_what_goes_beyond_stock_depends_on_the_options(options: dict[str, object], words: str | None) -> None:
    assert flap.Options.model_validate(options).beyond_stock == words
