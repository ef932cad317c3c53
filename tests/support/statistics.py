"""Layer statistics of a made-up FFN, gathered by the real accumulator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from expertweaver.calibration.statistics import LayerStatistics, StatisticsAccumulator, TokenBatch
from expertweaver.calibration.traffic import LayerTraffic, judging_tokens
from expertweaver.modeling.reference import activation, dense_ffn, neuron_activations
from expertweaver.modeling.values import GLUWeights


@dataclass(frozen=True)
class FakeLayer:
    """Weights, the statistics of inputs from several clusters, and those inputs."""

    weights: GLUWeights
    statistics: LayerStatistics
    inputs: torch.Tensor

    @property
    def traffic(self) -> LayerTraffic:
        """The same inputs as they pass the layer, with what the dense FFN puts out as the target."""
        return fake_traffic(self.inputs, self.weights)


def fake_traffic(inputs: torch.Tensor, weights: GLUWeights) -> LayerTraffic:
    """Inputs [T, H] in one row, on a residual stream of zeros."""
    x = inputs[None]
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    wanted = dense_ffn(x, weights, activation(weights.hidden_act))
    return LayerTraffic(x, torch.zeros_like(x), wanted, valid, judging_tokens(valid))


def fake_layers(*, num_layers: int, neurons: int, hidden: int = 8, samples: int = 12, seed: int = 0) -> list[FakeLayer]:
    """Random FFNs on samples of two domains whose inputs have means of their own; gradients are random numbers."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(num_layers):
        gate, up, down = (torch.randn(neurons, hidden, generator=generator) for _ in range(3))
        weights = GLUWeights(gate, up, down.T.contiguous())
        ids = torch.arange(samples).repeat_interleave(10)
        x = torch.randn(len(ids), hidden, generator=generator) + torch.randn(samples, hidden, generator=generator)[ids]
        measured = StatisticsAccumulator(weights, torch.arange(samples) % 2)
        gate_act, neuron_act = neuron_activations(x, weights, activation("silu"))
        everything = torch.ones(len(ids), dtype=torch.bool)
        measured.add(TokenBatch(ids, everything), x, gate_act, neuron_act)
        weight_saliency, act_saliency = torch.rand(2, neurons, generator=generator, dtype=torch.float64)
        found = replace(measured.finish("fake"), weight_saliency=weight_saliency, act_saliency=act_saliency)
        layers.append(FakeLayer(weights, found, x))
    return layers
