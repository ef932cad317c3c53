"""How expert use departs from an even spread: the numbers behind the heat maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from expertweaver.evaluation.results import RoutingUsage

ALWAYS = 1 - 1e-9
_LIMITS = (1, 2, 3)
_COVERED = 0.98


@dataclass(frozen=True)
class UsagePanel:
    """One domain's heat map; rows are layers, columns places in the layer's arrangement.

    `expert_ids[layer][place]` says which expert stands there, `share` how many of the tokens it served, and
    `ratio_log2` the binary logarithm of share over the even spread, cut off at +-limit; it is None where the expert
    is always on or the layer has no such place.
    """

    domain: str
    expert_ids: tuple[tuple[int, ...], ...]
    share: tuple[tuple[float, ...], ...]
    ratio_log2: tuple[tuple[float | None, ...], ...]
    even_share: tuple[float | None, ...]
    limit: int

    @property
    def typical_factor(self) -> float | None:
        """By what factor an expert's use differs from the even spread on average (geometric mean)."""
        values = [abs(value) for row in self.ratio_log2 for value in row if value is not None]
        return 2 ** fmean(values) if values else None


def usage_panels(routing: RoutingUsage) -> tuple[UsagePanel, ...]:
    """Compare every expert's share with the even spread of its layer, per domain.

    An expert that serves every token of every domain is a shared slice in a router's clothing (the format stores a
    layer's additional shared slices so). It is set apart, and the even spread counts the others only:
    (num_experts_per_tok - always on) / (num_experts - always on). Experts stand from most to least used over all
    domains, in the same order in every panel.
    """
    if not routing.share:
        return ()
    num_layers = min(len(rows) for rows in routing.share.values())
    orders = [_arrangement(routing, layer) for layer in range(num_layers)]
    always = [_always_on(routing, layer) for layer in range(num_layers)]
    even = [_even_share(routing.chosen(i), len(orders[i]), len(always[i])) for i in range(num_layers)]
    logs = {
        domain: [
            [_log_ratio(rows[i][e], None if e in always[i] else even[i]) for e in orders[i]] for i in range(num_layers)
        ]
        for domain, rows in routing.share.items()
    }
    limit = _limit([abs(v) for rows in logs.values() for row in rows for v in row if v is not None])
    return tuple(
        UsagePanel(
            domain=domain,
            expert_ids=tuple(tuple(order) for order in orders),
            share=tuple(tuple(rows[i][e] for e in orders[i]) for i in range(num_layers)),
            ratio_log2=tuple(tuple(_cut(value, limit) for value in row) for row in logs[domain]),
            even_share=tuple(even),
            limit=limit,
        )
        for domain, rows in routing.share.items()
    )


def _layer_shares(routing: RoutingUsage, layer: int) -> list[tuple[float, ...]]:
    """Shares of one layer: per expert, one value per domain."""
    return list(zip(*(rows[layer] for rows in routing.share.values()), strict=True))


def _arrangement(routing: RoutingUsage, layer: int) -> list[int]:
    means = [fmean(shares) for shares in _layer_shares(routing, layer)]
    return sorted(range(len(means)), key=lambda expert: (-means[expert], expert))


def _always_on(routing: RoutingUsage, layer: int) -> frozenset[int]:
    return frozenset(e for e, shares in enumerate(_layer_shares(routing, layer)) if min(shares) >= ALWAYS)


def _even_share(num_experts_per_tok: int, num_experts: int, num_always: int) -> float | None:
    left, places = num_experts - num_always, num_experts_per_tok - num_always
    return places / left if left > 0 and places > 0 else None


def _log_ratio(share: float, even: float | None) -> float | None:
    if even is None or not math.isfinite(share):
        return None
    return math.log2(share / even) if share > 0 else -math.inf


def _cut(value: float | None, limit: int) -> float | None:
    return None if value is None else max(-float(limit), min(float(limit), value))


def _limit(values: list[float]) -> int:
    """The smallest end of the colour scale that nearly all values fit in."""
    for limit in _LIMITS[:-1]:
        if sum(value <= limit for value in values) >= _COVERED * len(values):
            return limit
    return _LIMITS[-1]
