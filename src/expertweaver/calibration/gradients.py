"""First-order gradients of the next-token loss on the calibration text, with one layer's weights in memory.

Forward through the layers, keeping what enters each; the head's gradient; then the layers from last to first, each
run again with a graph of its own. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from expertweaver.calibration.samples import PADDING, CalibrationSet, row_batches
from expertweaver.dense.model import DenseModel
from expertweaver.dense.runner import LayerRunner
from expertweaver.errors import CalibrationError, Problem
from expertweaver.modeling.reference import Activation, activation, neuron_activations
from expertweaver.modeling.values import GLUWeights

HEAD_TOKENS = 256
"""Tokens that have logits at a time: a vocabulary is wide."""


@dataclass(frozen=True)
class LayerGradients:
    """What the gradients of the mean next-token loss say of one layer's FFN.

    Attributes:
        layer: Its index.
        weight_saliency: Sum of |weight * dloss/dweight| over a neuron's gate row, up row and down column, the gradient
            summed over all tokens first, [F] float64.
        act_saliency: Sum over tokens of |neuron_act * dloss/dneuron_act|, [F] float64.
        output_metric: Sum over tokens of g g' divided by their number, where g is the gradient of the *summed* loss
            with respect to the FFN's output: its empirical Fisher matrix, [H, H] float64.
        num_tokens: Valid tokens that were run.
    """

    layer: int
    weight_saliency: Tensor
    act_saliency: Tensor
    output_metric: Tensor
    num_tokens: int


def layer_gradients(dense: DenseModel, calibration: CalibrationSet, num_tokens: int) -> Iterator[LayerGradients]:
    """Differentiate the mean next-token loss, and give each layer's gradients from the last layer to the first.

    A token predicts the next one of its own sample; padding predicts nothing and is predicted by nothing.

    Args:
        dense: The model.
        calibration: Packed tokens; whole rows of them are taken, evenly spread.
        num_tokens: Tokens at most, counted with the padding; at least one row is taken.

    Raises:
        CalibrationError: Gradients that are not finite.

    Memory: the rows taken, times H, times L + 1, times 4 bytes, besides one layer and the output head in float32.
    """
    rows = spread_rows(calibration, num_tokens)
    token_ids, sample_ids = calibration.token_ids[rows], calibration.sample_ids[rows]
    runner = LayerRunner(dense, torch.float32)
    inputs = _layer_inputs(runner, token_ids, sample_ids)
    targets = next_tokens(token_ids, sample_ids)
    upstream = _head_gradient(runner, inputs.pop(), targets)
    num_targets = int((targets != PADDING).sum())
    for layer in reversed(range(len(inputs))):
        measured = _Backward(dense.read_ffn(layer).to(torch.float32), activation(dense.dims.hidden_act))
        _run_back(runner, layer, measured, inputs.pop(), upstream, sample_ids)
        yield measured.finish(layer, num_targets, int((sample_ids != PADDING).sum()), dense.folder.name)


def spread_rows(calibration: CalibrationSet, num_tokens: int) -> Tensor:
    """Choose as many whole rows as `num_tokens` allow, at least one, evenly spread: ids, [r] int64."""
    num_rows, length = calibration.token_ids.shape
    count = max(1, min(num_rows, num_tokens // length))
    return torch.arange(count) * num_rows // count


def next_tokens(token_ids: Tensor, sample_ids: Tensor) -> Tensor:
    """The token that follows each token in its own sample, [R, T]; -1 where none does."""
    following = torch.full_like(token_ids, PADDING)
    inside = (sample_ids[:, 1:] == sample_ids[:, :-1]) & (sample_ids[:, 1:] != PADDING)
    following[:, :-1] = torch.where(inside, token_ids[:, 1:], PADDING)
    return following


def _layer_inputs(runner: LayerRunner, token_ids: Tensor, sample_ids: Tensor) -> list[Tensor]:
    """Hidden states [R, T, H] entering each layer, and those leaving the last."""
    states = [runner.embedder()(token_ids)]
    act = activation(runner.dense.dims.hidden_act)
    for layer in range(runner.dense.dims.num_hidden_layers):
        weights = runner.dense.read_ffn(layer).to(torch.float32)
        hidden = torch.empty_like(states[-1])
        with runner.layer(layer) as module:
            for rows in row_batches(sample_ids):
                hidden[rows] = runner.run(
                    module,
                    states[-1][rows],
                    sample_ids[rows],
                    lambda x, weights=weights: neuron_activations(x, weights, act)[1] @ weights.down.T,
                )
        states.append(hidden)
    return states


def _head_gradient(runner: LayerRunner, hidden: Tensor, targets: Tensor) -> Tensor:
    """Gradient of the summed loss with respect to the last layer's output, [R, T, H]."""
    norm, head = runner.norm().requires_grad_(False), runner.head()
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    gradient = torch.zeros_like(flat)
    for tokens in (wanted != PADDING).nonzero().squeeze(-1).split(HEAD_TOKENS):
        part = flat[tokens].requires_grad_()
        loss = torch.nn.functional.cross_entropy(runner.logits(part, norm, head), wanted[tokens], reduction="sum")
        (gradient[tokens],) = torch.autograd.grad(loss, part)
    return gradient.view_as(hidden)


class _Backward:
    """Stands in a layer as its FFN, and gathers the gradients of one batch after the other."""

    def __init__(self, weights: GLUWeights, act: Activation) -> None:
        gate, up, down = (part.clone().requires_grad_() for part in (weights.gate, weights.up, weights.down))
        self.parts = (gate, up, down)
        self.weights = GLUWeights(gate, up, down, weights.hidden_act)
        self.act = act
        self.neuron_act = self.output = torch.empty(0)
        hidden_size, num_neurons = weights.down.shape
        self.act_saliency = torch.zeros(num_neurons, dtype=torch.float64)
        self.output_metric = torch.zeros(hidden_size, hidden_size, dtype=torch.float64)

    def ffn(self, x: Tensor) -> Tensor:
        """The FFN, its inner values kept for `backward`."""
        self.neuron_act = neuron_activations(x, self.weights, self.act)[1]
        self.output = self.neuron_act @ self.weights.down.T
        return self.output

    def backward(self, hidden: Tensor, output: Tensor, upstream: Tensor) -> Tensor:
        """Add a batch; returns the gradient with respect to what entered the layer.

        Padding has no gradient from above and no real token looks at it, so it adds nothing.
        """
        wanted = (hidden, self.neuron_act, self.output, *self.parts)
        below, act, out, *parts = torch.autograd.grad(output, wanted, upstream)
        for part, gradient in zip(self.parts, parts, strict=True):
            part.grad = gradient if part.grad is None else part.grad + gradient
        self.act_saliency += (self.neuron_act.detach() * act).abs().flatten(0, 1).sum(dim=0, dtype=torch.float64)
        flat = out.flatten(0, 1)
        self.output_metric += (flat.T @ flat).double()
        return below

    def finish(self, layer: int, num_targets: int, num_tokens: int, name: str) -> LayerGradients:
        """The layer's sums, the saliencies those of the mean loss."""
        gate, up, down = ((part.detach() * part.grad).abs().double() for part in self.parts if part.grad is not None)
        weight = gate.sum(dim=1) + up.sum(dim=1) + down.sum(dim=0)
        if not bool(torch.isfinite(weight).all() and torch.isfinite(self.output_metric).all()):
            where = f"{name}, layer {layer}"
            raise CalibrationError(Problem(where, "finite gradients", "NaN or infinite ones", "Check the weights."))
        metric = self.output_metric / num_tokens
        return LayerGradients(layer, weight / num_targets, self.act_saliency / num_targets, metric, num_tokens)


def _run_back(
    runner: LayerRunner, layer: int, measured: _Backward, hidden: Tensor, upstream: Tensor, sample_ids: Tensor
) -> None:
    """Run one layer again, batch by batch; `upstream` [R, T, H] becomes the gradient with respect to its input."""
    with runner.layer(layer) as module:
        module.requires_grad_(False)
        for rows in row_batches(sample_ids):
            entering = hidden[rows].requires_grad_()
            output = runner.run(module, entering, sample_ids[rows], measured.ffn, with_graph=True)
            upstream[rows] = measured.backward(entering, output, upstream[rows])
