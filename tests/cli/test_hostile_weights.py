"""Weight files and indices that somebody made to break a reader: refused in four parts, nothing touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from support.commands import Bench, Case, Complaint, check_refused
from support.models import BODY_SHARD, HEAD_SHARD, INDEX, WEIGHTS, split_shards
from support.spoils import (
    DOWN,
    Header,
    Spoil,
    all_tensors,
    both,
    entry,
    header,
    index_name,
    index_text,
    instead,
    one_more,
    overlap,
    pipe,
    raw_header,
    source_file,
)

AGAIN = "Copy or download the model again"


def corrupt(name: str, spoil: Spoil, found: str = "truncated or corrupt") -> Case:
    return Case(name, Complaint(WEIGHTS, "a complete safetensors file", found, AGAIN), spoil)


def unknown(name: str, tensor_name: str, found: str) -> Case:
    words = Complaint("dense", "only tensors that the family 'llama' names", f"also {found}", "Nothing is dropped")
    return Case(name, words, one_more(tensor_name, torch.zeros(2)))


def misshapen(name: str, spoil: Spoil, found: str) -> Case:
    return Case(name, Complaint(f"{WEIGHTS}: {DOWN}", "shape [32, 64]", found, "different models"), spoil)


def mistyped(dtype: torch.dtype, found: str) -> Case:
    words = Complaint(f"{WEIGHTS}: {DOWN}", "type F32, BF16, F16", found, "unquantised")
    return Case(f"weights of type {found}", words, all_tensors(lambda t: t.to(dtype), DOWN))


def twice(values: Header, data: bytes) -> tuple[bytes, bytes]:
    """The same name twice in the header, the second time for other bytes."""
    other = {**values[DOWN], "data_offsets": values["model.layers.0.mlp.down_proj.weight"]["data_offsets"]}
    return (json.dumps(values)[:-1] + f', "{DOWN}": {json.dumps(other)}}}').encode(), data


HEADERS = (
    corrupt("header of no length", raw_header(b"")),
    corrupt("header longer than any file", header(lambda values, data: (values, data, 2**63)), "header too large"),
    corrupt("header longer than the file", header(lambda values, data: (values, data, 10**7)), "invalid header length"),
    corrupt("header in Python", raw_header(b"{'a': 1}" + b" " * 50)),
    corrupt("header that is a list", raw_header(b"[1, 2]")),
    corrupt("header that is null", raw_header(b"null")),
    corrupt("header not UTF-8", raw_header(b'{"\xff": 1}'), "UTF-8"),
    corrupt("header too deep", raw_header(b"[" * 100_000)),
    corrupt("a name twice in the header", header(twice), "invalid offset"),
    corrupt("entry that is a number", header(lambda values, data: ({**values, DOWN: 3}, data))),
    corrupt("entry that is null", header(lambda values, data: ({**values, DOWN: None}, data))),
    corrupt("entry without a type", entry(dtype=None), "dtype"),
    corrupt("entry without offsets", entry(data_offsets=None), "data_off"),
    corrupt("a type that does not exist", entry(dtype="F99"), "F99"),
    corrupt("a type that is a number", entry(dtype=3)),
    corrupt("a negative size", entry(shape=[-32, 64])),
    corrupt("a size with a point", entry(shape=[32.0, 64])),
    corrupt("a shape that is text", entry(shape="32x64")),
    corrupt("a shape beyond 64 bits", entry(shape=[2**40, 2**40]), "overflow"),
    corrupt("a shape of 70,000 axes and too few bytes", entry(shape=[2] + [1] * 70_000)),
    corrupt("a shape without axes", entry(shape=[])),
    corrupt("offsets the wrong way round", entry(data_offsets=[100, 0])),
    corrupt("negative offsets", entry(data_offsets=[-1, 8191])),
    corrupt("offsets behind the end", entry(data_offsets=[10**9, 10**9 + 8192])),
    corrupt("one offset", entry(data_offsets=[0])),
    corrupt("offsets with a point", entry(data_offsets=[0.5, 8192.5])),
    corrupt("tensors that overlap", header(overlap), "invalid offset"),
    corrupt("bytes behind the last tensor", header(lambda values, data: (values, data + bytes(64)))),
    corrupt("a byte too few", header(lambda values, data: (values, data[:-1]))),
    corrupt("bytes of no tensor", header(lambda values, data: values.pop(DOWN) and None), "invalid offset"),
    corrupt("metadata of numbers", header(lambda values, data: ({**values, "__metadata__": {"a": 1}}, data))),
    corrupt("metadata that is a list", header(lambda values, data: ({**values, "__metadata__": [1]}, data))),
    corrupt("a file that claims 8 GiB", lambda bench: os.truncate(bench.source / WEIGHTS, 2**33)),
    corrupt("a zip archive", source_file(WEIGHTS, b"PK\x03\x04" + bytes(100))),
    corrupt("a page of HTML", source_file(WEIGHTS, "<!DOCTYPE html><html>Access denied</html>")),
    corrupt("a pointer of git lfs", source_file(WEIGHTS, "version https://git-lfs.github.com/spec/v1\nsize 3\n")),
    corrupt("a pickle of that name", lambda bench: torch.save({"a": 1}, bench.source / WEIGHTS)),
)

PLACES = (
    Case("a folder of that name", Complaint(WEIGHTS, "the shard", "no such file", AGAIN), instead(WEIGHTS, Path.mkdir)),
    Case("a pipe", Complaint(WEIGHTS, "a regular file", "a pipe", "Put a file there"), pipe(WEIGHTS)),
    Case(
        "a link out of the folder",
        Complaint(WEIGHTS, "a file inside the model folder", "a link to", "Put the file itself"),
        lambda bench: (
            (bench.source / WEIGHTS).rename(bench.folder / "w"),
            (bench.source / WEIGHTS).symlink_to(bench.folder / "w"),
        ),
    ),
    Case(
        "a link to nothing",
        Complaint("dense", WEIGHTS, "without an index", AGAIN),
        instead(WEIGHTS, lambda path: path.symlink_to("nowhere")),
    ),
    Case(
        "a link to itself",
        Complaint("dense", WEIGHTS, "without an index", AGAIN),
        instead(WEIGHTS, lambda path: path.symlink_to(path.name)),
    ),
)

NAMES = (
    unknown("a tensor called like a path", "../../x", "../../x"),
    unknown("a tensor that would clear the terminal", "\x1b[2J\nAll is well", "\x1b[2J"),
    unknown("a tensor with a very long name", "a" * 100_000, "a" * 200 + "... (99,800 more characters)"),
    unknown("a tensor of layer -1", "model.layers.-1.mlp.down_proj.weight", "model.layers.-1."),
    unknown("a tensor of layer 10^20", f"model.layers.{10**20}.mlp.down_proj.weight", "model.layers.1000"),
    Case(
        "no tensor at all",
        Complaint("dense", "every tensor of a llama model", "missing lm_head.weight", AGAIN),
        header(lambda values, data: ({}, b"")),
    ),
    misshapen("one axis", entry(shape=[2048]), "[2048]"),
    misshapen("three axes", entry(shape=[1, 32, 64]), "[1, 32, 64]"),
    misshapen("axes exchanged", entry(shape=[64, 32]), "[64, 32]"),
    misshapen("no rows", all_tensors(lambda t: t[:0], DOWN), "[0, 64]"),
    mistyped(torch.float64, "F64"),
    mistyped(torch.bool, "BOOL"),
    mistyped(torch.int64, "I64"),
    mistyped(torch.uint8, "U8"),
    mistyped(torch.float8_e4m3fn, "F8_E4M3"),
    mistyped(torch.complex64, "C64"),
)


def bad_index(name: str, text: str | bytes, expected: str, found: str) -> Case:
    return Case(f"index: {name}", Complaint(INDEX, expected, found, AGAIN), index_text(text))


def bad_name(name: str, expected: str, found: str) -> Case:
    fix = "beside its index" if "plain" in expected else AGAIN
    return Case(f"shard {name[:20]!r}", Complaint(INDEX, expected, found, fix), index_name(name))


PLAIN, BESIDE = "plain file names of this folder", "beside it"
INDICES = (
    bad_index("map that is a list", '{"weight_map": []}', "a map of tensor to file name", "something else"),
    bad_index("map that is text", '{"weight_map": "x"}', "a map of tensor to file name", "something else"),
    bad_index("map that is null", '{"weight_map": null}', "a map of tensor to file name", "something else"),
    bad_index("files that are numbers", '{"weight_map": {"a": 1}}', "a map of tensor to file name", "something else"),
    bad_index("files that are maps", '{"weight_map": {"a": {}}}', "a map of tensor to file name", "something else"),
    bad_index("a list", "[]", "'weight_map'", "TypeError"),
    bad_index("too deep", "[" * 100_000, "'weight_map'", "recursion"),
    bad_index("empty", "", "'weight_map'", "Expecting value"),
    bad_index("a page of HTML", "<html>", "'weight_map'", "Expecting value"),
    bad_index("not UTF-8", b'{"weight_map": {"\xff": "a"}}', "'weight_map'", "0xff"),
    bad_index("a number too long", '{"weight_map": ' + "1" * 5000 + "}", "'weight_map'", "4300 digits"),
    Case(
        "index: no entry",
        Complaint("dense", "every tensor", "missing lm_head", AGAIN),
        index_text('{"weight_map": {}}'),
    ),
    Case(
        "index: a folder",
        Complaint(INDEX, "'weight_map'", "Is a directory", AGAIN),
        both(lambda bench: split_shards(bench.source), instead(INDEX, Path.mkdir)),
    ),
    Case(
        "index: a pipe",
        Complaint(INDEX, "a regular file", "a pipe", "Put a file there"),
        both(lambda bench: split_shards(bench.source), pipe(INDEX)),
    ),
    bad_name("..", PLAIN, "'..'"),
    bad_name(".", PLAIN, "'.'"),
    bad_name("", PLAIN, "''"),
    bad_name("/etc/passwd", PLAIN, "'/etc/passwd'"),
    bad_name("%2e%2e/x", PLAIN, "'%2e%2e/x'"),
    bad_name(f"{HEAD_SHARD}/", PLAIN, "/'"),
    bad_name("..\\x", BESIDE, "no such file"),
    bad_name("a\0b", BESIDE, "no such file"),
    bad_name("\ud800", BESIDE, "no such file"),
    bad_name("x" * 5000, BESIDE, "no such file"),
    bad_name("~root", BESIDE, "no such file"),
    bad_name("$(touch x)", BESIDE, "no such file"),
    bad_name(HEAD_SHARD.upper(), BESIDE, "no such file"),
    Case(
        "shard that is the configuration",
        Complaint("config.json", "a complete safetensors file", "header", AGAIN),
        index_name("config.json"),
    ),
    Case(
        "shard that is a folder",
        Complaint(INDEX, f"the shard '{HEAD_SHARD}'", "no such file", AGAIN),
        both(lambda bench: split_shards(bench.source), instead(HEAD_SHARD, Path.mkdir)),
    ),
    Case(
        "shard that is a pipe",
        Complaint(HEAD_SHARD, "a regular file", "a pipe", "Put a file there"),
        both(lambda bench: split_shards(bench.source), pipe(HEAD_SHARD)),
    ),
    Case(
        "shard that is another's copy",
        Complaint("dense: ", "one tensor of this name", f"{BODY_SHARD} and in {HEAD_SHARD}", AGAIN),
        both(
            lambda bench: split_shards(bench.source),
            lambda bench: shutil.copy(bench.source / BODY_SHARD, bench.source / HEAD_SHARD),
        ),
    ),
)


def bad_values(name: str, complaint: Complaint, spoil: Spoil, error: str, exit_code: int = 3) -> Case:
    return Case(name, complaint, spoil, error=error, exit_code=exit_code, planned=False)


FINITE = Complaint("layer 0", "finite activations", "NaN or infinite", "check the model's weights")
TIE = Complaint("choice of experts is a tie", "at most 0.05", "1", "Nothing was published")
NOT_FINITE = Complaint(f"{WEIGHTS}: lm_head.weight", "finite weights", "32 of 3072 values NaN or infinite", AGAIN)
VALUES = (
    bad_values("FFNs that overflow", FINITE, all_tensors(lambda t: t * 1e30, "mlp"), "CalibrationError"),
    bad_values("embeddings of zeros", TIE, all_tensors(torch.zeros_like, "embed"), "VerificationError", 4),
    bad_values("norms of zeros", TIE, all_tensors(torch.zeros_like, "norm"), "VerificationError", 4),
    bad_values("embeddings of 3e38", TIE, all_tensors(lambda t: 0 * t + 3e38, "embed"), "VerificationError", 4),
    bad_values(
        "one row of NaN",
        NOT_FINITE,
        all_tensors(lambda t: t.index_fill(0, torch.tensor([95]), float("nan")), "lm_head"),
        "CheckpointError",
    ),
)  # fmt: skip

CASES = (*HEADERS, *PLACES, *NAMES, *INDICES, *VALUES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_weights_made_to_break_a_reader_are_refused(case: Case, bench: Bench) -> None:
    check_refused(case, bench)


LEGAL: dict[str, Spoil] = {
    "FFNs of zeros": all_tensors(torch.zeros_like, "mlp"),
    "down_proj of zeros": all_tensors(torch.zeros_like, "down_proj"),
    "FFNs of negative zeros": all_tensors(lambda t: -torch.zeros_like(t), "mlp"),
    "denormal FFNs": all_tensors(lambda t: t * 1e-40, "mlp"),
    "constant FFNs": all_tensors(torch.ones_like, "mlp"),
    "a head of zeros": all_tensors(torch.zeros_like, "lm_head"),
    "metadata of HTML": header(lambda values, data: ({**values, "__metadata__": {"a": "<b>"}}, data)),
}
"""Odd, but a model: numbers are finite, and what is chosen is decided, so that every engine computes the same."""


@pytest.mark.parametrize("name", LEGAL)
def test_weights_that_are_odd_but_numbers_are_converted(name: str, bench: Bench) -> None:
    LEGAL[name](bench)
    result = bench.convert()
    assert result.exit_code == 0, result.output


def test_a_message_cannot_steer_the_terminal(bench: Bench) -> None:
    one_more("\x1b[2J\x07", torch.zeros(2))(bench)
    result = bench.convert()
    assert "\x1b" not in result.stderr
    assert "also \\x1b[2J\\x07" in result.stderr
