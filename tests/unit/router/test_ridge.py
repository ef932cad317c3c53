from __future__ import annotations

import pytest
import torch

from expertweaver.errors import PartitionError
from expertweaver.modeling.reference import choose_experts
from expertweaver.modeling.values import Router
from expertweaver.router.ridge import RidgeRegressor, expert_output_norms


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def agreement(x: torch.Tensor, router: Router, wanted: torch.Tensor) -> float:
    same = choose_experts(x, router).sort(dim=1).values == wanted.sort(dim=1).values
    return float(same.all(dim=1).double().mean())


def test_expert_output_norms_are_the_norms_of_their_outputs() -> None:
    g = generator()
    act, down = torch.randn(20, 6, generator=g), torch.randn(4, 6, generator=g)
    experts = [torch.tensor([0, 3]), torch.tensor([1, 2, 4, 5])]
    found = expert_output_norms(act.T, down, experts)
    expected = torch.stack([(act[:, e] @ down[:, e].T).norm(dim=1) for e in experts], dim=1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_an_affine_target_is_ranked_as_it_is() -> None:
    g = generator()
    x = torch.randn(4000, 8, generator=g) + 3
    target = x @ torch.randn(5, 8, generator=g).T + 4 * torch.randn(5, generator=g)
    router = RidgeRegressor(x, ridge=1e-8).fit(target, 2)
    wanted = target.topk(2, dim=1).indices
    assert agreement(x, router, wanted) > 0.97  # the rest are near-ties moved by rounding to bfloat16
    without_bias = Router(router.weight, torch.zeros(5), 2)
    assert agreement(x, without_bias, wanted) < 0.9, "the bias must matter in this test"


def test_the_weights_are_centred_and_already_rounded_as_stored() -> None:
    g = generator()
    x, target = torch.randn(500, 8, generator=g), torch.rand(500, 6, generator=g)
    router = RidgeRegressor(x, ridge=1e-3).fit(target, 2)
    assert torch.equal(router.weight, router.weight.bfloat16().float())
    assert router.weight.mean(dim=0).abs().max() < 0.01 * router.weight.abs().max()
    assert router.bias.mean().abs() < 1e-6


def test_a_large_ridge_leaves_only_the_means() -> None:
    g = generator()
    x, target = torch.randn(500, 8, generator=g), torch.rand(500, 3, generator=g) + torch.tensor([0.0, 5.0, 1.0])
    router = RidgeRegressor(x, ridge=1e9).fit(target, 1)
    assert choose_experts(x, router).unique().tolist() == [1]


def test_a_ridge_that_cannot_be_factored_is_refused_by_name() -> None:
    x = torch.randn(4, 8, generator=generator())  # fewer tokens than dimensions, and next to no ridge
    with pytest.raises(PartitionError, match=r"router ridge: expected .* positive definite, found 1e-30\. Raise it"):
        RidgeRegressor(x, ridge=1e-30)


def test_directions_are_correlated_as_the_predictable_parts_are() -> None:
    g = generator()
    x = torch.randn(6000, 5, generator=g) * torch.tensor([0.1, 1.0, 10.0, 3.0, 0.5])
    mixing = torch.randn(5, 4, generator=g)
    predictable = (x @ mixing).T
    (found,) = RidgeRegressor(x, ridge=1e-9).directions([predictable + 2 * torch.randn(4, 6000, generator=g)])
    cosine = torch.nn.functional.normalize(found, dim=1) @ torch.nn.functional.normalize(found, dim=1).T
    assert torch.allclose(cosine, torch.corrcoef(predictable), atol=0.05)
    assert torch.allclose(found.norm(dim=1), predictable.std(dim=1), rtol=0.05)


def test_without_a_bias_the_weights_stand_in_for_it() -> None:
    """Inputs whose mean is not zero can express a bias; a router cut off its bias is worse than one fitted without."""
    g = generator()
    x = torch.randn(4000, 8, generator=g) + 3
    target = x @ torch.randn(5, 8, generator=g).T + 4 * torch.randn(5, generator=g)
    wanted = target.topk(2, dim=1).indices
    fitted = RidgeRegressor(x, ridge=1e-8).fit(target, 2)
    plain = RidgeRegressor(x, ridge=1e-8, with_bias=False).fit(target, 2)
    assert not plain.bias.any()
    cut = Router(fitted.weight, torch.zeros(5), 2)
    assert agreement(x, cut, wanted) + 0.05 < agreement(x, plain, wanted) < agreement(x, fitted, wanted)
