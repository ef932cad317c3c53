"""The values that the maths passes around: a GLU's weights, a partition of its neurons, a router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    def to(self, dtype: torch.dtype) -> GLUWeights:
        """The same GLU in another type."""
        return GLUWeights(self.gate.to(dtype), self.up.to(dtype), self.down.to(dtype), self.hidden_act)


@dataclass(frozen=True)
class Partition:
    """Which neurons are shared (always on) and which belong to each routed expert: id vectors, int64.

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
