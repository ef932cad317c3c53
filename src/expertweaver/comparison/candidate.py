"""A dense model whose FFNs are replaced by designs, in memory: every method through one code path."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.model import FFN_PREFIX, DenseModel
from expertweaver.modeling.reference import activation, neuron_activations, running_neurons
from expertweaver.modeling.values import GLUWeights
from expertweaver.weaving import Served, WovenLayer

SPARSITY_TOKENS = 512
"""Calibration tokens that the sparsity reached is counted on."""


class ServedFFN(nn.Module):
    """Stands where a decoder layer's FFN was and computes what is served of it, in float32."""

    def __init__(self, weights: GLUWeights, served: Served) -> None:
        super().__init__()
        self.weights, self.served = weights, served

    def forward(self, x: Tensor) -> Tensor:
        """Map FFN inputs [..., H] to outputs [..., H]."""
        tokens = x.reshape(-1, x.shape[-1]).float()
        return self.served(self.weights)(tokens).view(x.shape).to(x.dtype)


def with_layers(model: PreTrainedModel, weights: Sequence[GLUWeights], layers: Sequence[WovenLayer]) -> PreTrainedModel:
    """A copy of a model that shares every weight with it and has its FFNs replaced.

    Args:
        model: The dense model.
        weights: Its FFNs in float32, one a layer; see `ffn_weights`.
        layers: What takes their place.
    """
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for layer, (ffn, woven) in enumerate(zip(weights, layers, strict=True)):
        shared[id(model.get_submodule(_place(layer)))] = ServedFFN(ffn, woven.served)
    return copy.deepcopy(model, shared)


def ffn_weights(model: PreTrainedModel, dense: DenseModel) -> list[GLUWeights]:
    """Every layer's FFN in float32, looking into the loaded model's own memory where that is float32."""
    return [_ffn(model, dense, layer) for layer in range(dense.dims.num_hidden_layers)]


def reached_mlp_sparsity(
    layers: Sequence[WovenLayer], weights: Sequence[GLUWeights], statistics: Sequence[LayerStatistics]
) -> float:
    """Share of neurons that do not run, over all layers and up to 512 inputs of the calibration pass."""
    shares = []
    for layer, (woven, ffn) in enumerate(zip(layers, weights, strict=True)):
        probes = statistics[layer].probe_inputs
        x = probes[:: -(-len(probes) // SPARSITY_TOKENS)].to(ffn.gate.device)
        gate_act, neuron_act = neuron_activations(x, ffn, activation(ffn.hidden_act))
        shares.append(
            float(running_neurons(x, gate_act, neuron_act, woven.design.on(x.device), ffn.down).double().mean())
        )
    return 1 - sum(shares) / len(shares)


def _place(layer: int) -> str:
    return (layer_prefix(layer) + FFN_PREFIX).removesuffix(".")


def _ffn(model: PreTrainedModel, dense: DenseModel, layer: int) -> GLUWeights:
    def part(name: str) -> Tensor:
        origin = dense.origins[f"{layer_prefix(layer)}{FFN_PREFIX}{name}_proj.weight"]
        tensor = model.get_parameter(origin.source).detach()
        return (tensor if origin.rows is None else tensor[slice(*origin.rows)]).to(torch.float32)

    return GLUWeights(part("gate"), part("up"), part("down"), dense.dims.hidden_act)
