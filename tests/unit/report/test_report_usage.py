from __future__ import annotations

import math

import pytest

from expertweaver.evaluation.results import RoutingUsage
from expertweaver.report import captions
from expertweaver.report.usage import usage_panels


def test_even_spread_leaves_out_experts_that_are_always_on() -> None:
    routing = RoutingUsage(3, {"a": [[0.5, 1.0, 1.0, 0.25, 0.25]], "b": [[0.25, 1.0, 1.0, 0.5, 0.25]]})
    first, second = usage_panels(routing)
    assert first.even_share == (pytest.approx(1 / 3),)
    assert first.expert_ids == ((1, 2, 0, 3, 4),) == second.expert_ids
    assert first.share[0][2:] == (0.5, 0.25, 0.25)
    assert first.ratio_log2[0][:2] == (None, None)
    assert first.ratio_log2[0][2] == pytest.approx(math.log2(1.5))
    assert second.ratio_log2[0][3] == pytest.approx(math.log2(1.5))


def test_an_expert_that_is_always_on_in_one_domain_only_is_routed() -> None:
    (panel, _) = usage_panels(RoutingUsage(1, {"a": [[1.0, 0.0]], "b": [[0.0, 1.0]]}))
    assert panel.even_share == (0.5,)
    assert panel.ratio_log2 == ((1.0, -3.0),)
    assert panel.limit == 3


def test_an_even_router_is_a_factor_of_one() -> None:
    routing = RoutingUsage(2, {"a": [[0.5] * 4, [0.5] * 4]})
    (panel,) = usage_panels(routing)
    assert panel.typical_factor == 1
    assert panel.limit == 1
    assert "would serve 50.0\u00a0% of the tokens" in captions.usage(routing, (panel,))


def test_rows_may_differ_in_length_and_routing_may_be_trivial() -> None:
    (panel,) = usage_panels(RoutingUsage(2, {"a": [[0.5] * 4, [1.0, 1.0]]}))
    assert panel.even_share == (0.5, None)
    assert panel.ratio_log2[1] == (None, None)
    assert usage_panels(RoutingUsage(2, {})) == ()
