"""Ways to spoil a good bench: raw safetensors headers, index entries, files of other kinds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from support.commands import Bench, Case, Complaint, bad_request
from support.models import INDEX, WEIGHTS, edit_config, edit_index, edit_json, edit_tensors, split_shards
from torch import Tensor

Spoil = Callable[[Bench], Any]
Header = dict[str, Any]
DOWN = "model.layers.1.mlp.down_proj.weight"
HEAD = "lm_head.weight"


def header(change: Callable[[Header, bytes], Any]) -> Spoil:
    """Change the header of the weight file in place, or return (header or its bytes, data, length that it claims)."""

    def spoil(bench: Bench) -> None:
        file = bench.source / WEIGHTS
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        values = json.loads(content[8:end])
        changed = change(values, content[end:])
        new, data, *claimed = changed if isinstance(changed, tuple) else (values, content[end:])
        new = new if isinstance(new, bytes) else json.dumps(new).encode()
        length = claimed[0] if claimed else len(new)
        file.write_bytes(length.to_bytes(8, "little") + new + data)

    return spoil


def raw_header(content: bytes) -> Spoil:
    """Put these bytes in the header's place."""
    return header(lambda values, data: (content, data))


def entry(**changes: Any) -> Spoil:
    """Set fields of one tensor's entry in the header; None removes one."""

    def change(values: Header, data: bytes) -> None:
        values[DOWN] = {key: value for key, value in {**values[DOWN], **changes}.items() if value is not None}

    return header(change)


def overlap(values: Header, data: bytes) -> None:
    """Let one tensor lie on another."""
    start = values[HEAD]["data_offsets"][0]
    values[DOWN]["data_offsets"] = [start, start + 4 * 32 * 64]


def index_text(text: str | bytes) -> Spoil:
    """Divide the model into shards with this for an index."""

    def spoil(bench: Bench) -> None:
        split_shards(bench.source)
        (bench.source / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def index_name(name: str) -> Spoil:
    """Divide the model into shards; the output head is said to be in a file of this name."""

    def spoil(bench: Bench) -> None:
        split_shards(bench.source)
        edit_index(bench.source, {HEAD: name})

    return spoil


def source_file(name: str, content: str | bytes) -> Spoil:
    """Write a file of the model folder."""
    return lambda bench: (bench.source / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def bench_file(name: str, content: str | bytes) -> Spoil:
    """Write a file beside the model folder."""
    return lambda bench: (bench.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def bad_recipe(name: str, content: str | bytes, words: Complaint) -> Case:
    """A request whose recipe file has this content."""
    return bad_request(name, words, "--recipe", "BENCH/recipe.yaml", spoil=bench_file("recipe.yaml", content))


def instead(name: str, make: Callable[[Path], Any]) -> Spoil:
    """Replace a file of the model folder by what a function makes in its place."""

    def spoil(bench: Bench) -> None:
        path = bench.source / name
        path.unlink(missing_ok=True)
        make(path)

    return spoil


def pipe(name: str) -> Spoil:
    """Replace a file by a pipe that nobody writes to: reading it would take forever."""
    return instead(name, os.mkfifo)


def config(**changes: Any) -> Spoil:
    """Set keys of config.json."""
    return lambda bench: edit_config(bench.source, **changes)


def tokenizer(**changes: Any) -> Spoil:
    """Set keys of tokenizer.json."""
    return lambda bench: edit_json(bench.source / "tokenizer.json", **changes)


def tokenizer_config(**changes: Any) -> Spoil:
    """Set keys of tokenizer_config.json."""
    return lambda bench: edit_json(bench.source / "tokenizer_config.json", **changes)


def one_more(name: str, tensor: Tensor) -> Spoil:
    """Add a tensor."""
    return lambda bench: edit_tensors(bench.source, {name: tensor})


def all_tensors(change: Callable[[Tensor], Tensor], part: str = "") -> Spoil:
    """Replace every tensor whose name has this part."""

    def spoil(bench: Bench) -> None:
        tensors = load_file(bench.source / WEIGHTS)
        changed = {name: (change(t) if part in name else t).contiguous() for name, t in tensors.items()}
        save_file(changed, bench.source / WEIGHTS, metadata={"format": "pt"})

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(bench: Bench) -> None:
        for part in spoils:
            part(bench)

    return spoil
