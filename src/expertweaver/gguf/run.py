"""From a converted model folder to one GGUF file: check everything, write beside, read back, rename."""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertweaver.checkpoint.folder import check_space, check_writable, partial_folder, take_lock
from expertweaver.checkpoint.record import read_json, read_record
from expertweaver.dense.reader import TensorReader
from expertweaver.dense.source import find_model
from expertweaver.errors import CheckpointError, Problem, RecipeError, listed
from expertweaver.gguf.architectures.base import Architecture, Config, Part, PlannedTensor
from expertweaver.gguf.encoding import Quantization, encode, type_of
from expertweaver.gguf.file import Outline, check_file, write_file
from expertweaver.gguf.fit import find_architecture
from expertweaver.gguf.metadata import metadata
from expertweaver.gguf.vocabulary import read_vocabulary
from expertweaver.progress import SILENT, Progress
from expertweaver.registry import require_known

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".gguf"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        path: The file.
        architecture: llama.cpp's name of the architecture.
        quantization: Type of the weight matrices.
        num_bytes: Size of the file.
        num_tensors: Tensors in it.
        kept_f16: Matrices whose rows Q8_0's blocks do not fit; they are float16.
        remarks: What llama.cpp may do differently.
    """

    path: Path
    architecture: str
    quantization: str
    num_bytes: int
    num_tensors: int
    kept_f16: tuple[str, ...]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "path": str(self.path)}


def export(
    model: str | Path,
    out: str | Path,
    *,
    quantize: str = "f16",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Export:
    """Write a converted model as a GGUF file for llama.cpp.

    Args:
        model: A folder that `convert` wrote, or a hub id of one.
        out: The file to create, ending in .gguf.
        quantize: Type of the weight matrices: f32, f16, bf16 or q8_0. Norms, biases and routers stay float32.
        overwrite: Whether an existing file may be replaced, after the new one is verified.
        progress: Hears of stages and notes.

    Raises:
        RecipeError: An unknown type, an output that is not called .gguf, or the package gguf is missing.
        CheckpointError: The folder is not a converted model or is damaged, its tokenizer is of a kind that llama.cpp
            does not read, the target exists, or the disk is full.
        ArchitectureError: llama.cpp cannot compute this model.
        VerificationError: The file that was written is not what was meant; it is removed.
    """
    out = Path(out)
    _check_request(out, quantize, overwrite=overwrite)
    folder = find_model(str(model)).path
    manifest = read_record(folder)
    config = read_json(folder / "config.json")
    reader = TensorReader.open(folder)
    architecture = find_architecture(manifest, config, reader.tensors)
    outline, remarks = _outline(folder, manifest, config, architecture, reader, Quantization(quantize))
    check_space(out, outline.num_bytes)
    for remark in remarks:
        progress.note(remark)
    _write_verified(out, outline, reader, progress)
    return Export(
        path=out,
        architecture=architecture.NAME,
        quantization=quantize,
        num_bytes=out.stat().st_size,
        num_tensors=len(outline.tensors),
        kept_f16=_kept(outline, Quantization(quantize)),
        remarks=tuple(remarks),
    )


def _check_request(out: Path, quantize: str, *, overwrite: bool) -> None:
    require_known("quantize", quantize, [kind.value for kind in Quantization])
    if out.suffix != SUFFIX:
        raise RecipeError(Problem(str(out), f"a file name ending in {SUFFIX}", f"'{out.name}'", f"Add {SUFFIX} to it."))
    if importlib.util.find_spec("gguf") is None:
        fix = "Install it with: pip install 'expertweaver[gguf]'"
        raise RecipeError(Problem("export", "the package gguf", "none", fix))
    if out.is_dir():
        raise CheckpointError(Problem(str(out), "a file to write", "a folder", "Choose another name."))
    if (out.exists() or out.is_symlink()) and not overwrite:
        fix = "Choose another name, or pass --overwrite to replace it once the new one is verified."
        raise CheckpointError(Problem(str(out), "a name that is free", "a file of this name", fix))
    check_writable(out)


def _outline(
    folder: Path,
    manifest: Mapping[str, Any],
    config: Config,
    architecture: Architecture,
    reader: TensorReader,
    wanted: Quantization,
) -> tuple[Outline, list[str]]:
    """Everything that stands before the values, and what the user should know."""
    planned = architecture.tensors(config, reader.tensors)
    account(planned, reader)
    vocabulary = read_vocabulary(folder, config["vocab_size"])
    tensors = [(tensor, type_of(tensor, wanted)) for tensor in planned]
    outline = Outline(architecture.NAME, {}, tensors)
    kept = _kept(outline, wanted)
    sizes = {f"{architecture.NAME}.{key}": value for key, value in architecture.key_values(config).items()}
    keys = {**metadata(folder, manifest, wanted, kept), **sizes, **vocabulary.key_values}
    remarks = [*architecture.remarks(config), *vocabulary.remarks]
    if kept:
        remarks.append(f"{len(kept)} matrices stay f16, their rows are no multiple of 32: {listed(kept, 3)}")
    return Outline(architecture.NAME, keys, tensors), remarks


def _kept(outline: Outline, wanted: Quantization) -> tuple[str, ...]:
    """Matrices that are not of the type that was asked for."""
    return tuple(tensor.name for tensor, kind in outline.tensors if not tensor.exact and kind is not wanted)


def account(planned: Sequence[PlannedTensor], reader: TensorReader) -> None:
    """Insist that each stored tensor goes into the file exactly once, whole or in parts; empty ones may stay behind.

    Raises:
        CheckpointError: Tensors are missing or left over; all of them.
    """
    used: dict[str, list[Part]] = {}
    for tensor in planned:
        for source in tensor.sources:
            used.setdefault(source, []).append(tensor.part)
    stored = {name for name, info in reader.tensors.items() if info.num_elements}
    problems = []
    where, fix = str(reader.folder), "Convert the model again, or report this as a bug."
    if missing := sorted(set(used) - stored):
        problems.append(Problem(where, "every tensor of the architecture", f"none called {listed(missing)}", fix))
    if left := sorted(stored - set(used)):
        problems.append(Problem(where, "only tensors that the architecture has", listed(left), fix))
    for source, parts in used.items():
        every = [Part(index, len(parts)) for index in range(len(parts))]
        assert sorted(parts) == every, f"an architecture used {source} twice, or not all of it"
    if problems:
        raise CheckpointError(*problems)


def _write_verified(out: Path, outline: Outline, reader: TensorReader, progress: Progress) -> None:
    """Write beside the target, read back, and only then give the file its name."""
    partial, lock = partial_folder(out), out.with_name(out.name + ".lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with take_lock(lock, out):
            try:
                _write_checked(partial, outline, reader, progress)
                partial.replace(out)
            finally:
                partial.unlink(missing_ok=True)
                lock.unlink()
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        fix = "Free some space." if error.errno in DISK_FULL else "Choose another place."
        found = f"{error.strerror or error}"
        raise CheckpointError(Problem(str(partial), "a file that can be written", found, fix)) from error


def _write_checked(partial: Path, outline: Outline, reader: TensorReader, progress: Progress) -> None:
    with progress.stage("exporting", len(outline.tensors)) as step:
        digests = write_file(partial, outline, _encoded(outline, reader), step)
    with progress.stage("reading back", 1) as step:
        check_file(partial, outline, digests)
        step()
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())


def _encoded(outline: Outline, reader: TensorReader) -> Iterator[np.ndarray[Any, Any]]:
    for tensor, kind in outline.tensors:
        yield encode(tensor.name, tensor.values(reader.read), kind)
