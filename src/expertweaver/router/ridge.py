"""A fitted router: ridge regression of every expert's output norm on the FFN's input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from expertweaver.errors import PartitionError, Problem
from expertweaver.modeling.reference import token_parts
from expertweaver.modeling.values import Router

COLUMNS = 128
"""Columns of the inputs that are centred at a time."""


def expert_output_norms(neuron_act: Tensor, down: Tensor, expert_neurons: Sequence[Tensor]) -> Tensor:
    """L2 norm of each expert's output, [T, E].

    Args:
        neuron_act: One neuron a row, [F, T]: rows are what is gathered.
        down: down_proj [H, F].
        expert_neurons: Neuron ids of each expert.

    Source: docs/concepts.md, weave step 4; the squared norm is h (Wd Wd') h', which never forms the output.
    """
    norms = neuron_act.new_empty(neuron_act.shape[1], len(expert_neurons))
    widest = max(len(neurons) for neurons in expert_neurons)
    act, mixed = (neuron_act.new_empty(widest, neuron_act.shape[1]) for _ in range(2))
    for norm, neurons in zip(norms.unbind(dim=1), expert_neurons, strict=True):
        columns, some, mix = down[:, neurons], act[: len(neurons)], mixed[: len(neurons)]
        torch.index_select(neuron_act, 0, neurons, out=some)
        torch.mm(columns.T @ columns, some, out=mix)
        torch.sum(mix.mul_(some), dim=0, out=norm)
    return norms.clamp_min_(0).sqrt_()


class RidgeRegressor:
    """The inputs' part of a ridge regression, factored once and used for many targets.

    Attributes:
        inputs: [T, H].
        mean: Of the inputs, [H] float64; zero without a bias.
        factor: Lower Cholesky factor of centred'centred + ridge, [H, H] float64.
    """

    def __init__(self, ffn_input: Tensor, *, ridge: float, with_bias: bool = True) -> None:
        """Factor the inputs.

        Args:
            ffn_input: Inputs [T, H].
            ridge: Relative to the mean diagonal of the Gram matrix.
            with_bias: Fit an intercept; without one the inputs are not centred, and every router's bias is zero.

        Raises:
            PartitionError: The ridge is too small to factor the Gram matrix.
        """
        self.with_bias = with_bias
        self.inputs = ffn_input
        self.mean = ffn_input.mean(dim=0, dtype=torch.float64) * with_bias
        centred = ffn_input - self.mean.float()
        gram = (centred.T @ centred).double()
        scale = gram.diagonal().mean().clamp_min(1e-30)
        self.factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype))
        if failed:
            expected = "a ridge that makes the inputs' Gram matrix positive definite"
            raise PartitionError(
                Problem("router ridge", expected, f"{ridge:g}", "Raise it: --set method.router_ridge=1e-3.")
            )

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.inputs)

    def whitened(self) -> Tensor:
        """Inputs of mean zero and, but for the ridge, unit covariance, [T, H] float32: made anew, not kept."""
        inverse = torch.linalg.inv(self.factor).float() * self.num_tokens**0.5
        mean, result = self.mean.float(), torch.empty_like(self.inputs)
        for inputs, found in token_parts(self.inputs, result):
            torch.matmul(inputs - mean, inverse.T, out=found)
        return result

    def directions(self, targets: Iterable[Tensor]) -> Iterator[Tensor]:
        """What the inputs tell of each target: its regression on the whitened inputs, one a row.

        The length of a row is the standard deviation of the target's predictable part; the cosine of two rows is the
        correlation of their predictable parts.

        Args:
            targets: Some of them at a time, [n, T].

        Yields:
            [n, H] for each.
        """
        whitened = self.whitened()
        for target in targets:
            yield (target - target.mean(dim=1, keepdim=True)) @ whitened / self.num_tokens

    def fit(self, target: Tensor, num_experts_per_tok: int) -> Router:
        """Regress targets [T, E] on the inputs, in the form in which a router is stored.

        Source: docs/concepts.md, weave step 4; D2DMoE (2310.04361) regresses the same norms with an MLP.
        """
        centre = target.double().mean(dim=0) * self.with_bias
        columns = zip(self.inputs.split(COLUMNS, dim=1), self.mean.float().split(COLUMNS), strict=True)
        target = target - centre.float()
        cross = torch.cat([(inputs - mean).T @ target for inputs, mean in columns]).double()
        weight = torch.cholesky_solve(cross, self.factor).T
        return stored_form(weight, centre, self.mean, num_experts_per_tok)


def stored_form(weight: Tensor, centre: Tensor, mean: Tensor, num_experts_per_tok: int) -> Router:
    """The router of scores (x - mean) @ weight.T + centre, with the mean over experts taken out, which keeps the order.

    The weights are rounded to bfloat16, as they are stored, so that what follows is measured on what is served.

    Args:
        weight: [E, H] float64.
        centre: [E] float64.
        mean: [H] float64.
        num_experts_per_tok: K.
    """
    rounded = (weight - weight.mean(dim=0)).float().bfloat16().float()
    bias = centre - rounded.double() @ mean
    return Router(rounded, (bias - bias.mean()).float(), num_experts_per_tok, is_stored_form=True)
