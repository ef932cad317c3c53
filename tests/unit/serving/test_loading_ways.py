"""The three ways to our own class: code from the folder, the installed package, vLLM's plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support.families import save_text, save_variant
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from expertweaver import convert, evaluate, make_recipe
from expertweaver.formats.expertweaver_moe import MODELING_FILE
from expertweaver.serving import modeling_expertweaver_moe as ours
from expertweaver.serving.registration import ARCHITECTURE, VLLM_BACKEND, register, vllm_plugin

ALONE = """
import sys
sys.modules["expertweaver"] = None  # as if it were not installed
import torch
from transformers import AutoModel, AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).config.model_type == "expertweaver_moe"
model.save_pretrained(sys.argv[2])
again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True).eval()
with torch.inference_mode():
    logits = again(torch.arange(2, 30)[None]).logits
torch.save(logits, sys.argv[3])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model whose layers differ."""
    place = tmp_path_factory.mktemp("ways")
    settings = {
        "format": "expertweaver_moe",
        "method": "flap",
        "method.scope": "global",
        "num_slices": 8,
        "mlp_sparsity": 0.5,
        "calibration": [str(save_text(place / "text.jsonl"))],
        "calibration.sequence_length": 32,
    }
    return convert(make_recipe(save_variant("gemma2", place / "dense"), settings=settings), place / "sparse").path


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(torch.arange(2, 30)[None]).logits


def test_the_file_in_the_folder_is_the_package_s_own(folder: Path) -> None:
    assert (folder / MODELING_FILE.name).read_bytes() == MODELING_FILE.read_bytes()
    named = json.loads((folder / "config.json").read_text("utf-8"))["auto_map"]
    assert set(named) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert all(hasattr(ours, place.removeprefix(f"{MODELING_FILE.stem}.")) for place in named.values())


def test_the_folder_alone_loads_with_remote_code_and_is_saved_with_it(folder: Path, tmp_path: Path) -> None:
    arguments = [str(folder), str(tmp_path / "again"), str(tmp_path / "logits.pt")]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([sys.executable, "-c", ALONE, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / MODELING_FILE.name).read_bytes() == MODELING_FILE.read_bytes()
    found = torch.load(tmp_path / "logits.pt")
    assert torch.allclose(found, logits(AutoModelForCausalLM.from_pretrained(folder)), atol=1e-5)


def test_the_installed_package_loads_it_without_remote_code(folder: Path) -> None:
    register()
    register()
    assert type(AutoConfig.from_pretrained(folder)) is ours.ExpertWeaverMoeConfig
    for auto, kind in ((AutoModel, ours.ExpertWeaverMoeModel), (AutoModelForCausalLM, ours.ExpertWeaverMoeForCausalLM)):
        assert isinstance(auto.from_config(AutoConfig.from_pretrained(folder)), kind)


@pytest.mark.parametrize("trust", [False, True])
def test_our_own_tool_never_runs_code_from_the_folder(folder: Path, tmp_path: Path, trust: bool) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (planted / file.name).write_bytes(file.read_bytes())
    (planted / MODELING_FILE.name).write_text("raise RuntimeError('code of the folder was run')\n", encoding="utf-8")
    text = save_text(tmp_path / "held-out.jsonl", seed=1)
    found = evaluate([planted], text=[str(text)], trust_remote_code=trust)
    assert found.models[0].quality("all").num_tokens > 0
    assert found.models[0].routing is None, "no layer runs routed experts"


def test_the_plugin_registers_the_class_with_transformers_and_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    vllm: Any = ModuleType("vllm")
    vllm.ModelRegistry = SimpleNamespace(register_model=lambda name, place: seen.update({name: place}))
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    vllm_plugin()
    assert seen == {ARCHITECTURE: VLLM_BACKEND}
    assert ours.ExpertWeaverMoeForCausalLM.__name__ == ARCHITECTURE


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {
        "expertweaver": f"{vllm_plugin.__module__}:{vllm_plugin.__name__}"
    }
