"""llama.cpp itself on our GGUF files, against transformers on the checkpoint. Opt in:

EXPERTWEAVER_LLAMA_PYTHON=path/to/python make test

The variable names a Python that has llama_cpp; docs/gguf.md says how to make one. Skipped, visibly, without it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.families import VARIANTS
from support.sparse import convert_variant
from transformers import AutoModelForCausalLM, AutoTokenizer

from expertweaver import convert, export, make_recipe
from expertweaver.assets import shipped_heldout, shipped_model

PYTHON = os.environ.get("EXPERTWEAVER_LLAMA_PYTHON")
RUNNER = Path(__file__).parents[1] / "support" / "llama_runner.py"

pytestmark = pytest.mark.skipif(PYTHON is None, reason="EXPERTWEAVER_LLAMA_PYTHON names no Python with llama_cpp")

MEAN_DIFFERENCE = {"f32": 1e-4, "bf16": 2e-3, "f16": 2e-3, "q8_0": 2e-2}
"""Largest mean |difference| of logits by type, as a share of the logits' standard deviation."""

MIN_AGREEMENT = {"f32": 1.0, "bf16": 0.97, "f16": 0.97, "q8_0": 0.9}
"""Smallest share of positions whose most likely token is the same."""

REFUSED = {"llama-3-rope"}
"""Variants that llama.cpp cannot compute; the default tests see the refusal."""

TEXTS = (
    "Once upon a time, in 1984, there was a fox.",
    "  two spaces,\n\na blank line\tand a tab",
    "don't, we'll, IT'S 3.14159 and 1234567",
    "Grüße aus Köln - naïve café, 東京, 🙂",
    "for (int i = 0; i < n; ++i) { x += a[i]; }",
    "",
)


def llama(file: Path, scratch: Path, **request: Any) -> tuple[dict[str, Any], np.ndarray[Any, Any] | None]:
    """What llama.cpp says, and the logits if ids were given."""
    logits = scratch / "logits.npy"
    (scratch / "request.json").write_text(json.dumps({"file": str(file), "logits": str(logits), **request}))
    command = ["nice", "-n", "15", str(PYTHON), str(RUNNER), str(scratch / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), np.load(logits) if "ids" in request else None


@torch.inference_mode()
def compare(folder: Path, ids: list[int], quantize: str, scratch: Path) -> tuple[float, float, float]:
    """Largest and mean |difference| of logits as shares of their standard deviation, and the share of equal choices."""
    file = export(folder, scratch / f"{quantize}.gguf", quantize=quantize, overwrite=True).path
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = model(torch.tensor([ids])).logits[0].numpy()
    _, found = llama(file, scratch, ids=ids)
    assert found is not None
    assert found.shape == expected.shape
    scale = expected.std()
    difference = np.abs(found - expected)
    agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    return float(difference.max() / scale), float(difference.mean() / scale), agreement


def say(name: str, quantize: str, numbers: tuple[float, float, float]) -> None:
    """Print a row of the table in docs/gguf.md (pytest -s shows it)."""
    largest, mean, agreement = numbers
    print(f"| {name} | {quantize} | {largest:.1e} | {mean:.1e} | {agreement:.1%} |", file=sys.stderr)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model at 50 % by the paper's method: quick, and in slices of 32 that Q8_0 fits."""
    settings = {"mlp_sparsity": 0.5, "method": "expertweaver", "num_slices": 32}
    out = tmp_path_factory.mktemp("shipped") / "mix7m-50"
    return convert(make_recipe(shipped_model(), settings=settings), out).path


@pytest.mark.parametrize("quantize", ["f32", "f16", "bf16", "q8_0"])
def test_logits_of_the_shipped_model(quantize: str, shipped: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(shipped)
    text = shipped_heldout().read_text("utf-8").splitlines()[0]
    ids = tokenizer(json.loads(text)["text"])["input_ids"][:200]
    numbers = compare(shipped, ids, quantize, tmp_path)
    say("shipped, 50 %", quantize, numbers)
    assert numbers[1] < MEAN_DIFFERENCE[quantize]
    assert numbers[2] >= MIN_AGREEMENT[quantize]


def test_tokens_and_text_of_the_shipped_model(shipped: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(shipped)
    file = export(shipped, tmp_path / "model.gguf").path
    prompt = tokenizer("Once upon a time")["input_ids"]
    answer, _ = llama(file, tmp_path, texts=TEXTS, prompt=prompt, num_new=24)
    assert answer["tokens"] == [tokenizer(text)["input_ids"] for text in TEXTS]
    model: Any = AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.float32).eval()
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)[0]
    text = tokenizer.decode(answer["generated"])
    print(f"llama.cpp {answer['version']} goes on: {text!r}", file=sys.stderr)
    assert answer["generated"] == expected[len(prompt) :].tolist()


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - REFUSED))
@pytest.mark.parametrize("quantize", ["f32", "q8_0"])
def test_logits_of_every_family(variant: str, quantize: str, tmp_path: Path) -> None:
    """Random weights, so that a lost bias, norm or rotary factor shows; 100 positions reach beyond every scaling."""
    folder = convert_variant(variant, tmp_path)
    ids = torch.randint(2, 96, (100,), generator=torch.Generator().manual_seed(7)).tolist()
    numbers = compare(folder, ids, quantize, tmp_path)
    say(variant, quantize, numbers)
    assert numbers[1] < MEAN_DIFFERENCE[quantize]
    assert numbers[2] >= MIN_AGREEMENT[quantize]
