"""The values that the maths passes around: a GLU's weights, a partition of its neurons, a router, a design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class GLUWeights:
    """The three matrices of a gated FFN as Hugging Face stores them: gate and up [F, H], down [H, F].

    Neuron j is row j of gate, row j of up and column j of down; `hidden_act` names the gate's activation function.
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    hidden_act: str = "silu"

    @property
    def num_neurons(self) -> int:
        """F, or the width of a slice."""
        return self.gate.shape[0]

    def slice(self, neurons: Tensor) -> GLUWeights:
        """The GLU made of some neurons only, in the order given."""
        return GLUWeights(self.gate[neurons], self.up[neurons], self.down[:, neurons], self.hidden_act)

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> GLUWeights:
        """The same GLU in another type, and on another device if one is given."""
        gate, up, down = (part.to(device=device, dtype=dtype) for part in (self.gate, self.up, self.down))
        return GLUWeights(gate, up, down, self.hidden_act)


@dataclass(frozen=True)
class Partition:
    """Which neurons are shared (always on) and which belong to each routed expert: id vectors, int64.

    Equal widths and experts that do not overlap are what stock formats want, not what the type demands.

    Attributes:
        shared_neurons: [S].
        expert_neurons: E vectors [I_e].
    """

    shared_neurons: Tensor
    expert_neurons: Sequence[Tensor]

    @property
    def num_experts(self) -> int:
        """E, the routed experts."""
        return len(self.expert_neurons)

    def on(self, device: torch.device) -> Partition:
        """The same partition on a device."""
        return Partition(self.shared_neurons.to(device), [neurons.to(device) for neurons in self.expert_neurons])


@dataclass(frozen=True)
class Router:
    """An affine scorer of the routed experts: the K of largest `x @ weight.T + bias` are run, with weight one.

    Attributes:
        weight: [E, H], float32.
        bias: [E], float32.
        num_experts_per_tok: K.
        is_stored_form: The weights are centred over experts and bfloat16-exact already: to be stored as they are.
    """

    weight: Tensor
    bias: Tensor
    num_experts_per_tok: int
    is_stored_form: bool = False

    def on(self, device: torch.device) -> Router:
        """The same router on a device."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))


@dataclass(frozen=True)
class NeuronRouter:
    """Scores each expert by |gate_act * up_value| of one neuron that speaks for it; no stock format can hold it.

    Attributes:
        neurons: Id of each expert's neuron, [E] int64.
        num_experts_per_tok: K.
    """

    neurons: Tensor
    num_experts_per_tok: int

    def on(self, device: torch.device) -> NeuronRouter:
        """The same router on a device."""
        return replace(self, neurons=self.neurons.to(device))


@dataclass(frozen=True)
class NeuronOracle:
    """Runs each token's strongest neurons, which it knows only by running all of them: a bound, not a router.

    Attributes:
        rank: By |gate_act|, or by contribution: |neuron_act| times the norm of the down column.
        num_neurons: Neurons that run on each token.
    """

    rank: Literal["gate", "contribution"]
    num_neurons: int

    def on(self, device: torch.device) -> NeuronOracle:
        """Itself: it holds no tensor."""
        return self


class Need(StrEnum):
    """What a design may have that not every format holds, in the words of a refusal."""

    OUTPUT_BIAS = "an output bias"
    UNEQUAL_LAYERS = "layers of unequal width"
    OVERLAPPING_EXPERTS = "overlapping experts that leave neurons out"
    NEURON_ROUTER = "a router that scores an expert by |gate_act * up_value| of one neuron"
    ORACLE = "an oracle's knowledge of every activation"


@dataclass(frozen=True)
class LayerDesign:
    """What a method decides for one layer.

    Attributes:
        partition: Who owns which neurons; with an oracle, which has no experts, every neuron is in the one expert.
        router: Which experts run.
        down: A repaired down_proj [H, F] to write instead of the source's; None keeps the source's.
        bias: Added to the FFN's output, [H]; None for none.
        measures: Numbers for the record, by name.
    """

    partition: Partition
    router: Router | NeuronRouter | NeuronOracle
    down: Tensor | None = None
    bias: Tensor | None = None
    measures: Mapping[str, float | None] = field(default_factory=dict)

    def on(self, device: torch.device) -> LayerDesign:
        """The same design on a device."""
        down, bias = (None if part is None else part.to(device) for part in (self.down, self.bias))
        return replace(self, partition=self.partition.on(device), router=self.router.on(device), down=down, bias=bias)
