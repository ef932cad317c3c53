"""What a GGUF architecture is: a module that says how a stored format looks in llama.cpp.

Shapes are in row order, the last axis is the one that lies together (GGUF itself lists them the other way round).
`parts/` holds what several architectures share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from expertweaver.dense.reader import TensorInfo
from expertweaver.errors import Problem
from expertweaver.registry import load_module

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
"""A key's value; its GGUF type follows from the Python type: int is uint32 (int32 in lists), float is float32."""

KeyValues = Mapping[str, Value]
Config = Mapping[str, Any]

ELSEWHERE = "Serve this model with transformers."
"""What to do where llama.cpp cannot compute a model; `gguf/fit.py` puts what it knows of the model in its place."""

MAX_EXPERTS = 1024
"""More make llama.cpp stop when it loads the file, in any architecture."""


def only(tensors: Sequence[Tensor]) -> Tensor:
    """Take a single source tensor as it is."""
    [tensor] = tensors
    return tensor


@dataclass(frozen=True, order=True)
class Part:
    """Which of several equal parts of a source's rows a tensor takes; all of them by default."""

    index: int = 0
    count: int = 1

    def of(self, tensor: Tensor) -> Tensor:
        """Cut the part out of a tensor [..., rows, columns]."""
        return tensor if self.count == 1 else tensor.chunk(self.count, dim=-2)[self.index]


WHOLE = Part()


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF file and where its values come from.

    Attributes:
        name: Its name in the file.
        shape: Its shape in row order.
        sources: Tensors of the checkpoint that it is made of, in order; none for a constant.
        exact: Stays float32 whatever type was asked for (routers, biases, norms).
        part: What it takes of each source, where the checkpoint fuses what the file has apart.
        assemble: Makes the tensor out of its sources' parts.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    exact: bool = False
    part: Part = WHOLE
    assemble: Callable[[Sequence[Tensor]], Tensor] = only

    @property
    def num_elements(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)

    def values(self, read: Callable[[str], Tensor]) -> Tensor:
        """Make the tensor; `read` gives a source by its name."""
        return self.assemble([self.part.of(read(source)) for source in self.sources])


class Architecture(Protocol):
    """The contract of a module in this room.

    Attributes:
        NAME: llama.cpp's name of the architecture.
        ROPES: The types of rotary positions that it reads.
    """

    NAME: str
    ROPES: frozenset[str]

    def check(self, config: Config) -> list[Problem]:
        """Say what of this model, beside its rotary positions, llama.cpp would compute differently."""
        ...

    def key_values(self, config: Config) -> KeyValues:
        """Sizes and switches, without the architecture's prefix."""
        ...

    def tensors(self, config: Config, stored: Mapping[str, TensorInfo]) -> list[PlannedTensor]:
        """Every tensor of the file, in order, from the checkpoint's headers."""
        ...

    def remarks(self, config: Config) -> list[str]:
        """What the user should know about the file; empty if nothing."""
        ...


def load_architecture(stored_format: str) -> Architecture:
    """The GGUF architecture of a stored format by the format's name."""
    return cast("Architecture", load_module("gguf/architectures", stored_format))


WRITTEN_SO = "Convert the model again: ExpertWeaver writes this value."


def check_fixed(config: Config, fixed: Mapping[str, Any], fix: str = WRITTEN_SO) -> list[Problem]:
    """Find keys of the configuration that have another value than llama.cpp or a layout takes for granted."""
    return [
        Problem(f"config.json: {key}", str(value), str(config.get(key)), fix)
        for key, value in fixed.items()
        if config.get(key) != value
    ]


def check_num_experts(config: Config, key: str) -> list[Problem]:
    """Find more routed experts than llama.cpp loads."""
    if config[key] <= MAX_EXPERTS:
        return []
    fix = "Convert the model into fewer slices (--num-slices)."
    return [Problem(f"config.json: {key}", f"at most {MAX_EXPERTS} in llama.cpp", str(config[key]), fix)]
