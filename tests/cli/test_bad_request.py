"""Requests that make no sense: refused in four parts with exit code 2, all problems at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.commands import Bench, Case, Complaint, bad_request, check_refused, refusal, run
from support.spoils import bad_recipe

KEYS = "docs/recipe.md"
SPARSITY = "budget.mlp_sparsity"
SLICES = "budget.num_slices"


def bad_value(key: str, value: str, expected: str, found: str, fix: str = KEYS) -> Case:
    """One `--set` that is wrong."""
    text = f"{key}={value}"
    return bad_request(text, Complaint(key, expected, found, fix), "--set", text)


def unknown(flag: str, value: str, where: str, suggestion: str) -> Case:
    words = Complaint(where, "one of", f"'{value}'", f"Did you mean '{suggestion}'?")
    return bad_request(f"{flag} {value}", words, flag, value)


def bad_setting(text: str, where: str, expected: str, found: str, fix: str) -> Case:
    return bad_request(f"--set {text}", Complaint(where, expected, found, fix), "--set", text)


def bad_budget(name: str, complaints: Complaint | tuple[Complaint, ...], *arguments: str) -> Case:
    return Case(name, complaints, arguments=arguments, error="PartitionError", exit_code=2)


def bad_file(name: str, text: str, expected: str, found: str) -> Case:
    return bad_recipe(name, text, Complaint("recipe.yaml", expected, found, KEYS))


BUDGETS = (
    bad_value(SPARSITY, "1.0", "less than 1", "1.0"),
    bad_value(SPARSITY, "-0.1", "greater than or equal to 0", "-0.1"),
    bad_value(SPARSITY, ".nan", "a finite number", "nan"),
    bad_value(SLICES, "1", "greater than or equal to 2", "1"),
    bad_budget(
        "0.3 of 64 slices",
        Complaint(SPARSITY, "steps of 1/64", "0.3, which leaves 44.8 of 64", "0.296875 (45 active slices) or 0.3125"),
        *("--mlp-sparsity", "0.3", "--num-slices", "64"),
    ),
    bad_budget(
        "no slice active",
        Complaint(SPARSITY, "at least one", "0.99, which leaves 0.08 of 8", "0.875 (1 active slices)"),
        *("--mlp-sparsity", "0.99"),
    ),
    bad_budget(
        "12 slices of 64 neurons",
        Complaint(SLICES, "a divisor of intermediate_size 64", "12", "2, 4, 8, 16"),
        *("--num-slices", "12"),
    ),
    bad_budget(
        "more slices than neurons",
        Complaint(SLICES, "a divisor of intermediate_size 64", "128", "8, 16, 32, 64"),
        *("--num-slices", "128"),
    ),
)

VALUES = (
    bad_value("budget.mlp_sparsitty", "0.5", "a known key", "'mlp_sparsitty'", "Did you mean 'mlp_sparsity'?"),
    bad_value("method.tauu", "0.5", "a known key", "'tauu'", "Did you mean 'tau'?"),
    bad_value("calibration.sequence_length", "4", "greater than or equal to 8", "4"),
    bad_value("calibration.num_samples", "lots", "a valid integer", "'lots'"),
    bad_value("calibration.paths", "text", "a valid tuple", "'text'"),
    bad_value("calibration.seed", "1" + "0" * 30, "less than 4294967296", "1" + "0" * 30),
    bad_value("method.seed", "-1", "greater than or equal to 0", "-1"),
    bad_value("output.dtype", "float8", "'auto', 'float32', 'bfloat16' or 'float16'", "'float8'"),
    bad_value("budget", "3", "a valid dictionary", "3"),
    unknown("--method", "expertweever", "method.name", "expertweaver"),
    unknown("--format", "glm4-moe", "output.format", "glm4_moe"),
    unknown("--preset", "paper-52", "preset", "paper-25"),
    bad_setting("bugdet.num_slices=3", "bugdet", "a known key", "'bugdet'", "Did you mean 'budget'?"),
    bad_setting("method.tau", "--set", "key=value", "'method.tau'", "--set method.tau=0.5"),
    bad_setting("=3", "--set", "key=value", "'=3'", "--set method.tau=0.5"),
    bad_setting("method.tau=[1", "--set method.tau", "a YAML value", "'[1'", "Quote it"),
    bad_setting("method.tau=-1", "method", "tau positive or 'auto'", "'tau': -1", KEYS),
    bad_setting("method.alpha_min=0.9", "method", "at most alpha_max 0.7", "'alpha_min': 0.9", KEYS),
    bad_setting("method.tau=.nan", "method.tau", "a finite number or 'auto'", "nan", KEYS),
    bad_request(
        "an option of another method",
        Complaint("method.tau", "a known key", "'tau'", "Known: name, num_shared_slices, repair, seed"),
        *("--method", "random", "--set", "method.tau=0.5"),
    ),
)

FILES = (
    bad_file("a key twice", "budget:\n  num_slices: 8\n  num_slices: 4\n", "valid YAML", "'num_slices' given twice"),
    bad_file("no YAML", "a: [1", "valid YAML", "line 1, column 6"),
    bad_file("YAML that is a list", "- a", "a mapping of sections", "list"),
    bad_file("YAML that runs code", "a: !!python/object/apply:os.getcwd []", "valid YAML", "could not determine"),
    bad_file("YAML too deep", "[" * 500, "valid YAML", "recursion"),
    bad_request(
        "missing recipe file",
        Complaint("none.yaml", "a readable recipe file", "No such file", "Check the path"),
        *("--recipe", "BENCH/none.yaml"),
    ),
)


def beyond_stock(method: str, found: str, fix: str, *settings: str) -> Case:
    """A method whose design the default format cannot hold, or no format at all."""
    words = Complaint(f"method {method}", "what the format glm4_moe can hold", found, fix)
    arguments = ("--method", method, *(word for setting in settings for word in ("--set", setting)))
    return Case(" ".join(("beyond", method, *settings)), words, arguments=arguments, error="ArchitectureError")


BEYOND = (
    beyond_stock("abstopk", "an oracle's knowledge", "`expertweaver compare`, or set method.name=weave."),
    beyond_stock("contribution_oracle", "an oracle's knowledge", "`expertweaver compare`, or set method.name=weave."),
    beyond_stock("cmoe", "|gate_act * up_value| of one neuron", "`expertweaver compare`, or set method.name=weave."),
    beyond_stock("read_me", "overlapping experts", "Pass --format expertweaver_moe. Or compare it"),
    beyond_stock(
        "flap",
        "an output bias",
        "Pass --format expertweaver_moe. Or compare it with `expertweaver compare`, or set method.bias=false",
    ),
    beyond_stock(
        "flap", "layers of unequal width", "Pass --format expertweaver_moe.", "method.bias=false", "method.scope=global"
    ),
    beyond_stock(
        "flap", "an output bias and layers of unequal width", "Pass --format expertweaver_moe.", "method.scope=global"
    ),
)

SEVERAL = (
    bad_request(
        "several wrong values",
        (
            Complaint("calibration.num_samples", "greater than or equal to 2", "0", KEYS),
            Complaint("method.tauu", "a known key", "'tauu'", "'tau'"),
            Complaint(SPARSITY, "less than 1", "2.0", KEYS),
            Complaint(SLICES, "a valid integer", "'abc'", KEYS),
        ),
        *("--mlp-sparsity", "2", "--set", "budget.num_slices=abc"),
        *("--set", "method.tauu=1", "--set", "calibration.num_samples=0"),
    ),
    bad_budget(
        "several things that do not fit",
        (
            Complaint(SLICES, "a divisor", "12", "2, 4, 8, 16"),
            Complaint(SPARSITY, "steps of 1/12", "0.3", "0.25 (9 active slices)"),
            Complaint("output.dtype", "bfloat16 or float32", "float16", "underflows"),
            Complaint("none.txt", "a .txt", "nothing at this path", "Check"),
            Complaint("held.txt", "a .txt", "nothing at this path", "Check"),
        ),
        *("--num-slices", "12", "--mlp-sparsity", "0.3", "--dtype", "float16"),
        *("--calibration", "BENCH/none.txt", "--set", "evaluate.text=[BENCH/held.txt]"),
    ),
    Case(
        "float16",
        Complaint("output.dtype", "bfloat16 or float32", "float16", "Pass --dtype bfloat16 or --dtype float32"),
        arguments=("--dtype", "float16"),
        error="ArchitectureError",
    ),
)

CASES = (*BUDGETS, *VALUES, *FILES, *BEYOND, *SEVERAL)


@pytest.mark.parametrize("case", CASES, ids=[case.name[:60] for case in CASES])
def test_a_request_that_makes_no_sense_is_refused(case: Case, bench: Bench) -> None:
    check_refused(case, bench)


@pytest.mark.parametrize("arguments", [("--mlp-sparsty", "0.5"), ("--mlp-sparsity", "lots")])
def test_wrong_usage_has_the_exit_code_of_a_wrong_request(arguments: tuple[str, ...], bench: Bench) -> None:
    result = bench.convert(*arguments)
    assert result.exit_code == 2
    assert "--mlp-sparsity" in result.stderr
    assert bench.ours == []


REFUSALS: list[tuple[Callable[[Bench], list[Any]], int, str]] = [
    (lambda bench: ["plan", bench.folder / "none"], 3, "CheckpointError"),
    (lambda bench: ["plan", bench.source, "--num-slices", "7"], 2, "PartitionError"),
    (lambda bench: ["inspect", bench.folder / "none"], 3, "CheckpointError"),
    (lambda bench: ["inspect", bench.source, "--hashes"], 3, "CheckpointError"),
    (lambda bench: ["evaluate", bench.folder / "none", "--text", bench.text], 3, "CheckpointError"),
    (lambda bench: ["evaluate", bench.source, "--text", bench.folder / "none.txt"], 3, "CalibrationError"),
    (lambda bench: ["evaluate", bench.source, "--text", bench.text, "--dtype", "int8"], 2, "RecipeError"),
    (lambda bench: ["evaluate", bench.source, "--text", bench.text, "--device", "cuda:9"], 2, "cuda:9: expected a GPU"),
    (lambda bench: ["ls", "models"], 2, "Invalid value"),
]


@pytest.mark.parametrize(("arguments", "exit_code", "words"), REFUSALS)
def test_every_verb_refuses_alike(
    arguments: Callable[[Bench], list[Any]], exit_code: int, words: str, bench: Bench
) -> None:
    result = run(*arguments(bench))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == exit_code
    assert words in result.stderr
    assert not result.stdout


def test_a_full_gpu_is_told_as_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")

    monkeypatch.setattr("expertweaver.conversion.convert", fail)
    error, [problem] = refusal(bench.convert("--json"), 2)
    assert (error, problem["where"]) == ("RecipeError", "--device")
    assert problem["found"] == "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert "Leave --device out" in problem["fix"]


def test_a_bug_keeps_its_traceback_and_has_its_own_exit_code(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("expertweaver.conversion.convert", fail)
    result = bench.convert()
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)
