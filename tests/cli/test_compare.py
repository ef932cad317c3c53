"""`expertweaver compare` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import PARTS, SETTINGS, Bench, refusal, run
from support.families import save_text
from typer.testing import Result


def compare(bench: Bench, *more: str | Path) -> Result:
    judged = save_text(bench.folder / "judged.jsonl", seed=1)
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    return run(
        "compare", bench.source, "--methods", "expertweaver", "--mlp-sparsity", "0.5", "--num-slices", "8",
        "--seeds", "1", "--calibration", bench.text, "--text", judged, "--out", bench.out, *settings, *more,
    )  # fmt: skip


def test_it_ends_with_the_table_and_the_paths(bench: Bench) -> None:
    result = compare(bench)
    assert result.exit_code == 0, result.output
    assert "static" in result.stdout
    assert "note: random was added" in result.stderr
    for name in ("comparison.json", "comparison.csv", "comparison.md", "quality.svg", "report.html"):
        assert str(bench.out / name) in result.stdout.splitlines()
        assert (bench.out / name).is_file()


def test_json_is_what_the_file_holds(bench: Bench) -> None:
    result = compare(bench, "--json")
    assert json.loads(result.stdout) == json.loads((bench.out / "comparison.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("arguments", "exit_code", "where", "found"),
    [
        (["--methods", "weeve"], 2, "--methods weeve: method.name", "'weeve'"),
        (["--mlp-sparsity", "0.5,half"], 2, "--mlp-sparsity", "'0.5,half'"),
        (["--mlp-sparsity", "0.5,0.3"], 2, "budget.mlp_sparsity", "0.3"),
        (["--num-slices", "7"], 2, "budget.num_slices", "7"),
        (["--set", "budget.num_slices=4"], 2, "--set budget.num_slices", "'budget.num_slices'"),
        (["--text", "nowhere.txt"], 3, "nowhere.txt", "nothing"),
        (["--dtype", "int8"], 2, "dtype", "'int8'"),
        (["--device", "cuda:9"], 2, "--device cuda:9", "GPUs that torch"),
    ],
)
def test_bad_requests_are_refused_in_four_parts(
    bench: Bench, arguments: list[str], exit_code: int, where: str, found: str
) -> None:
    _, problems = refusal(compare(bench, "--json", *arguments), exit_code)
    assert tuple(problems[0]) == PARTS
    assert problems[0]["where"] == where
    assert found in problems[0]["found"]
    assert bench.ours == []


def test_calibrating_on_the_evaluation_text_is_refused(bench: Bench) -> None:
    error, [problem] = refusal(compare(bench, "--json", "--text", bench.text), 3)
    assert error == "CalibrationError"
    assert "24 of 48 documents" in problem["found"]
    assert bench.ours == []
