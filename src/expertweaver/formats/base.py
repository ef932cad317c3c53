"""What a format is: a module whose FORMAT says whether a model fits it and how its configuration and tensors look.

The first line of the module's docstring is its description. `parts/` holds what several formats share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from expertweaver.dense.model import DenseModel
from expertweaver.dense.traits import NormPlacement, QKNorm
from expertweaver.errors import Problem
from expertweaver.modeling.reference import Activation, by_parts, membership, neuron_activations
from expertweaver.modeling.values import GLUWeights, LayerDesign, Need
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.registry import load_module


@dataclass(frozen=True)
class LayerSizes:
    """Neurons of the shared expert and of each routed one, [E], how many of these run, whether there is a bias."""

    shared: int
    experts: tuple[int, ...]
    num_experts_per_tok: int
    has_output_bias: bool = False


@dataclass(frozen=True)
class Layout:
    """Sizes of a format that is the same in every layer: E, K, the shared slices and the expert width I.

    Attributes:
        num_experts: E.
        num_experts_per_tok: K.
        num_shared_slices: Slices in the shared expert.
        slice_width: I.
        layers: What each layer became, once all are stored; formats whose layers may differ have it from here.
    """

    num_experts: int
    num_experts_per_tok: int
    num_shared_slices: int
    slice_width: int
    layers: tuple[LayerSizes, ...] = ()


ATTENTION_BIASES = frozenset(f"self_attn.{part}_proj.bias" for part in "qkvo")
QKV_BIASES = ATTENTION_BIASES - {"self_attn.o_proj.bias"}


@dataclass(frozen=True)
class Capabilities:
    """What the class of a format can say; a model or a method that needs more is refused before a weight is read.

    Attributes:
        engines: Whose code has the class, by our reading; only transformers' is run by every conversion.
        not_served: What a model may have that some of these engines leave out or refuse, and which.
        selection_bias: Whether its router can hold a bias that takes part in the choice of experts.
        layer_adaptive_share: Whether layers may share unlike, by experts that are always chosen.
        shared_expert: Whether it has one; advised: without one it is known to run in transformers only.
        attention_biases: The sets of attention biases it can have, besides none.
        qk_norm: Whether it has norms on queries and keys.
        qk_norm_width: How wide these are.
        norms: Where its norms of attention and FFN are.
        sliding_window: Whether all layers can have one.
        partial_rotary: Whether rotary positions can be on a part of each head.
        scales: Whether it has the constants of `dense.traits.Scales`.
        activations: Of the gate.
        needs: What it holds of designs that go beyond the common.
        source_layout: Whether what is not FFN keeps the source's own tensors, fused ones included.
        side_files: Files that are copied into every model folder.
    """

    engines: tuple[str, ...]
    not_served: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    selection_bias: bool = False
    layer_adaptive_share: bool = False
    shared_expert: Literal["required", "advised", "optional", "none"] = "none"
    attention_biases: tuple[frozenset[str], ...] = ()
    qk_norm: Literal["required", "optional", "none"] = "none"
    qk_norm_width: QKNorm = "head"
    norms: NormPlacement = "before"
    sliding_window: bool = False
    partial_rotary: bool = False
    scales: bool = False
    activations: tuple[str, ...] = ("silu", "swish")
    needs: frozenset[Need] = frozenset()
    source_layout: bool = False
    side_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class DownScales:
    """What down_proj of the shared and of the routed experts is multiplied by on disk; the routing takes it back."""

    shared: float = 1.0
    routed: float = 1.0


@dataclass(frozen=True)
class StoredLayer:
    """One layer as it is written: who owns which neurons, and the router in the format's own arithmetic.

    Attributes:
        shared_neurons: Ids in the shared expert, [S].
        expert_neurons: Ids in each routed expert, [E, I], or E vectors [I_e] where widths differ.
        router_weight: [E, H] float32, exactly as stored.
        selection_bias: [E] float32.
        scale_log2: The power of two that the router was multiplied by; undo it to train the router.
        max_abs_logit: Largest |router logit| on the probe tokens, after scaling.
        routing_kept: Share of probe tokens whose chosen experts are those of the unfolded router.
        down: The repaired down_proj [H, F] that is served instead of the source's; None for the source's.
        output_bias: Added to the FFN's output, [H]; None for none.
        num_experts_per_tok: K of this layer; None for the layout's.
        scales: What down_proj is multiplied by on disk.
    """

    shared_neurons: Tensor
    expert_neurons: Tensor | tuple[Tensor, ...]
    router_weight: Tensor
    selection_bias: Tensor
    scale_log2: int
    max_abs_logit: float
    routing_kept: float
    down: Tensor | None = None
    output_bias: Tensor | None = None
    num_experts_per_tok: int | None = None
    scales: DownScales = DownScales()

    def sizes(self, layout: Layout) -> LayerSizes:
        """How many neurons are where."""
        chosen = layout.num_experts_per_tok if self.num_experts_per_tok is None else self.num_experts_per_tok
        experts = tuple(len(neurons) for neurons in self.expert_neurons)
        return LayerSizes(len(self.shared_neurons), experts, chosen, self.output_bias is not None)

    def neuron_weights(self, expert_weights: Tensor, owners: Tensor) -> Tensor:
        """What each neuron's output is multiplied by, [T, F], where experts are weighed so, [T, E].

        A shared neuron has weight one, one in several experts the sum of their weights, one in none zero. `owners` is
        the `membership` of the experts, [E, F].
        """
        weights = expert_weights @ owners
        weights[:, self.shared_neurons] += 1
        return weights

    def output(self, neuron_outputs: Tensor, down: Tensor, dtype: torch.dtype) -> Tensor:
        """The FFN's output [T, H] from weighed neuron activations [T, F]; the bias is as a file of this type has it."""
        output = neuron_outputs @ down.T
        return output if self.output_bias is None else output + self.output_bias.to(dtype).to(output.dtype)

    def on(self, device: torch.device) -> StoredLayer:
        """The same layer on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        there = replace(self, **tensors)
        if isinstance(self.expert_neurons, Tensor):
            return there
        return replace(there, expert_neurons=tuple(neurons.to(device) for neurons in self.expert_neurons))

    def served(self, weights: GLUWeights) -> GLUWeights:
        """The FFN as it is served: the source's gate and up, and its down_proj unless that was repaired."""
        return weights if self.down is None else replace(weights, down=self.down)

    def written(self, weights: GLUWeights, dtype: torch.dtype) -> GLUWeights:
        """The FFN as it is written in this type, its down_proj multiplied by the scales."""
        served = self.served(weights)
        return replace(served, down=self._scaled(served.down)).to(dtype)

    def read_back(self, weights: GLUWeights, dtype: torch.dtype) -> GLUWeights:
        """The FFN that a file of this type serves, in float32, the scales taken back."""
        written = self.written(weights, dtype).to(torch.float32)
        return replace(written, down=self._unscaled(written.down))

    def _scaled(self, down: Tensor) -> Tensor:
        return down if self.scales == DownScales() else down.float() * self._neuron_scales()

    def _unscaled(self, down: Tensor) -> Tensor:
        return down if self.scales == DownScales() else down / self._neuron_scales()

    def _neuron_scales(self) -> Tensor:
        """The scale of every neuron, [F] float32."""
        num_neurons = len(self.shared_neurons) + sum(len(neurons) for neurons in self.expert_neurons)
        scales = torch.full((num_neurons,), self.scales.routed, device=self.shared_neurons.device)
        scales[self.shared_neurons] = self.scales.shared
        return scales


@dataclass(frozen=True)
class ServedRouting:
    """What a stock router decides for T tokens.

    Attributes:
        chosen: Expert ids [T, K].
        weights: Weight of every expert [T, E], with the scale of its down_proj counted in.
        tied: Whether the choice hangs on two equal scores [T].
    """

    chosen: Tensor
    weights: Tensor
    tied: Tensor


class Format(Protocol):
    """The contract of a format: what a module in this room calls FORMAT."""

    @property
    def capabilities(self) -> Capabilities:
        """What the class can say."""
        ...

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

    def stock_ffn(self, layer: torch.nn.Module) -> torch.nn.Module:
        """The FFN of a stock decoder layer, as one module."""
        ...

    def set_all_experts_on(self, mlp: torch.nn.Module) -> None:
        """Make what `stock_ffn` gave run every expert with weight one."""
        ...

    def load_layer(self, module: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
        """Load a stock decoder layer from its tensors on disk, in the stock class's own layout."""
        ...

    def reference_routing(self, x: Tensor, stored: StoredLayer, layout: Layout) -> ServedRouting:
        """What the served model's router does with inputs [T, H]."""
        ...


def stored_ffn(
    weights: GLUWeights, stored: StoredLayer, layout: Layout, form: Format, dtype: torch.dtype, act: Activation
) -> Callable[[Tensor], Tensor]:
    """What a stored layer serves, a function of inputs [T, H], with the router in the format's arithmetic.

    Args:
        weights: The dense FFN.
        stored: The layer.
        layout: The uniform sizes.
        form: The format.
        dtype: Type of the weights on disk: they are used as they are read back.
        act: The gate's activation function.
    """
    served = stored.read_back(weights, dtype)
    owners = membership(stored.expert_neurons, weights.num_neurons, served.down.device)

    def weighed(x: Tensor, expert_weights: Tensor) -> Tensor:
        scale = stored.neuron_weights(expert_weights, owners)
        return stored.output(neuron_activations(x, served, act)[1] * scale, served.down, dtype)

    def ffn(x: Tensor) -> Tensor:
        routing = form.reference_routing(x, stored, layout)
        chosen = torch.zeros_like(routing.weights)
        chosen.scatter_(1, routing.chosen, routing.weights.gather(1, routing.chosen))
        return by_parts(weighed, x, chosen)

    return ffn


def all_experts_ffn(x: Tensor, weights: GLUWeights, stored: StoredLayer, dtype: torch.dtype, act: Activation) -> Tensor:
    """What a stored layer puts out with every expert on, [..., H]: the dense FFN, where its neurons are partitioned.

    Args:
        x: FFN inputs [..., H].
        weights: The FFN as it is served.
        stored: The layer.
        dtype: Type of the weights on disk.
        act: The gate's activation function.
    """
    owners = membership(stored.expert_neurons, weights.num_neurons, weights.down.device)
    times = stored.neuron_weights(owners.new_ones(1, len(owners)), owners)
    return stored.output(neuron_activations(x, weights, act)[1] * times, weights.down, dtype)


def alike(values: Sequence[Any]) -> Any:
    """The one value where all are the same, else all of them as a list."""
    return values[0] if values and all(value == values[0] for value in values) else list(values)


def load_format(name: str) -> Format:
    """A registered format by its name."""
    return cast("Format", load_module("formats", name).FORMAT)


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
