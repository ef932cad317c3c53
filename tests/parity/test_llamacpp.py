"""llama.cpp itself on our GGUF files, against transformers on the checkpoint. Opt in:

EXPERTWEAVER_LLAMA_PYTHON=path/to/python python -m pytest -s tests/parity/test_llamacpp.py

The variable names a Python that has llama_cpp; docs/gguf.md says how to make one. Skipped, visibly, without it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.llamacpp import EXPORTED
from support.sparse import convert_variant
from transformers import AutoModelForCausalLM, AutoTokenizer

from expertweaver import convert, export, make_recipe
from expertweaver.assets import shipped_heldout, shipped_model
from expertweaver.gguf.architectures.parts import layers

PYTHON = os.environ.get("EXPERTWEAVER_LLAMA_PYTHON")
RUNNER = Path(__file__).parents[1] / "support" / "llama_runner.py"

pytestmark = pytest.mark.skipif(PYTHON is None, reason="EXPERTWEAVER_LLAMA_PYTHON names no Python with llama_cpp")

MEDIAN_DIFFERENCE = {"f32": 2e-6, "f16": 1e-3, "bf16": 1e-2, "q8_0": 5e-2}
"""Largest median |difference| of logits by type, as a share of the logits' standard deviation."""

LARGEST_DIFFERENCE = 1e-4
"""The same for any logit of float32, at a position that no tie acts on."""

MIN_AGREEMENT = {"f32": 1.0, "f16": 0.99, "bf16": 0.95, "q8_0": 0.85}
"""Smallest share of positions whose most likely token is the same; for float32 where no tie acts on them."""

MIN_UNTIED = 50
"""Positions that no tie acts on, fewest to judge by."""

TIE = 2.4e-7
"""Scores near 1/2 that are this close are neighbours in float32: which expert is chosen hangs on the last bit."""

RANDOM: list[list[int]] = torch.randint(2, 96, (8, 50), generator=torch.Generator().manual_seed(7)).tolist()

TEXTS = (
    "Once upon a time, in 1984, there was a fox.",
    "  two spaces,\n\na blank line\tand a tab",
    "don't, we'll, IT'S 3.14159 and 1234567",
    "Grüße aus Köln - naïve café, 東京, 🙂",
    "for (int i = 0; i < n; ++i) { x += a[i]; }",
    "",
)


@dataclass(frozen=True)
class Comparison:
    """Logits of llama.cpp and transformers: differences as shares of the standard deviation, by window and position.

    `tied` says at which positions a choice of this or an earlier one in the window was a tie.
    """

    difference: np.ndarray[Any, Any]
    same_choice: np.ndarray[Any, Any]
    tied: np.ndarray[Any, Any]

    def check(self, name: str, quantize: str) -> None:
        """Print a row of the table in docs/gguf.md (pytest -s shows it), then insist on the tolerances."""
        median, largest = float(np.median(self.difference)), float(self.difference.max())
        untied = float(self.difference[~self.tied].max())
        numbers = (
            f"{median:.1e} | {largest:.1e} | {untied:.1e} | {self.same_choice.mean():.1%} | {self.tied.mean():.0%}"
        )
        print(f"| {name} | {quantize} | {numbers} |", file=sys.stderr)
        assert (~self.tied).sum() >= MIN_UNTIED
        assert median < MEDIAN_DIFFERENCE[quantize]
        if quantize == "f32":
            assert untied < LARGEST_DIFFERENCE
            assert self.same_choice[~self.tied].all()
        assert self.same_choice.mean() >= MIN_AGREEMENT[quantize] or quantize == "f32"


def llama(file: Path, scratch: Path, **request: Any) -> tuple[dict[str, Any], np.ndarray[Any, Any] | None]:
    """What llama.cpp says, and the logits if windows of ids were given."""
    logits = scratch / "logits.npy"
    (scratch / "request.json").write_text(json.dumps({"file": str(file), "logits": str(logits), **request}))
    command = ["nice", "-n", "15", str(PYTHON), str(RUNNER), str(scratch / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), np.load(logits) if "windows" in request else None


def scores(router: Any, x: torch.Tensor) -> torch.Tensor:
    """What experts are chosen by, near 1/2: sigmoids with their bias, or softmax scores times half their number."""
    logits = x @ router.weight.T
    if hasattr(router, "e_score_correction_bias"):
        return logits.sigmoid() + router.e_score_correction_bias
    return logits.softmax(dim=-1) * (len(router.weight) / 2)


@torch.inference_mode()
def dense_logits(folder: Path, windows: list[list[int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Logits of transformers [windows, positions, vocabulary], and where a tie between experts acts on them."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    margins: list[torch.Tensor] = []

    def watch(router: Any, inputs: Any, _: Any) -> None:
        best = scores(router, inputs[0].reshape(len(windows), -1, router.weight.shape[1]))
        best = best.sort(dim=-1, descending=True).values
        if router.top_k < router.weight.shape[0]:
            margins.append(best[..., router.top_k - 1] - best[..., router.top_k])

    for layer in model.model.layers:
        router = layer.mlp.gate if hasattr(layer, "mlp") else layer.block_sparse_moe.router
        router.register_forward_hook(watch)
    logits = model(torch.tensor(windows)).logits.numpy()
    assert len(margins) == len(model.model.layers)
    ties = torch.stack(margins).amin(dim=0) <= TIE
    return logits, (ties.cumsum(dim=1) > 0).numpy()


def compare(folder: Path, windows: list[list[int]], quantize: str, scratch: Path) -> Comparison:
    """Logits of a GGUF file of this type in llama.cpp against those of transformers on the checkpoint."""
    file = export(folder, scratch / f"{quantize}.gguf", quantize=quantize, overwrite=True).path
    expected, tied = dense_logits(folder, windows)
    _, found = llama(file, scratch, windows=windows)
    assert found is not None
    assert found.shape == expected.shape
    difference = np.abs(found - expected) / expected.std()
    return Comparison(difference, found.argmax(axis=-1) == expected.argmax(axis=-1), tied)


METHODS = {
    "glm4_moe": {"method": "expertweaver"},
    "granitemoeshared": {
        "format": "granitemoeshared", "method": "weave", "method.router_bias": False, "method.shared_share": 0.25,
        "method.router_steps": 50, "calibration.num_samples": 16, "calibration.sequence_length": 128,
    },
}  # fmt: skip
"""For the shipped model: quick ones, the second as a model with Llama 3's factors would be converted."""


@pytest.fixture(scope="module", params=METHODS)
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model at 50 %, in slices of 32 that Q8_0 fits; the folder is called as the format."""
    settings = {"mlp_sparsity": 0.5, "num_slices": 32, **METHODS[request.param]}
    out = tmp_path_factory.mktemp("shipped") / request.param
    return convert(make_recipe(shipped_model(), settings=settings), out).path


@pytest.mark.parametrize("quantize", ["f32", "f16", "bf16", "q8_0"])
def test_logits_of_the_shipped_model(quantize: str, shipped: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(shipped)
    lines = shipped_heldout().read_text("utf-8").splitlines()
    ids = [tokenizer(json.loads(line)["text"])["input_ids"][:40] for line in lines]
    windows = [window for window in ids if len(window) == 40][::4][:16]
    assert len(windows) == 16
    compare(shipped, windows, quantize, tmp_path).check(f"shipped, {shipped.name}", quantize)


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


@pytest.mark.parametrize(("variant", "stored_format"), EXPORTED)
def test_logits_of_every_family(variant: str, stored_format: str, tmp_path: Path) -> None:
    """Random weights, so that a lost bias, norm or rotary factor shows; 50 positions reach beyond every scaling."""
    folder = convert_variant(variant, tmp_path, stored_format=stored_format)
    for quantize in ("f32", "q8_0"):
        compare(folder, RANDOM, quantize, tmp_path).check(f"{variant}, {stored_format}", quantize)


@pytest.mark.parametrize(
    ("variant", "stored_format"),
    [(v, f) for v, f in EXPORTED if v in ("llama-3-rope", "phi3-longrope")],
)
def test_lost_rotary_factors_would_be_seen(
    variant: str, stored_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file without its factors, which llama.cpp reads without a word: the comparison above must not pass."""
    folder = convert_variant(variant, tmp_path, stored_format=stored_format)
    monkeypatch.setattr(layers, "factor_tensors", lambda config: [])
    found = compare(folder, RANDOM, "f32", tmp_path)
    print(f"{variant}, {stored_format} without factors: median {np.median(found.difference):.1e}", file=sys.stderr)
    assert np.median(found.difference) > 1000 * MEDIAN_DIFFERENCE["f32"]
