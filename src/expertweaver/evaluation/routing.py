"""Which routed experts a stock model chooses, seen by hooks on its own router modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expertweaver.errors import ArchitectureError, Problem
from expertweaver.evaluation.params import RoutedExperts, routed_experts
from expertweaver.evaluation.results import ALL, RoutingUsage

ROUTER_CLASS = re.compile(r"Top[kK]Router$")


class RoutingTally:
    """Counts how often each routed expert is chosen while `domain` is set; rows are layers in model order."""

    def __init__(self, experts: RoutedExperts, num_layers: int) -> None:
        self.experts = experts
        self.num_layers = num_layers
        self.domain: str | None = None
        self.counts: dict[str, list[Tensor]] = {}

    def add(self, layer: int, expert_ids: Tensor) -> None:
        """Count one forward of one router; `expert_ids` is int [tokens, K]."""
        if self.domain is None:
            return
        sizes = [self.experts.of_router(index)[0] for index in range(self.num_layers)]
        counts = self.counts.setdefault(self.domain, [torch.zeros(size, dtype=torch.int64) for size in sizes])
        counts[layer] += torch.bincount(expert_ids.flatten().cpu(), minlength=sizes[layer])

    def usage(self) -> RoutingUsage:
        """Shares per domain, and over all domains as 'all'; every token that was fed counts, predicted or not."""
        everything = [torch.stack(layer).sum(dim=0) for layer in zip(*self.counts.values(), strict=True)]
        chosen = self.experts.num_experts_per_tok
        shares = {name: self._share(counts) for name, counts in {**self.counts, ALL: everything}.items()}
        return RoutingUsage(chosen if isinstance(chosen, int) else list(chosen), shares)

    def _share(self, counts: list[Tensor]) -> list[list[float]]:
        chosen = [self.experts.of_router(index)[1] for index in range(self.num_layers)]
        return [(layer / (layer.sum().double() / k)).tolist() for layer, k in zip(counts, chosen, strict=True)]


@contextmanager
def tally_routing(model: PreTrainedModel) -> Iterator[RoutingTally | None]:
    """Count the choices of a model for the time of the block; None for a dense model.

    Raises:
        ArchitectureError: A sparse model of an unknown type, or one whose routers are not found.
    """
    experts = routed_experts(model.config)
    if experts is None:
        yield None
        return
    tally = RoutingTally(experts, len(find_routers(model)))
    with watch_routers(model, tally.add):
        yield tally


@contextmanager
def watch_routers(model: PreTrainedModel, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Give every forward of every router to `see` for the time of the block: its layer, its expert ids [tokens, K].

    Raises:
        ArchitectureError: A sparse model of an unknown type, or one whose routers are not found.
    """
    experts = routed_experts(model.config)
    routers = [] if experts is None else find_routers(model)

    def hook(layer: int, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        assert experts is not None
        see(layer, _expert_ids(module, output, experts.of_router(layer)[1]))

    hooks = [router.register_forward_hook(partial(hook, layer)) for layer, router in enumerate(routers)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def find_routers(model: PreTrainedModel) -> list[nn.Module]:
    """The router modules of a sparse model, in layer order."""
    routers = [module for module in model.modules() if _is_running_router(module)]
    if not routers:
        where, fix = f"model_type '{model.config.model_type}'", "Report this model: its router class has another name."
        raise ArchitectureError(Problem(where, "router modules called ...TopkRouter", "none", fix))
    return routers


def _is_running_router(module: nn.Module) -> bool:
    """Whether a module chooses experts; our own class leaves out routers that would choose none."""
    return bool(ROUTER_CLASS.search(type(module).__name__)) and getattr(module, "top_k", None) != 0


def _expert_ids(router: nn.Module, output: Any, num_experts_per_tok: int) -> Tensor:
    ids = output[2] if isinstance(output, tuple) and len(output) == 3 else None
    if isinstance(ids, Tensor) and not ids.is_floating_point() and ids.shape[-1] == num_experts_per_tok:
        return ids
    expected = f"(router_logits, weights, expert_ids [tokens, {num_experts_per_tok}])"
    found = f"expert_ids of shape {list(ids.shape)}" if isinstance(ids, Tensor) else type(output).__name__
    fix = "Report this model: its router returns something else than its type did when this was written."
    raise ArchitectureError(Problem(f"router {type(router).__name__}", expected, found, fix))
