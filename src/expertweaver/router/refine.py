"""Refining a router: gradient steps on the energy that its top-K choice captures; a regression only comes near."""

from __future__ import annotations

import torch
from torch import Tensor

from expertweaver.modeling.values import Router
from expertweaver.router.ridge import RidgeRegressor, stored_form

BATCH_TOKENS = 2048
LEARNING_RATE = 1e-2
TEMPERATURE = 0.3
"""Width of the soft choice, in standard deviations of a token's scores."""


def refine_router(inputs: RidgeRegressor, gain: Tensor, start: Router, *, steps: int, seed: int) -> Router:
    """Move an affine router towards choosing the K experts of largest gain on each token.

    The choice is softened to q = sigmoid((score - threshold) / temperature), with the threshold half-way between the
    K-th and the next score. Holding sum_e q_e at K moves the threshold along, which takes the mean gain of the experts
    near it out of every expert's gradient: an expert's score rises only if it is worth more than those it would
    displace. Adam on whitened inputs, where all directions have the same scale; the learning rate falls to zero.

    Args:
        inputs: The tokens' inputs, factored.
        gain: What running each expert is worth on each token, [T, E].
        start: Where to begin; K < E.
        steps: Batches of at most 2,048 tokens drawn with replacement.
        seed: Of the draws.

    Source: ours (docs/concepts.md, weave step 6), in place of logistic steps on "is this expert in the true top-K".
    """
    exact, scale, whitened = start.weight.double(), inputs.num_tokens**0.5, inputs.whitened()
    slopes, centre = exact @ inputs.factor / scale, start.bias + exact @ inputs.mean
    weight, bias = _scaled(whitened, slopes.float(), centre.float())
    gain = gain / gain.abs().sum(dim=1).mean().clamp_min(1e-30)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    count = min(BATCH_TOKENS, inputs.num_tokens)
    z = whitened.new_empty(count, whitened.shape[1])
    for step in range(steps):
        tokens = torch.randint(inputs.num_tokens, (count,), generator=generator)
        torch.index_select(whitened, 0, tokens, out=z)
        slope = _slope(z @ weight.T + bias, gain[tokens], start.num_experts_per_tok)
        weight.grad = slope.T @ z / count
        bias.grad = slope.mean(dim=0) if inputs.with_bias else torch.zeros_like(bias)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        optimizer.step()
    unwhitened = torch.linalg.solve_triangular(inputs.factor, weight.double(), upper=False, left=False)
    return stored_form(unwhitened * scale, bias.double(), inputs.mean, start.num_experts_per_tok)


def _scaled(z: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The router with scores of unit spread around a token's mean, which keeps every choice."""
    scores = (z @ weight.T).add_(bias)
    spread = scores.sub_(scores.mean(dim=1, keepdim=True)).std().clamp_min(1e-30)
    return weight / spread, (bias - bias.mean()) / spread


def _slope(scores: Tensor, gain: Tensor, num_chosen: int) -> Tensor:
    """Gradient of the lost gain with respect to the scores, [T, E]."""
    border = scores.topk(num_chosen + 1, dim=1).values[:, num_chosen - 1 :]
    soft = torch.sigmoid((scores - border.mean(dim=1, keepdim=True)) / TEMPERATURE)
    near = soft * (1 - soft)
    displaced = (near * gain).sum(dim=1, keepdim=True) / near.sum(dim=1, keepdim=True).clamp_min(1e-30)
    return -(gain - displaced) * near / TEMPERATURE
