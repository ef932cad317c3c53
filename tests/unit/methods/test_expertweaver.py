"""The paper's steps, one by one, on statistics whose answer is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.statistics import fake_layers

from expertweaver.errors import RecipeError
from expertweaver.methods import expertweaver, random, static
from expertweaver.modeling.values import LayerDesign, Router
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.loading import make_recipe

BUDGET = SliceBudget(num_slices=8, slice_width=6, active_slices=4)
LAYERS = fake_layers(num_layers=2, neurons=48)


def paper_design(**options: object) -> LayerDesign:
    chosen = expertweaver.Options.model_validate(options)
    allocation = expertweaver.allocate(chosen, [LAYERS[0].statistics], BUDGET, 1)[0]
    return expertweaver.design(chosen, 0, LAYERS[0].statistics, LAYERS[0].weights, allocation, BUDGET)


def test_shared_neurons_have_the_highest_mean_absolute_gate_activation() -> None:
    found = paper_design(alpha_max=0.3, alpha_min=0.3)
    strength = (LAYERS[0].inputs @ LAYERS[0].weights.gate.T).mul(1)
    mean_abs = torch.nn.functional.silu(strength).abs().mean(dim=0)
    shared = found.partition.shared_neurons
    assert len(shared) == 12  # round(0.3 * 8) = 2 slices
    assert set(shared.tolist()) == set(mean_abs.topk(12).indices.tolist())


def test_the_router_is_the_mean_gate_row_of_each_expert() -> None:
    found = paper_design()
    assert isinstance(found.router, Router)
    for weight, neurons in zip(found.router.weight, found.partition.expert_neurons, strict=True):
        assert torch.allclose(weight, LAYERS[0].weights.gate[neurons].mean(dim=0))
    assert not found.router.bias.any()


def test_routed_experts_group_neurons_of_like_profile() -> None:
    found = paper_design(alpha_max=0.2)
    profile = LAYERS[0].statistics.profile("abs")
    options = random.Options()
    allocation = random.allocate(options, [LAYERS[0].statistics], BUDGET, 1)[0]
    split = random.design(options, 0, LAYERS[0].statistics, LAYERS[0].weights, allocation, BUDGET)

    def spread(design: LayerDesign) -> float:
        parts = [profile[n] - profile[n].mean(dim=0) for n in design.partition.expert_neurons]
        return float(torch.cat(parts).square().mean())

    assert spread(found) < 0.7 * spread(split)


def test_signed_and_absolute_profiles_differ() -> None:
    absolute, signed = LAYERS[0].statistics.profile("abs"), LAYERS[0].statistics.profile("signed")
    assert (absolute >= signed.abs() - 1e-12).all()
    parts = [paper_design(profile=kind).partition.expert_neurons for kind in ("abs", "signed")]
    assert any(a.tolist() != b.tolist() for a, b in zip(*parts, strict=True))


def test_tau_auto_is_the_quantile_over_all_layers() -> None:
    statistics = [layer.statistics for layer in LAYERS]
    calm = dataclasses.replace(statistics[0], gate_act_abs=torch.ones_like(statistics[0].gate_act_abs))
    found = expertweaver.allocate(expertweaver.Options(tau="auto"), [calm, statistics[1]], BUDGET, 2)
    assert found[0].r == 0.0
    assert found[1].r == pytest.approx(1.0, abs=0.05)
    assert found[0].tau == found[1].tau


@pytest.mark.parametrize("bad", [{"alpha_min": 0.8}, {"tau": 0}, {"tau": -1.0}, {"profile": "both"}])
def test_impossible_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        make_recipe("model", settings={f"method.{key}": value for key, value in bad.items()})


def test_static_always_runs_the_neurons_of_highest_contribution() -> None:
    statistics, weights = LAYERS[0].statistics, LAYERS[0].weights
    allocation = static.allocate(static.Options(), [statistics], BUDGET, 1)[0]
    found = static.design(static.Options(), 0, statistics, weights, allocation, BUDGET)
    assert isinstance(found.router, Router)
    best = set(found.router.bias.topk(found.router.num_experts_per_tok).indices.tolist())
    running = set(found.partition.shared_neurons.tolist())
    running |= {n for e in best for n in found.partition.expert_neurons[e].tolist()}
    assert running == set(statistics.contribution.topk(24).indices.tolist())
    assert not found.router.weight.any()


def test_random_depends_on_seed_and_layer() -> None:
    def first_expert(seed: int, layer: int) -> list[int]:
        options = random.Options(seed=seed)
        allocation = random.allocate(options, [LAYERS[0].statistics], BUDGET, 1)[0]
        found = random.design(options, layer, LAYERS[0].statistics, LAYERS[0].weights, allocation, BUDGET)
        return found.partition.expert_neurons[0].tolist()

    assert first_expert(0, 0) == first_expert(0, 0)
    assert len({tuple(first_expert(s, i)) for s in (0, 1) for i in (0, 1)}) == 4
