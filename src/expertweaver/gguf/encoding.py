"""Values as they lie in the file: which type a tensor gets, how many bytes that is, and the bytes."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expertweaver.errors import CheckpointError, Problem
from expertweaver.gguf.architectures.base import PlannedTensor

if TYPE_CHECKING:
    import numpy as np

Q8_0_BLOCK = 32
"""Neighbouring values of a row that share a scale."""


class Quantization(StrEnum):
    """Types that the weight matrices can be written as; norms, biases and routers are always float32."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


FILE_TYPES = {Quantization.F32: 0, Quantization.F16: 1, Quantization.BF16: 32, Quantization.Q8_0: 7}
"""llama.cpp's numbers of the types for a whole file."""

BITS = {Quantization.F32: 32, Quantization.F16: 16, Quantization.BF16: 16, Quantization.Q8_0: 8.5}


def type_of(tensor: PlannedTensor, wanted: Quantization) -> Quantization:
    """The type a tensor gets: float32 where it must be exact, float16 where Q8_0's blocks do not fit its rows."""
    if tensor.exact:
        return Quantization.F32
    if wanted is Quantization.Q8_0 and tensor.shape[-1] % Q8_0_BLOCK:
        return Quantization.F16
    return wanted


def num_bytes(tensor: PlannedTensor, kind: Quantization) -> int:
    """Bytes of a tensor in the file, without padding."""
    return int(tensor.num_elements * BITS[kind] / 8)


def encode(name: str, values: Tensor, kind: Quantization) -> np.ndarray[Any, Any]:
    """Turn values into an array of the file's bytes.

    Raises:
        CheckpointError: A value is beyond the type's range.
    """
    import gguf
    import numpy as np

    exact = values.to(torch.float32).numpy()
    if kind in (Quantization.F16, Quantization.Q8_0):
        _check_range(name, exact, float(np.finfo(np.float16).max) * (1 if kind is Quantization.F16 else 127))
    return gguf.quantize(np.ascontiguousarray(exact), gguf.GGMLQuantizationType[kind.name])


def _check_range(name: str, values: np.ndarray[Any, Any], limit: float) -> None:
    largest = float(abs(values).max()) if values.size else 0.0
    if largest > limit:
        fix = "Pass --quantize bf16 or --quantize f32."
        raise CheckpointError(Problem(name, f"values up to {limit:g}", f"{largest:g}", fix))
