from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from expertweaver.formats.base import Layout, stored_ffn, uniform_layout
from expertweaver.formats.glm4_moe import FORMAT
from expertweaver.formats.parts.sigmoid import (
    MAX_ABS_LOGIT,
    fold_router,
)
from expertweaver.modeling.reference import choose_experts
from expertweaver.modeling.values import GLUWeights, LayerDesign, Partition, Router
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.router.ridge import RidgeRegressor

HIDDEN = 16


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_router(num_experts: int, chosen: int, *, bias: float = 0.0) -> Router:
    g = generator()
    weight = torch.randn(num_experts, HIDDEN, generator=g).bfloat16().float()
    return Router(weight, bias * torch.randn(num_experts, generator=g), chosen)


def test_layout_stores_the_fewest_shared_slices() -> None:
    budget = SliceBudget(num_slices=8, slice_width=4, active_slices=5)
    layout = uniform_layout([Allocation(3), Allocation(1), Allocation(2)], budget)
    assert layout == Layout(num_experts=7, num_experts_per_tok=4, num_shared_slices=1, slice_width=4)


def test_folded_logits_are_tiny_and_the_scale_is_a_power_of_two() -> None:
    router = random_router(6, 2)
    x = 10 * torch.randn(500, HIDDEN, generator=generator())
    weight, _, scale_log2 = fold_router(router, x)
    largest = float((x @ weight.T).abs().max())
    assert MAX_ABS_LOGIT / 2 < largest <= MAX_ABS_LOGIT
    unfolded = weight / 2.0**scale_log2
    centred = router.weight - router.weight.mean(dim=0)
    assert torch.equal(unfolded, centred.bfloat16().float())
    assert torch.equal(weight, weight.bfloat16().float()), "a bfloat16 checkpoint must hold it exactly"


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_the_fold_keeps_the_choice_of_an_affine_router(bias: float) -> None:
    router = random_router(12, 4, bias=bias)
    x = torch.randn(2000, HIDDEN, generator=generator())
    partition = Partition(torch.arange(4), list(torch.arange(4, 52).view(12, 4)))
    layout = Layout(num_experts=12, num_experts_per_tok=4, num_shared_slices=1, slice_width=4)
    stored = FORMAT.store_layer(LayerDesign(partition, router), layout, x)
    routing = FORMAT.reference_routing(x, stored, layout)
    wanted = choose_experts(x, router).sort(dim=1).values
    same = (routing.chosen.sort(dim=1).values == wanted).all(dim=1).double().mean()
    assert same > 0.98  # what differs are near-ties moved by rounding the centred weights to bfloat16
    assert stored.routing_kept == pytest.approx(float(same))
    assert (routing.weights - 1).abs().max() < 0.5 * MAX_ABS_LOGIT + 1e-6
    if bias:
        without = choose_experts(x, Router(router.weight, torch.zeros(12), 4)).sort(dim=1).values
        assert (without == wanted).all(dim=1).double().mean() < 0.7, "the bias must matter in this test"


def test_extra_shared_slices_become_experts_that_are_always_chosen() -> None:
    router = random_router(5, 2)
    partition = Partition(torch.arange(12), list(torch.arange(12, 32).view(5, 4)))
    layout = Layout(num_experts=7, num_experts_per_tok=4, num_shared_slices=1, slice_width=4)
    x = torch.randn(300, HIDDEN, generator=generator())
    stored = FORMAT.store_layer(LayerDesign(partition, router), layout, x)
    assert stored.shared_neurons.tolist() == [0, 1, 2, 3]
    assert [neurons.tolist() for neurons in stored.expert_neurons[:2]] == [[4, 5, 6, 7], [8, 9, 10, 11]]
    routing = FORMAT.reference_routing(x, stored, layout)
    assert ((routing.chosen == 0).any(dim=1) & (routing.chosen == 1).any(dim=1)).all()
    assert torch.equal(routing.weights[:, :2], torch.ones(300, 2))
    rest = routing.chosen[routing.chosen >= 2].view(300, 2).sort(dim=1).values - 2
    wanted = choose_experts(x, router).sort(dim=1).values
    assert (rest == wanted).all(dim=1).double().mean() > 0.98


def test_a_router_without_weights_keeps_its_biases_order() -> None:
    router = Router(torch.zeros(4, HIDDEN), torch.tensor([0.0, 1.0, 0.0, 1.0]), 2)
    layout = Layout(num_experts=4, num_experts_per_tok=2, num_shared_slices=0, slice_width=2)
    stored = FORMAT.store_layer(
        LayerDesign(Partition(torch.arange(0), list(torch.arange(8).view(4, 2))), router), layout, torch.ones(3, HIDDEN)
    )
    assert (
        FORMAT.reference_routing(torch.randn(9, HIDDEN), stored, layout).chosen.sort(dim=1).values.tolist()
        == [[1, 3]] * 9
    )


def test_a_tie_at_the_border_is_named() -> None:
    router = Router(torch.zeros(3, HIDDEN), torch.tensor([1.0, 1.0, 0.0]), 1)
    layout = Layout(num_experts=3, num_experts_per_tok=1, num_shared_slices=0, slice_width=1)
    design = LayerDesign(Partition(torch.arange(0), list(torch.arange(3).view(3, 1))), router)
    stored = FORMAT.store_layer(design, layout, torch.ones(2, HIDDEN))
    assert FORMAT.reference_routing(torch.ones(2, HIDDEN), stored, layout).tied.all()
    decided = FORMAT.store_layer(
        LayerDesign(design.partition, Router(torch.zeros(3, HIDDEN), torch.tensor([0.0, 1.0, 0.0]), 1)),
        layout,
        torch.ones(2, HIDDEN),
    )
    assert not FORMAT.reference_routing(torch.ones(2, HIDDEN), decided, layout).tied.any()


def test_a_fitted_router_is_stored_as_it_was_fitted() -> None:
    """Centring and rounding twice would serve other weights than those the method judged."""
    g = generator()
    x, target = torch.randn(500, HIDDEN, generator=g), torch.rand(500, 6, generator=g)
    router = RidgeRegressor(x, ridge=1e-3).fit(target, 2)
    weight, _, scale_log2 = fold_router(router, x)
    assert torch.equal(weight / 2.0**scale_log2, router.weight)
    twice = (router.weight - router.weight.mean(dim=0)).bfloat16().float()
    assert not torch.equal(twice, router.weight)


def test_a_router_with_nothing_to_choose_by_runs_the_lower_ids() -> None:
    layout = Layout(num_experts=5, num_experts_per_tok=2, num_shared_slices=0, slice_width=1)
    router = Router(torch.ones(5, HIDDEN), torch.ones(5), 2)
    design = LayerDesign(Partition(torch.arange(0), list(torch.arange(5).view(5, 1))), router)
    routing = FORMAT.reference_routing(
        torch.randn(4, HIDDEN), FORMAT.store_layer(design, layout, torch.ones(2, HIDDEN)), layout
    )
    assert routing.chosen.tolist() == [[0, 1]] * 4
    assert not routing.tied.any()


def test_a_stored_layer_serves_its_weights_as_they_are_read_back() -> None:
    g = generator()
    gate, up = (torch.randn(32, HIDDEN, generator=g) for _ in range(2))
    weights = GLUWeights(gate, up, torch.randn(HIDDEN, 32, generator=g), "silu")
    layout = Layout(num_experts=7, num_experts_per_tok=3, num_shared_slices=1, slice_width=4)
    partition = Partition(torch.arange(4), list(torch.arange(4, 32).view(7, 4)))
    x = torch.randn(100, HIDDEN, generator=g)
    stored = FORMAT.store_layer(LayerDesign(partition, random_router(7, 3)), layout, x)
    on_disk = FORMAT.layer_tensors(0, stored, weights, torch.bfloat16)
    place = "model.layers.0.mlp.{}.{}_proj.weight"
    y = torch.zeros(100, HIDDEN)
    routing = FORMAT.reference_routing(x, stored, layout)
    for expert, name in [(None, "shared_experts"), *((e, f"experts.{e}") for e in range(7))]:
        gate, up, down = (on_disk[place.format(name, part)].float() for part in ("gate", "up", "down"))
        out = (silu(x @ gate.T) * (x @ up.T)) @ down.T
        y += (
            out if expert is None else out * ((routing.chosen == expert) * routing.weights[:, [expert]]).sum(1)[:, None]
        )
    served, finer = (
        stored_ffn(weights, stored, layout, FORMAT, dtype, silu)(x) for dtype in (torch.bfloat16, torch.float32)
    )
    assert torch.allclose(served, y, atol=1e-3)
    assert not torch.allclose(finer, y, atol=1e-1), "rounding must matter in this test"
