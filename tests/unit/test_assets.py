"""What ships: the model loads, the text is small, held-out text shares nothing with calibration text."""

from __future__ import annotations

import json
import re
from pathlib import Path

from expertweaver.assets import FOLDER, shipped_calibration, shipped_heldout, shipped_model
from expertweaver.calibration.documents import Document, read_documents
from expertweaver.dense.model import open_dense

SPAN = 13
DOMAINS = {"literature", "drama", "math", "wiki"}


def spans(documents: list[Document]) -> set[tuple[str, ...]]:
    found = set()
    for document in documents:
        words = re.findall(r"\w+", document.text.lower())
        found |= {tuple(words[i : i + SPAN]) for i in range(len(words) - SPAN + 1)}
    return found


def test_heldout_and_calibration_text_share_no_span_of_words() -> None:
    calibration = read_documents([str(shipped_calibration())])
    heldout = read_documents([str(shipped_heldout())])
    assert {d.domain for d in calibration} == {d.domain for d in heldout} == DOMAINS
    first, second = spans(calibration), spans(heldout)
    assert len(first) > 50_000
    assert len(second) > 10_000
    assert not first & second
    assert spans(calibration[:3]) & first, "the comparison itself must be able to find a shared span"


def test_the_text_stays_under_a_megabyte() -> None:
    files = [shipped_heldout(), *Path(shipped_calibration()).glob("*.jsonl")]
    assert len(files) == 5
    assert sum(file.stat().st_size for file in files) < 1_000_000


def test_every_domain_of_the_heldout_text_has_several_documents() -> None:
    rows = [json.loads(line) for line in shipped_heldout().read_text("utf-8").splitlines()]
    assert all(sum(row["domain"] == domain for row in rows) >= 8 for domain in DOMAINS)


def test_the_shipped_model_is_convertible() -> None:
    dense = open_dense(str(shipped_model()))
    assert (dense.family.name, dense.dims.intermediate_size, dense.num_params) == ("llama", 1024, 6_950_144)


def test_licences_of_what_ships_are_there() -> None:
    texts = [file.read_text("utf-8") for file in (FOLDER / "licences").iterdir()]
    assert any("MIT License" in text and "OpenAI" in text for text in texts)
    assert any("CC BY-SA" in text or "Creative Commons Attribution-ShareAlike" in text for text in texts)
