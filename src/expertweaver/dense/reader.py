"""Lazy safetensors: every header is read and checked at the start, every tensor only when it is asked for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertweaver.dense.source import is_inside
from expertweaver.errors import CheckpointError, Problem, listed, shortened

if TYPE_CHECKING:
    from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
DOWNLOAD_AGAIN = "Copy or download the model again."
FLOAT_DTYPES = {"F32": 4, "BF16": 2, "F16": 2}
"""Stored types that weights may have, with their bytes a value."""


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor: its file, type and shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)


class TensorReader:
    """The tensors of a model folder, by name; nothing but headers is in memory."""

    def __init__(self, folder: Path, tensors: Mapping[str, TensorInfo], fingerprint: str) -> None:
        self.folder = folder
        self.tensors = dict(tensors)
        self.fingerprint = fingerprint
        self._opened: tuple[Path, Any] | None = None

    @classmethod
    def open(cls, folder: Path) -> TensorReader:
        """Read the index and all headers of a folder.

        Raises:
            CheckpointError: No safetensors, an index that leaves the folder or names a missing shard, a truncated or
                corrupt shard, a tensor that two shards hold, or one that the index and the shards disagree on.
        """
        files, index = _find_files(folder)
        tensors: dict[str, TensorInfo] = {}
        digest = hashlib.sha256()
        for file in files:
            for name, info in _read_header(file, digest):
                if name in tensors:
                    found = f"it in {tensors[name].file.name} and in {file.name}"
                    raise CheckpointError(
                        Problem(f"{folder}: {name}", "one tensor of this name", found, DOWNLOAD_AGAIN)
                    )
                tensors[name] = info
        if index is not None:
            _check_index(folder, index, tensors)
        return cls(folder, tensors, digest.hexdigest())

    def read(self, name: str) -> Tensor:
        """Read one tensor as stored.

        Raises:
            CheckpointError: The file cannot be read any more, or a value is NaN or infinite.
        """
        import torch
        from safetensors import SafetensorError

        info = self.tensors[name]
        try:
            tensor: Tensor = self._shard(info.file).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(Problem(str(info.file), "a readable shard", str(error), DOWNLOAD_AGAIN)) from error
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            found = f"{bad} of {tensor.numel()} values NaN or infinite"
            raise CheckpointError(Problem(f"{info.file}: {name}", "finite weights", found, DOWNLOAD_AGAIN))
        return tensor

    def _shard(self, file: Path) -> Any:
        """The open shard; the last one is kept, because neighbours are usually read together."""
        from safetensors import safe_open

        if self._opened is None or self._opened[0] != file:
            self._opened = (file, safe_open(file, framework="pt"))
        return self._opened[1]


def _find_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    index_file, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index_file.exists():
        index = _read_index(index_file)
        files = sorted({_inside(folder, name, index_file) for name in index.values()})
        return files, index
    if single.exists():
        return [_inside(folder, SINGLE_NAME, single)], None
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        fix = "Pickles can run code and are not read; convert them to safetensors (save_pretrained does)."
        raise CheckpointError(Problem(str(folder), "safetensors weights", f"only {', '.join(pickles)}", fix))
    shards = sorted(p.name for p in folder.glob("*.safetensors"))
    found = f"{', '.join(shards)} without an index" if shards else "no weights"
    raise CheckpointError(Problem(str(folder), f"{SINGLE_NAME} or {INDEX_NAME}", found, DOWNLOAD_AGAIN))


def _read_index(file: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"
        raise CheckpointError(Problem(str(file), "JSON with a 'weight_map'", found, DOWNLOAD_AGAIN)) from error
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(Problem(str(file), "a map of tensor to file name", "something else", DOWNLOAD_AGAIN))
    return weight_map


def _inside(folder: Path, name: str, where: Path) -> Path:
    """The path of a shard that must lie in the folder (or in its own hub cache, which links to blobs)."""
    path = folder / name
    fix = "Use a checkpoint whose shards lie beside its index."
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(Problem(str(where), "plain file names of this folder", f"'{name}'", fix))
    if not _is_file(path):
        expected = f"the shard '{shortened(name, 200)}' beside it"
        raise CheckpointError(Problem(str(where), expected, "no such file", DOWNLOAD_AGAIN))
    if not is_inside(folder, path):
        raise CheckpointError(Problem(str(path), "a file inside the model folder", f"a link to {path.resolve()}", fix))
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
        return False


def _read_header(file: Path, digest: Any) -> Iterator[tuple[str, TensorInfo]]:
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(length, file.stat().st_size)))
        with safe_open(file, framework="pt") as shard:
            for name in sorted(shard.keys()):
                part = shard.get_slice(name)
                yield name, TensorInfo(file, part.get_dtype(), tuple(part.get_shape()))
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        found = f"a truncated or corrupt file ({error})"
        raise CheckpointError(Problem(str(file), "a complete safetensors file", found, DOWNLOAD_AGAIN)) from error


def _check_index(folder: Path, index: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    missing = sorted(name for name, file in index.items() if name not in tensors or tensors[name].file.name != file)
    extra = sorted(set(tensors) - set(index))
    where = str(folder / INDEX_NAME)
    problems = []
    if missing:
        problems.append(
            Problem(where, "each tensor in the shard it names", f"not there: {listed(missing)}", DOWNLOAD_AGAIN)
        )
    if extra:
        problems.append(Problem(where, "an entry for each stored tensor", f"none for {listed(extra)}", DOWNLOAD_AGAIN))
    if problems:
        raise CheckpointError(*problems)
