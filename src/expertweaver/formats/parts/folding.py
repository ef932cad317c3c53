"""From a method's affine router to weights whose logits are nearly zero, which every kind of score turns into one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expertweaver.formats.base import Layout
from expertweaver.modeling.reference import choose_experts, chosen_mask
from expertweaver.modeling.values import LayerDesign, Partition, Router


def stock_router(design: LayerDesign) -> Router:
    """The affine router of a design that a stock format holds."""
    assert isinstance(design.router, Router), "planning refuses methods that go beyond stock"
    assert design.bias is None, "likewise"
    return design.router


def centred_weight(router: Router) -> Tensor:
    """The router's rows without their mean over experts (the order stays), rounded to bfloat16 as they are stored."""
    return router.weight if router.is_stored_form else (router.weight - router.weight.mean(dim=0)).bfloat16().float()


def scale_log2(weight: Tensor, probe_inputs: Tensor, max_abs_logit: float) -> int:
    """The power of two that keeps the largest |logit| of the probe tokens below the bound."""
    largest = float((probe_inputs @ weight.T).abs().max())
    return math.floor(math.log2(max_abs_logit / largest)) if largest > 0 else -10


@dataclass(frozen=True)
class StoredSlices:
    """Who owns which neurons in a format's uniform layout; the first `num_pinned` experts are shared slices."""

    shared_neurons: Tensor
    expert_neurons: Tensor
    num_pinned: int


def stored_slices(partition: Partition, layout: Layout) -> StoredSlices:
    """Store the layout's share as shared, and shared slices beyond it as the first experts."""
    in_shared = layout.num_shared_slices * layout.slice_width
    pinned = partition.shared_neurons[in_shared:].view(-1, layout.slice_width)
    experts = torch.cat([pinned, torch.stack(list(partition.expert_neurons))])
    return StoredSlices(partition.shared_neurons[:in_shared], experts, len(pinned))


def routing_kept(stored_choice: Tensor, router: Router, probe_inputs: Tensor, num_pinned: int = 0) -> float:
    """Share of probe tokens whose stored choice [P, K] is that of the unfolded router; pinned experts do not count."""
    num_experts = num_pinned + len(router.weight)
    wanted = choose_experts(probe_inputs, router) + num_pinned
    kept = chosen_mask(stored_choice, num_experts)[:, num_pinned:]
    same = (kept == chosen_mask(wanted, num_experts)[:, num_pinned:]).all(dim=1)
    return float(same.double().mean())
