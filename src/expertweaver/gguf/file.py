"""Writing a GGUF file one tensor at a time, and reading it back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertweaver.errors import Problem, VerificationError
from expertweaver.gguf.architectures.base import KeyValues, PlannedTensor, Value
from expertweaver.gguf.encoding import Quantization, num_bytes

if TYPE_CHECKING:
    import numpy as np

FIX = "The disk may be failing; export again."
LARGEST_UINT32 = 2**32 - 1


@dataclass(frozen=True)
class Outline:
    """What stands before the values: the keys, and every tensor with its type."""

    architecture: str
    key_values: KeyValues
    tensors: Sequence[tuple[PlannedTensor, Quantization]]

    @property
    def num_bytes(self) -> int:
        """Size of the file, about: values and tokens; the rest is small."""
        texts = (value for value in self.key_values.values() if isinstance(value, list))
        words = sum(len(item.encode()) + 8 if isinstance(item, str) else 4 for value in texts for item in value)
        return words + sum(num_bytes(tensor, kind) + 128 for tensor, kind in self.tensors)


def write_file(
    file: Path, outline: Outline, encoded: Iterable[np.ndarray[Any, Any]], step: Callable[[], None]
) -> dict[str, str]:
    """Write a file while its tensors are made, one in memory at a time.

    Args:
        file: The file to create.
        outline: Keys and tensors.
        encoded: The bytes of every tensor, in the outline's order.
        step: Called after each tensor.

    Returns:
        SHA-256 of every tensor's bytes, by name.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(file, outline.architecture)
    try:
        for key, value in outline.key_values.items():
            _add(writer, key, value)
        for tensor, kind in outline.tensors:
            raw = gguf.GGMLQuantizationType[kind.name]
            shape = gguf.quant_shape_to_byte_shape(tensor.shape, raw)
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), num_bytes(tensor, kind), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        digests = {}
        for (tensor, _), array in zip(outline.tensors, encoded, strict=True):
            writer.write_tensor_data(array)
            digests[tensor.name] = hashlib.sha256(array.data).hexdigest()
            step()
        writer.flush()
        return digests
    finally:
        writer.close()


def check_file(file: Path, outline: Outline, digests: Mapping[str, str]) -> None:
    """Read a written file back and compare everything in it: keys, and every tensor's name, shape, type and bytes.

    Raises:
        VerificationError: Something is not as it was meant.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, KeyError, OSError, IndexError) as error:
        found = f"{type(error).__name__}: {error}"
        raise VerificationError(Problem(str(file), "a readable GGUF file", found, FIX)) from error
    problems = [
        Problem(f"{file}: {key}", _short(wanted), _short(found), FIX)
        for key, wanted, found in _keys(outline, {name: field.contents() for name, field in reader.fields.items()})
        if wanted != found
    ]
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if list(stored) != [tensor.name for tensor, _ in outline.tensors]:
        problems.append(Problem(str(file), f"{len(outline.tensors)} tensors in order", f"{len(stored)} others", FIX))
    for tensor, kind in outline.tensors:
        if tensor.name in stored:
            read = stored[tensor.name]
            shape = tuple(reversed(read.shape.tolist()))
            found = (shape, read.tensor_type.name.lower(), hashlib.sha256(read.data.data).hexdigest())
            wanted = (tensor.shape, kind.value, digests[tensor.name])
            if found != wanted:
                problems.append(Problem(f"{file}: {tensor.name}", str(wanted), str(found), FIX))
    if problems:
        raise VerificationError(*problems)


def _add(writer: Any, key: str, value: Value) -> None:
    """Add a key with the type that its value says; GGUF has no empty text or list."""
    match value:
        case bool():
            writer.add_bool(key, value)
        case str():
            writer.add_string(key, value)
        case int() if value > LARGEST_UINT32:
            writer.add_uint64(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case _:
            writer.add_array(key, value)


def _keys(outline: Outline, found: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    """Every key with the value it should have and the one that was read; float32 as it is rounded."""
    import numpy as np

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(np.float32(value))
        return [rounded(item) for item in value] if isinstance(value, list) else value

    written = {key: value for key, value in outline.key_values.items() if value not in ("", [])}
    for key, value in {"general.architecture": outline.architecture, **written}.items():
        yield key, rounded(value), found.get(key)


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
