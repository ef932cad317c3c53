"""No code of a model is run, no token is written down, and nothing is asked of the network that nobody named."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from support.commands import Bench, run
from support.families import save_text
from support.models import edit_config, edit_json
from typer.testing import Result

TOKEN = "hf_CANARYcanaryCANARYcanaryCANARY"
EVIL = """
import pathlib
pathlib.Path({canary!r}).write_text("ran")
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class Config(PretrainedConfig): model_type = "llama"
class Model(PreTrainedModel): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""


def every_verb(bench: Bench) -> dict[str, Result]:
    """Each verb that looks at a model, with the converted one where there is one."""
    judged = save_text(bench.folder / "judged.jsonl", seed=1)
    settings = [word for word in bench.arguments() if "calibration." in str(word) or word == "--set"]
    results = {
        "plan": run("plan", bench.source, "--num-slices", "8"),
        "inspect": run("inspect", bench.source),
        "convert": bench.convert("--set", f"evaluate.text=[{judged}]"),
        "compare": run(
            "compare", bench.source, "--methods", "static", "--mlp-sparsity", "0.5", "--num-slices", "8",
            "--seeds", "1", "--calibration", bench.text, "--text", judged, "--out", bench.folder / "table", *settings,
        ),
    }  # fmt: skip
    model = bench.out if bench.out.exists() else bench.source
    report = bench.folder / "page.html"
    results["evaluate"] = run("evaluate", model, "--against", bench.source, "--text", judged, "--report", report)
    results["inspect result"] = run("inspect", model, "--json")
    return results


@pytest.fixture
def canary(bench: Bench) -> Path:
    """A model folder with code in it that leaves this file when it is run."""
    canary = bench.folder / "canary"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "setup.py", "conftest.py"):
        (bench.source / name).write_text(EVIL.format(canary=str(canary)), encoding="utf-8")
    (bench.source / "__init__.py").write_text(EVIL.format(canary=str(canary)), encoding="utf-8")
    return canary


def test_the_canary_sings(canary: Path, bench: Bench) -> None:
    """Else the tests below would pass whatever is run."""
    exec(compile((bench.source / "modeling_evil.py").read_text("utf-8"), "evil", "exec"), {})
    assert canary.exists()


def test_no_code_for_the_model_is_run(canary: Path, bench: Bench) -> None:
    edit_config(
        bench.source,
        auto_map={
            "AutoConfig": "configuration_evil.Config",
            "AutoModelForCausalLM": "modeling_evil.Model",
            "AutoModel": "modeling_evil.Model",
        },
        architectures=["Model"],
    )
    edit_json(bench.source / "generation_config.json", custom_generate="modeling_evil.py")
    results = every_verb(bench)
    assert {verb: result.exit_code for verb, result in results.items()} == dict.fromkeys(results, 0)
    assert not canary.exists()
    assert "auto_map" not in (bench.out / "config.json").read_text("utf-8")
    assert not list(bench.out.rglob("*.py"))


def test_no_code_for_the_tokenizer_is_run_unless_asked(canary: Path, bench: Bench) -> None:
    edit_json(
        bench.source / "tokenizer_config.json",
        tokenizer_class="Tokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_evil.Tokenizer"]},
    )
    results = every_verb(bench)
    assert not canary.exists()
    assert results["convert"].exit_code in (0, 3)
    assert "Traceback" not in results["convert"].output


def test_no_token_is_printed_or_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
    results = every_verb(bench)
    results["hub"] = run("plan", "owner/name")
    results["hub text"] = bench.convert("--calibration", "owner/name", "--overwrite")
    for verb, result in results.items():
        assert TOKEN not in result.output, verb
    files = [file for file in bench.folder.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if TOKEN.encode() in file.read_bytes()] == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to reach another machine; all of them fail, though the libraries think that they are online."""
    attempts: list[Any] = []

    def refuse(*arguments: Any, **options: Any) -> Any:
        attempts.append(arguments[1:] or arguments)
        raise OSError("the network is blocked")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    return attempts


def test_nothing_is_asked_of_the_network(bench: Bench, asked: list[Any]) -> None:
    results = every_verb(bench)
    assert {verb: result.exit_code for verb, result in results.items()} == dict.fromkeys(results, 0)
    assert asked == []
    assert json.loads(results["inspect result"].stdout)["manifest"]


def test_a_hub_id_is_asked_for_so_that_the_block_is_known_to_hold(asked: list[Any]) -> None:
    result = run("plan", "owner/name")
    assert result.exit_code == 3
    assert asked
