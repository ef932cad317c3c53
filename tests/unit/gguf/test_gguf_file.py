"""The file itself: types, ranges, and that reading back finds every change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from expertweaver.dense.reader import TensorInfo, TensorReader
from expertweaver.errors import CheckpointError, VerificationError
from expertweaver.gguf.architectures.base import WHOLE, Part, PlannedTensor
from expertweaver.gguf.encoding import Quantization, encode, num_bytes, type_of
from expertweaver.gguf.file import Outline, check_file, write_file
from expertweaver.gguf.run import account

pytest.importorskip("gguf")

MATRIX = PlannedTensor("blk.0.attn_q.weight", (4, 64), ("q",))
NARROW = PlannedTensor("blk.0.ffn_down_exps.weight", (2, 4, 8), ("down",))
ROUTER = PlannedTensor("blk.0.ffn_gate_inp.weight", (4, 64), ("gate",), exact=True)
KEYS = {"general.name": "tiny", "x.count": 3, "x.large": 2**40, "x.share": 0.1, "x.on": True, "x.words": ["a", "ö"]}


def written(file: Path) -> tuple[Outline, dict[str, str]]:
    pairs = [(MATRIX, Quantization.Q8_0), (NARROW, Quantization.F16), (ROUTER, Quantization.F32)]
    outline = Outline("glm4moe", KEYS, pairs)
    generator = torch.Generator().manual_seed(0)
    values = {tensor.name: torch.randn(tensor.shape, generator=generator) for tensor, _ in pairs}
    encoded = (encode(tensor.name, values[tensor.name], kind) for tensor, kind in pairs)
    steps: list[None] = []
    digests = write_file(file, outline, encoded, lambda: steps.append(None))
    assert len(steps) == 3
    return outline, digests


def test_a_type_for_every_tensor() -> None:
    for wanted in Quantization:
        assert type_of(ROUTER, wanted) is Quantization.F32
        assert type_of(MATRIX, wanted) is wanted
    assert type_of(NARROW, Quantization.Q8_0) is Quantization.F16
    assert num_bytes(MATRIX, Quantization.Q8_0) == 4 * 2 * 34
    assert num_bytes(NARROW, Quantization.F16) == 128


def test_a_good_file_is_accepted_and_its_size_was_foretold(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    outline, digests = written(file)
    check_file(file, outline, digests)
    assert abs(file.stat().st_size - outline.num_bytes) < 1000


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    outline, digests = written(file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError, match=r"ffn_gate_inp"):
        check_file(file, outline, digests)


def test_a_changed_key_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    outline, digests = written(file)
    other = Outline(outline.architecture, {**KEYS, "x.share": 0.2, "x.words": ["a", "o"]}, outline.tensors)
    with pytest.raises(VerificationError, match=r"(?s)x\.share.*x\.words"):
        check_file(file, other, digests)


def test_a_tensor_of_another_type_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    outline, digests = written(file)
    tensors = [(MATRIX, Quantization.F16), *outline.tensors[1:]]
    with pytest.raises(VerificationError, match=r"attn_q"):
        check_file(file, Outline(outline.architecture, KEYS, tensors), digests)


def test_a_missing_tensor_and_a_cut_file_are_found(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    outline, digests = written(file)
    with pytest.raises(VerificationError, match=r"2 tensors in order"):
        check_file(file, Outline(outline.architecture, KEYS, outline.tensors[:2]), digests)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(VerificationError, match=r"a readable GGUF file"):
        check_file(file, outline, digests)


def test_values_beyond_the_type_are_refused() -> None:
    large = torch.tensor([[70_000.0] * 32])
    for kind in (Quantization.F32, Quantization.BF16, Quantization.Q8_0):
        encode("x", large, kind)
    with pytest.raises(CheckpointError, match=r"x: expected values up to 65504, found 70000"):
        encode("x", large, Quantization.F16)


HEADERS = {"fused": TensorInfo(Path("x"), "F32", (4, 8)), "empty": TensorInfo(Path("x"), "F32", (0, 8))}


def accounted(*uses: tuple[str, Part]) -> None:
    planned = [PlannedTensor(f"t{i}", (1,), (source,), part=part) for i, (source, part) in enumerate(uses)]
    account(planned, cast("TensorReader", SimpleNamespace(folder=Path("sparse"), tensors=HEADERS)))


def test_every_stored_tensor_goes_into_the_file_exactly_once() -> None:
    accounted(("fused", WHOLE))
    accounted(("fused", Part(1, 2)), ("fused", Part(0, 2)))
    for uses in ([Part(0, 2)], [Part(0, 2), Part(0, 2)], [WHOLE, WHOLE], [WHOLE, Part(0, 2), Part(1, 2)]):
        with pytest.raises(AssertionError, match="fused twice, or not all of it"):
            accounted(*(("fused", part) for part in uses))
    with pytest.raises(CheckpointError, match="none called other"):
        accounted(("fused", WHOLE), ("other", WHOLE))
    with pytest.raises(CheckpointError, match="only tensors that the architecture has, found fused"):
        accounted()
