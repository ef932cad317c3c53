from __future__ import annotations

import pytest
import torch

from expertweaver.repair import least_squares
from expertweaver.repair.least_squares import RIDGES, Repair, repair_down


def repair(
    active: torch.Tensor, target: torch.Tensor, down: torch.Tensor, held_back: torch.Tensor, **options: object
) -> Repair:
    """Repair from two batches of fitting tokens."""
    fitting = zip(active[~held_back].chunk(2), target[~held_back].chunk(2), strict=True)
    judging = [(active[held_back], target[held_back])]
    options = {"num_fitting": int((~held_back).sum())} | options
    return repair_down(fitting, lambda: judging, down, **options)  # type: ignore[arg-type]


def problem(tokens: int, *, neurons: int = 12, hidden: int = 5, seed: int = 0):
    """Correlated neurons of which the last four are skipped."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, 6, generator=generator)
    act = causes @ torch.randn(6, neurons, generator=generator)
    down = torch.randn(hidden, neurons, generator=generator)
    active = act.clone()
    active[:, 8:] = 0
    held_back = torch.arange(tokens) % 4 == 3
    return active, act @ down.T, down, held_back


def test_the_running_neurons_absorb_what_the_skipped_ones_added() -> None:
    active, target, down, held_back = problem(400)
    found = repair(active, target, down, held_back, ridges=(1e-6,))
    assert found.error_before > 0.1
    assert found.error_after < 1e-6  # six causes, eight running neurons: the rest is a combination of them
    assert torch.allclose(active @ found.down.T, target, atol=1e-2)


def test_it_is_the_ridge_solution() -> None:
    active, target, down, held_back = problem(300, seed=1)
    found = repair(active, target, down, held_back, ridges=(0.05,))
    a = active[~held_back].double()
    residual = target[~held_back].double() - a @ down.double().T
    gram = a.T @ a
    expected = torch.linalg.solve(gram + 0.05 * gram.diagonal().mean() * torch.eye(12), a.T @ residual)
    assert torch.allclose(found.down - down, expected.T.float(), atol=1e-4)


def test_neurons_that_never_run_keep_their_weights() -> None:
    active, target, down, held_back = problem(200)
    found = repair(active, target, down, held_back)
    assert found.ridge is not None
    assert torch.equal(found.down[:, 8:], down[:, 8:])
    assert not torch.equal(found.down[:, :8], down[:, :8])


def test_nothing_changes_where_no_ridge_helps_on_held_back_tokens() -> None:
    active, target, down, held_back = problem(200)
    target = torch.where(held_back[:, None], active @ down.T, target)  # judged tokens are perfect already
    found = repair(active, target, down, held_back)
    assert found.ridge is None
    assert found.down is down
    assert found.error_after == found.error_before == pytest.approx(0, abs=1e-12)


def test_the_ridge_is_chosen_by_the_held_back_tokens() -> None:
    generator = torch.Generator().manual_seed(3)
    active, target, down, held_back = problem(48, seed=3)
    noisy = target + 5 * torch.randn(target.shape, generator=generator)
    found = repair(active, noisy, down, held_back, ridges=(1e-8, 1.0))
    errors = {r: repair(active, noisy, down, held_back, ridges=(r,)).error_after for r in (1e-8, 1.0)}
    assert found.error_after == min(found.error_before, *errors.values())


def test_fewer_tokens_than_neurons_stay_finite() -> None:
    active, target, down, held_back = problem(8)
    found = repair(active, target, down, held_back)
    assert torch.isfinite(found.down).all()
    assert found.error_after <= found.error_before


def test_a_ridge_that_cannot_be_factored_is_passed_over() -> None:
    active, target, down, held_back = problem(200)
    found = repair(active, target, down, held_back, ridges=(-1.0, 1e-3))
    assert found.ridge == 1e-3
    assert found.singular == (-1.0,)
    nothing = repair(active, target, down, held_back, ridges=(-1.0,))
    assert nothing.ridge is None
    assert nothing.singular == (-1.0,)


def test_the_gram_matrix_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    active, target, down, held_back = problem(300)
    whole = repair(active, target, down, held_back, ridges=(0.1,))
    monkeypatch.setattr(least_squares, "BLOCK", 5)
    in_blocks = repair(active, target, down, held_back, ridges=(0.1,))
    assert torch.allclose(in_blocks.down, whole.down, atol=1e-4)
    assert not torch.equal(whole.down, down)


@pytest.mark.parametrize(("noise", "tokens"), [(0.0, 400), (1.0, 400), (5.0, 60), (10.0, 60), (20.0, 60), (30.0, 40)])
def test_the_walk_finds_the_best_of_all_ridges(noise: float, tokens: int) -> None:
    active, target, down, held_back = problem(tokens, seed=3)
    noisy = target + noise * torch.randn(target.shape, generator=torch.Generator().manual_seed(3))
    found = repair(active, noisy, down, held_back)
    errors = {ridge: repair(active, noisy, down, held_back, ridges=(ridge,)).error_after for ridge in RIDGES}
    assert found.error_after == min(errors.values())
    assert (found.ridge is None) == (noise == 30)


def test_the_walk_solves_for_few_ridges(monkeypatch: pytest.MonkeyPatch) -> None:
    active, target, down, held_back = problem(400, seed=3)
    noisy = target + torch.randn(target.shape, generator=torch.Generator().manual_seed(3))
    solved: list[float] = []
    solve = least_squares._NeuronSystem.solution

    def counted(system: least_squares._NeuronSystem, ridge: float) -> torch.Tensor | None:
        solved.append(ridge)
        return solve(system, ridge)

    monkeypatch.setattr(least_squares._NeuronSystem, "solution", counted)
    found = repair(active, noisy, down, held_back)
    assert found.ridge is not None
    assert len(solved) == len(set(solved)) < len(RIDGES)
    around = RIDGES.index(found.ridge)
    assert set(RIDGES[max(0, around - 1) : around + 2]) <= set(solved)


@pytest.mark.parametrize("ridge", [1e-2, 0.1, 1.0])
def test_both_systems_have_the_same_solution(ridge: float) -> None:
    active, target, down, held_back = problem(13, seed=2)
    by_token, by_neuron = (
        repair(active, target, down, held_back, ridges=(ridge,), num_fitting=num_fitting) for num_fitting in (9, 12)
    )
    assert by_token.ridge == by_neuron.ridge == ridge
    assert torch.allclose(by_token.down, by_neuron.down, atol=1e-4)
    assert (by_token.down - down).abs().max() > 1e-2
    assert torch.equal(by_token.down[:, 8:], down[:, 8:])
