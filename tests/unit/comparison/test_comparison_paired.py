from __future__ import annotations

import pytest
from support.comparisons import scores

from expertweaver.comparison.paired import mean_over_seeds, paired_difference
from expertweaver.evaluation.scoring import Score
from expertweaver.evaluation.summary import bootstrap_interval


def interval_alone(losses: list[float]) -> tuple[float, float]:
    found = bootstrap_interval([10 * loss for loss in losses], [10] * len(losses))
    assert found is not None
    return found


def test_pairing_sees_what_two_intervals_hide() -> None:
    """Documents differ by nats, the methods by a tenth on each of them."""
    reference = [1.0 + 0.2 * place for place in range(20)]
    worse = [loss + 0.1 + 0.01 * (-1) ** place for place, loss in enumerate(reference)]
    low, high = interval_alone(worse), interval_alone(reference)
    assert low[0] < high[1], "the unpaired intervals overlap"
    found = paired_difference([scores(worse)], [scores(reference)], range(20))
    assert found.nats_per_token == pytest.approx(0.1)
    assert found.interval is not None
    assert 0.09 < found.interval[0] < 0.1 < found.interval[1] < 0.11


def test_a_difference_that_is_the_same_everywhere_has_no_width() -> None:
    reference = [1.0 + 0.3 * place for place in range(12)]
    found = paired_difference([scores([x + 0.25 for x in reference])], [scores(reference)], range(12))
    assert found.interval == pytest.approx((0.25, 0.25))


def test_long_documents_weigh_more() -> None:
    first = [Score(10, 30.0, None, None), Score(30, 30.0, None, None)]
    second = [Score(10, 20.0, None, None), Score(30, 40.0, None, None)]
    assert paired_difference([first], [second], [0, 1]).nats_per_token == pytest.approx((10 - 10) / 40)
    assert paired_difference([first], [second], [0]).nats_per_token == pytest.approx(1.0)


def test_seeds_are_averaged_before_documents_are_drawn() -> None:
    """Two seeds that disagree by the same on every document leave no uncertainty over documents."""
    runs = [scores([3.0] * 10), scores([1.0] * 10)]
    assert mean_over_seeds(runs) == [20.0] * 10
    found = paired_difference(runs, [scores([1.5] * 10)], range(10))
    assert found.nats_per_token == pytest.approx(0.5)
    assert found.interval == pytest.approx((0.5, 0.5))


def test_nine_documents_have_no_interval() -> None:
    few = paired_difference([scores([2.0] * 9)], [scores([1.0] * 9)], range(9))
    assert (few.nats_per_token, few.interval) == (pytest.approx(1.0), None)
    assert paired_difference([scores([2.0] * 10)], [scores([1.0] * 10)], range(10)).interval is not None
