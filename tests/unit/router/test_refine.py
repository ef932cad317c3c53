"""Refining a router: what it captures, and what it must not change."""

from __future__ import annotations

import torch

from expertweaver.modeling.reference import choose_experts, chosen_mask
from expertweaver.modeling.values import Router
from expertweaver.router.refine import refine_router
from expertweaver.router.ridge import RidgeRegressor

EXPERTS, CHOSEN = 6, 2


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of unequal scales and gains that depend on them in a way that no regression of the gains can follow."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, 8, generator=generator) * torch.logspace(-1, 1, 8) + 3
    scores = (x - 3) @ torch.randn(EXPERTS, 8, generator=generator).T
    return x, (0.7 * scores).exp().clamp_max(1e4)


def captured(x: torch.Tensor, gain: torch.Tensor, router: Router) -> float:
    running = chosen_mask(choose_experts(x, router), EXPERTS)
    return float((gain * running).sum() / gain.sum())


def test_it_captures_more_on_fresh_tokens() -> None:
    x, gain = problem()
    inputs = RidgeRegressor(x[:3000], ridge=1e-6)
    start = inputs.fit(gain[:3000], CHOSEN)
    refined = refine_router(inputs, gain[:3000], start, steps=200, seed=0)
    before, after = captured(x[3000:], gain[3000:], start), captured(x[3000:], gain[3000:], refined)
    assert after > before + 0.2 * (1 - before)


def test_without_steps_every_choice_stays() -> None:
    """The whitening there and back is the identity, up to the rounding of the weights to bfloat16."""
    x, gain = problem()
    inputs = RidgeRegressor(x, ridge=1e-6)
    start = inputs.fit(gain.sqrt(), CHOSEN)
    found = refine_router(inputs, gain, start, steps=0, seed=0)
    same = chosen_mask(choose_experts(x, start), EXPERTS) == chosen_mask(choose_experts(x, found), EXPERTS)
    assert same.all(dim=1).double().mean() > 0.98
    assert not torch.equal(start.weight, found.weight), "the scale differs, or this test compares a thing with itself"


def test_equal_gains_move_no_expert() -> None:
    """What an expert is worth counts only against those it would displace: here nothing is to be won."""
    x, gain = problem()
    inputs = RidgeRegressor(x, ridge=1e-6)
    start = inputs.fit(gain.sqrt(), CHOSEN)
    found = refine_router(inputs, torch.ones_like(gain), start, steps=50, seed=0)
    same = chosen_mask(choose_experts(x, start), EXPERTS) == chosen_mask(choose_experts(x, found), EXPERTS)
    assert same.all(dim=1).double().mean() > 0.95


def test_it_is_in_stored_form_and_repeatable() -> None:
    x, gain = problem()
    inputs = RidgeRegressor(x, ridge=1e-6)
    first, again = (refine_router(inputs, gain, inputs.fit(gain, CHOSEN), steps=20, seed=seed) for seed in (1, 1))
    other = refine_router(inputs, gain, inputs.fit(gain, CHOSEN), steps=20, seed=2)
    assert first.is_stored_form
    assert torch.equal(first.weight, first.weight.bfloat16().float())
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)


def test_a_router_without_a_bias_is_refined_without_one() -> None:
    x, gain = problem()
    inputs = RidgeRegressor(x[:3000], ridge=1e-6, with_bias=False)
    start = inputs.fit(gain[:3000], CHOSEN)
    refined = refine_router(inputs, gain[:3000], start, steps=200, seed=0)
    assert not refined.bias.any()
    assert captured(x[3000:], gain[3000:], refined) > captured(x[3000:], gain[3000:], start)
