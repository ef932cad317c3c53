"""What a format is: a module that says whether a model fits it and how its configuration and tensors look.

The first line of the module's docstring is its description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from expertweaver.dense.model import DenseModel
from expertweaver.errors import Problem
from expertweaver.modeling.reference import Activation, neuron_activations
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.registry import load_module


@dataclass(frozen=True)
class Layout:
    """Sizes of a format that is the same in every layer: E, K, the shared slices and the expert width I."""

    num_experts: int
    num_experts_per_tok: int
    num_shared_slices: int
    slice_width: int


@dataclass(frozen=True)
class StoredLayer:
    """One layer as it is written: who owns which neurons, and the router in the format's own arithmetic.

    Attributes:
        shared_neurons: Ids in the shared expert, [S].
        expert_neurons: Ids in each routed expert, [E, I].
        router_weight: [E, H] float32, exactly as stored.
        selection_bias: [E] float32.
        scale_log2: The power of two that the router was multiplied by; undo it to train the router.
        max_abs_logit: Largest |router logit| on the probe tokens, after scaling.
        routing_kept: Share of probe tokens whose chosen experts are those of the unfolded router.
        down: The repaired down_proj [H, F] that was written instead of the source's; None for the source's.
    """

    shared_neurons: Tensor
    expert_neurons: Tensor
    router_weight: Tensor
    selection_bias: Tensor
    scale_log2: int
    max_abs_logit: float
    routing_kept: float
    down: Tensor | None = None

    def on(self, device: torch.device) -> StoredLayer:
        """The same layer on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def served(self, weights: GLUWeights) -> GLUWeights:
        """The FFN as it is served: the source's gate and up, and its down_proj unless that was repaired."""
        return weights if self.down is None else replace(weights, down=self.down)


@dataclass(frozen=True)
class ServedRouting:
    """What a stock router decides for T tokens.

    Attributes:
        chosen: Expert ids [T, K].
        weights: Weight of every expert [T, E].
        tied: Whether the choice hangs on two equal scores [T].
    """

    chosen: Tensor
    weights: Tensor
    tied: Tensor


class Format(Protocol):
    """The contract of a format module."""

    def check(self, dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
        """Say what of this model the format cannot hold; empty if it fits."""
        ...

    def config(self, dense: DenseModel, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
        """The config.json of the converted model."""
        ...

    def store_layer(self, design: LayerDesign, layout: Layout, probe_inputs: Tensor) -> StoredLayer:
        """Bring one layer's design into the format's uniform form."""
        ...

    def layer_tensors(
        self, layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """The FFN tensors of one layer under their names on disk."""
        ...

    def set_all_experts_on(self, mlp: torch.nn.Module) -> None:
        """Make a stock FFN module run every expert with weight one."""
        ...

    def load_layer(self, module: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
        """Load a stock decoder layer from its tensors on disk, in the stock class's own layout."""
        ...

    def reference_routing(self, x: Tensor, stored: StoredLayer, layout: Layout) -> ServedRouting:
        """What the served model's router does with inputs [T, H]."""
        ...


def stored_ffn(
    x: Tensor,
    weights: GLUWeights,
    stored: StoredLayer,
    layout: Layout,
    form: Format,
    dtype: torch.dtype,
    act: Activation,
) -> Tensor:
    """What a stored layer serves, [T, H] to [T, H], with the router in the format's arithmetic.

    Args:
        x: FFN inputs [T, H].
        weights: The dense FFN.
        stored: The layer.
        layout: The uniform sizes.
        form: The format.
        dtype: Type of the weights on disk: they are used as they are read back.
        act: The gate's activation function.
    """
    routing = form.reference_routing(x, stored, layout)
    weight = torch.zeros_like(routing.weights).scatter_(1, routing.chosen, routing.weights.gather(1, routing.chosen))
    served = stored.served(weights).to(dtype).to(torch.float32)
    scale = torch.ones(len(x), weights.num_neurons, device=x.device)
    scale[:, stored.expert_neurons.flatten()] = weight.repeat_interleave(layout.slice_width, dim=1)
    return (neuron_activations(x, served, act)[1] * scale) @ served.down.T


def load_format(name: str) -> Format:
    """A registered format by its name."""
    return cast("Format", load_module("formats", name))


def uniform_layout(allocations: Sequence[Allocation], budget: SliceBudget) -> Layout:
    """The smallest layout that holds every layer: the fewest shared slices of any layer are stored as shared.

    A layer that shares more keeps the extra slices as routed experts that are always chosen.
    """
    num_shared = min(allocation.num_shared for allocation in allocations)
    return Layout(
        num_experts=budget.num_slices - num_shared,
        num_experts_per_tok=budget.active_slices - num_shared,
        num_shared_slices=num_shared,
        slice_width=budget.slice_width,
    )
