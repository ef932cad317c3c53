"""Every verb on a model that is good: what it prints, what it writes, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import NUM_SLICES, Bench, hashes, run
from support.models import edit_config

import expertweaver
from expertweaver.checkpoint import shards
from expertweaver.registry import PACKAGE_FOLDER

VERBS = ("convert", "plan", "evaluate", "compare", "inspect", "export", "push", "ls", "demo")
HEAVY = ("torch", "transformers", "numpy", "pandas", "datasets", "plotly")
WRITTEN = {
    "config.json",
    "generation_config.json",
    "model-00001-of-00004.safetensors",
    "model-00002-of-00004.safetensors",
    "model-00003-of-00004.safetensors",
    "model-00004-of-00004.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "expertweaver/manifest.json",
    "expertweaver/partition.safetensors",
    "expertweaver/recipe.yaml",
    "expertweaver/report.html",
    "expertweaver/run.json",
}
OF_THE_RUN = {"expertweaver/run.json"}
"""Times and facts of the machine; every other file follows from the recipe alone."""


@pytest.fixture
def converted(bench: Bench) -> Bench:
    """A bench with a finished conversion."""
    result = bench.convert()
    assert result.exit_code == 0, result.output
    return bench


WRITTEN_LAST = {*OF_THE_RUN, "expertweaver/manifest.json", "expertweaver/report.html"}
"""What the manifest records no hash of."""


def recipe_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "expertweaver" / "recipe.yaml").read_text("utf-8"))


def of_the_recipe(folder: Path) -> dict[str, str]:
    """Hashes of the files that must not depend on when and where they were written."""
    return {name: digest for name, digest in hashes(folder).items() if name not in OF_THE_RUN}


def weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(folder).items() if name.endswith(".safetensors")}


def test_help_of_every_verb_needs_no_library() -> None:
    program = f"""
import sys
import expertweaver
assert expertweaver.__version__ and "convert" in dir(expertweaver)
from typer.testing import CliRunner
from expertweaver.cli.app import app
for arguments in [["--help"], ["--version"], *([verb, "--help"] for verb in {VERBS}), ["ls", "methods"]]:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and result.output, arguments
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_installed_command_refuses_without_a_traceback(tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "expertweaver"
    arguments = [str(command), "convert", str(tmp_path / "none"), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("CheckpointError: ")
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert list(tmp_path.iterdir()) == []


def test_verbs_are_those_of_the_package() -> None:
    text = run("--help").output
    assert all(verb in text for verb in VERBS)
    assert {"convert", "plan", "evaluate", "compare", "inspect", "demo"} <= set(expertweaver.__all__)
    for name in expertweaver.__all__:
        assert getattr(expertweaver, name) is not None


def test_version() -> None:
    assert run("--version").stdout.strip() == expertweaver.__version__


def test_convert_writes_a_complete_folder(converted: Bench) -> None:
    assert set(hashes(converted.out)) == WRITTEN
    assert converted.ours == [converted.out.name]
    manifest = json.loads((converted.out / "expertweaver" / "manifest.json").read_text("utf-8"))
    assert manifest["budget"]["num_slices"] == NUM_SLICES
    assert manifest["calibration"]["shipped"] is False
    assert manifest["files_sha256"] == {
        name: digest for name, digest in hashes(converted.out).items() if name not in WRITTEN_LAST
    }


def test_convert_prints_pure_json_on_standard_output(bench: Bench) -> None:
    result = bench.convert("--json")
    answer = json.loads(result.stdout)
    assert answer["path"] == str(bench.out)
    assert answer["manifest"]["stored"]["moe_intermediate_size"] == 64 // NUM_SLICES
    assert set(answer["seconds"]) == {"prepare", "profile", "layers", "verify", "evaluate"}


def test_convert_names_what_it_wrote_and_measured(bench: Bench) -> None:
    lines = dict(line.split("  ", 1) for line in bench.convert().stdout.splitlines())
    assert lines["written"].strip() == str(bench.out)
    assert Path(lines["report"].strip()).is_file()
    assert lines["mlp_sparsity"].strip() == "25.0%"
    assert "all experts on equals dense to" in lines["verified"]


@pytest.mark.parametrize("arguments", [("--dry-run",), ("--dry-run", "--json")])
def test_a_dry_run_writes_nothing(arguments: tuple[str, ...], bench: Bench) -> None:
    before = hashes(bench.folder)
    result = bench.convert(*arguments)
    assert result.exit_code == 0
    assert hashes(bench.folder) == before
    assert bench.ours == []


def test_a_plan_reads_no_weight(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: Any) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("expertweaver.dense.reader.TensorReader.read", read)
    assert run(*bench.arguments(verb="plan")).exit_code == 0


def test_a_plan_says_what_the_conversion_then_does(bench: Bench) -> None:
    plan = json.loads(run(*bench.arguments("--json", verb="plan")).stdout)
    budget = json.loads(bench.convert("--json").stdout)["manifest"]["budget"]
    for key in ("num_slices", "slice_width", "active_slices", "mlp_sparsity", "dense_num_params"):
        assert plan[key] == budget[key]
    assert budget["num_params"] <= plan["max_num_params"] < 1.1 * budget["num_params"]
    assert budget["num_active_params"] <= plan["max_num_active_params"]
    written = sum(file.stat().st_size for file in bench.out.glob("*.safetensors"))
    assert plan["output_bytes"] == pytest.approx(written, rel=0.1)


def test_plan_prints_for_people_too(bench: Bench) -> None:
    text = run("plan", bench.source, "--num-slices", "8").stdout
    assert "8 slices of 8 neurons, 6 active" in text
    assert "25.0%" in text
    assert bench.ours == []


def test_text_that_ships_is_used_and_said_so(bench: Bench) -> None:
    arguments = [argument for argument in bench.arguments() if argument not in ("--calibration", bench.text)]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "no calibration text given" in result.stderr
    manifest = json.loads((bench.out / "expertweaver" / "manifest.json").read_text("utf-8"))
    assert manifest["calibration"]["shipped"] is True
    assert len(manifest["calibration"]["domains"]) > 1
    assert "no calibration text given" not in bench.convert("--overwrite").stderr


def test_the_recipe_of_a_conversion_repeats_it_to_the_byte(converted: Bench) -> None:
    again = converted.folder / "again"
    result = run("convert", converted.source, again, "--recipe", converted.out / "expertweaver" / "recipe.yaml")
    assert result.exit_code == 0, result.output
    assert len(weights(again)) == 5
    different = {name for name, digest in hashes(again).items() if hashes(converted.out)[name] != digest}
    assert different <= {"expertweaver/run.json", "expertweaver/manifest.json", "expertweaver/report.html"}


def test_another_seed_gives_other_weights(converted: Bench) -> None:
    before = weights(converted.out)
    assert converted.convert("--set", "method.seed=1", "--overwrite").exit_code == 0
    assert weights(converted.out) != before


def test_parts_of_a_request_win_in_order(bench: Bench) -> None:
    file = bench.folder / "recipe.yaml"
    file.write_text(
        "budget: {mlp_sparsity: 0.5}\nmethod: {name: expertweaver, tau: 0.7, alpha_min: 0.1}\n", encoding="utf-8"
    )
    preset = bench.convert("--preset", "paper-12", "--json")
    assert preset.exit_code == 0, preset.output
    assert recipe_of(bench.out)["budget"] == {"mlp_sparsity": 0.125, "num_slices": NUM_SLICES}
    assert bench.convert("--overwrite", "--preset", "paper-12", "--recipe", file).exit_code == 0
    assert recipe_of(bench.out)["budget"]["mlp_sparsity"] == 0.5
    more = ("--overwrite", "--recipe", file, "--mlp-sparsity", "0.75", "--set", "method.tau=0.9")
    assert bench.convert(*more).exit_code == 0
    recipe = recipe_of(bench.out)
    assert recipe["budget"]["mlp_sparsity"] == 0.75
    assert (recipe["method"]["tau"], recipe["method"]["alpha_min"]) == (0.9, 0.1)
    assert bench.convert(*more, "--set", "budget.mlp_sparsity=0.125").exit_code == 0
    assert recipe_of(bench.out)["budget"]["mlp_sparsity"] == 0.125


def test_a_preset_alone_is_a_whole_recipe(bench: Bench) -> None:
    arguments = ["convert", bench.source, bench.out, "--preset", "relative-50", "--calibration", bench.text]
    assert run(*arguments, "--set", "calibration.sequence_length=16").exit_code == 0
    recipe = recipe_of(bench.out)
    assert recipe["budget"] == {"mlp_sparsity": 0.5, "num_slices": "auto"}
    assert recipe["method"]["alpha_relative_to"] == "active"


def test_overwrite_replaces_a_model_once_the_new_one_is_verified(bench: Bench) -> None:
    bench.earlier.rename(bench.out)
    assert bench.convert("--overwrite").exit_code == 0
    assert set(hashes(bench.out)) == WRITTEN
    assert bench.ours == [bench.out.name]


class Interrupt:
    """Writes shards until one is due at which somebody presses Ctrl-C; None never."""

    def __init__(self, at: str | None) -> None:
        self.at = at
        self.written: list[str] = []

    def __call__(self, file: Path, tensors: Any) -> None:
        if file.name == self.at:
            raise KeyboardInterrupt
        self.written.append(file.name)
        shards.write_shard(file, tensors)


@pytest.mark.parametrize("method", ["expertweaver", "weave"])
@pytest.mark.parametrize("shard", [2, 3, 4])
def test_a_stopped_run_continues_and_ends_the_same(
    shard: int, method: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a layer depends on the converted layers before it: those are run through again, not designed."""
    chosen = ("--method", method)
    assert bench.convert(*chosen).exit_code == 0
    uninterrupted = of_the_recipe(bench.out)
    bench.out.rename(bench.folder / "first")
    names = [f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)]
    monkeypatch.setattr("expertweaver.checkpoint.writer.write_shard", Interrupt(names[shard - 1]))
    stopped = bench.convert(*chosen)
    assert stopped.exit_code == 130
    assert "repeat the same command to continue" in stopped.stderr
    assert "Traceback" not in stopped.output
    assert bench.ours == [bench.partial.name]
    second = Interrupt(None)
    monkeypatch.setattr("expertweaver.checkpoint.writer.write_shard", second)
    continued = bench.convert(*chosen)
    assert continued.exit_code == 0, continued.output
    assert "continuing the run" in continued.stderr
    layers_finished = set(names[1 : min(shard - 1, 3)])
    assert set(second.written) == set(names) - layers_finished
    assert bench.ours == [bench.out.name]
    assert of_the_recipe(bench.out) == uninterrupted


def test_a_run_stopped_while_calibrating_continues(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.convert().exit_code == 0
    uninterrupted = of_the_recipe(bench.out)
    bench.out.rename(bench.folder / "first")
    from expertweaver.calibration.statistics import StatisticsFolder

    saved: list[int] = []
    save = StatisticsFolder.save

    def save_or_stop(self: StatisticsFolder, layer: int, statistics: Any) -> None:
        if saved == [0]:
            saved.append(-1)
            raise KeyboardInterrupt
        saved.append(layer)
        save(self, layer, statistics)

    monkeypatch.setattr(StatisticsFolder, "save", save_or_stop)
    assert bench.convert().exit_code == 130
    assert bench.convert().exit_code == 0
    assert saved == [0, -1, 1]
    assert of_the_recipe(bench.out) == uninterrupted


def test_evaluate_measures_beside_the_dense_model(converted: Bench) -> None:
    report = converted.folder / "quality.html"
    arguments = ["evaluate", converted.out, "--against", converted.source, "--text", converted.text]
    result = run(*arguments, "--max-tokens-per-document", "20", "--json", "--report", report)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert [model["name"] for model in answer["models"]] == ["dense", "sparse"]
    assert report.read_text("utf-8").startswith("<!doctype html>")


def test_evaluate_prints_a_table(converted: Bench) -> None:
    result = run("evaluate", converted.source, "--text", converted.text, "--context", "16")
    assert result.exit_code == 0, result.output
    assert "dense" in result.stdout
    assert "even" in result.stdout


def test_convert_evaluates_when_the_recipe_gives_text(bench: Bench) -> None:
    assert bench.convert("--set", f"evaluate.text=[{bench.text}]").exit_code == 0
    quality = json.loads((bench.out / "expertweaver" / "evaluation.json").read_text("utf-8"))
    assert [model["name"] for model in quality["models"]] == ["dense", "sparse"]
    assert quality["models"][1]["path"] == str(bench.out)
    assert "Not measured" not in (bench.out / "README.md").read_text("utf-8")


def test_inspect_a_dense_model(bench: Bench) -> None:
    found = json.loads(run("inspect", bench.source, "--json").stdout)
    assert found["convertible"] is True
    assert (found["family"], found["intermediate_size"], found["num_hidden_layers"]) == ("llama", 64, 2)
    assert found["num_params"] == found["num_stored_values"]
    assert "llama" in run("inspect", bench.source).stdout


def test_inspect_says_why_a_model_cannot_be_converted(bench: Bench) -> None:
    edit_config(bench.source, model_type="gpt2")
    found = json.loads(run("inspect", bench.source, "--json").stdout)
    assert found["convertible"] is False
    assert "not gated" in found["reason"]


def test_inspect_a_converted_model(converted: Bench) -> None:
    found = json.loads(run("inspect", converted.out, "--json").stdout)
    assert found["model_type"] == "glm4_moe"
    assert found["manifest"]["method"] == "expertweaver"
    assert found["num_shards"] == 4
    lines = run("inspect", converted.out).stdout.splitlines()
    header = lines.index("layer  shared  routed  chosen  CV > tau")
    assert [line.split()[0] for line in lines[header + 1 :]] == ["0", "1"]


def test_inspect_finds_one_changed_byte(converted: Bench) -> None:
    assert run("inspect", converted.out, "--hashes").exit_code == 0
    shard = converted.out / "model-00003-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    result = run("inspect", converted.out, "--hashes")
    assert result.exit_code == 3
    assert f"{shard}: expected SHA-256" in result.stderr
    assert run("inspect", converted.out).exit_code == 0


def test_inspect_finds_a_removed_file_and_a_record_without_hashes(converted: Bench) -> None:
    (converted.out / "tokenizer.json").unlink()
    assert "found no such file" in run("inspect", converted.out, "--hashes").stderr
    manifest = converted.out / "expertweaver" / "manifest.json"
    values = json.loads(manifest.read_text("utf-8"))
    manifest.write_text(json.dumps({**values, "files_sha256": {}}), encoding="utf-8")
    result = run("inspect", converted.out, "--hashes")
    assert result.exit_code == 3
    assert "a manifest with the hashes of all files" in result.stderr


LISTED = {
    "methods": ("methods", "*.py"),
    "formats": ("formats", "*.py"),
    "families": ("dense/families", "*.yaml"),
    "presets": ("recipe/presets", "*.yaml"),
}


@pytest.mark.parametrize("kind", LISTED)
def test_ls_lists_what_lies_in_the_folder(kind: str) -> None:
    folder, pattern = LISTED[kind]
    names = {file.stem for file in (PACKAGE_FOLDER / folder).glob(pattern)} - {"__init__", "base"}
    entries = json.loads(run("ls", kind, "--json").stdout)
    assert set(entries) == names
    assert all(len(description) > 10 for description in entries.values())
    lines = run("ls", kind).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(entries)


def test_demo_converts_measures_and_reports(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertweaver.demonstration.shipped_model", lambda: bench.source)
    monkeypatch.setattr("expertweaver.demonstration.shipped_heldout", lambda: bench.text)
    monkeypatch.setattr("expertweaver.demonstration.METHODS", ("expertweaver",))
    monkeypatch.setattr("expertweaver.demonstration._speed", lambda conversions, progress: {})
    folder = bench.folder / "demo"
    result = run("demo", "--out", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"report  {folder / 'report.html'}"
    assert {path.name for path in folder.iterdir()} == {"expertweaver-25", "expertweaver-50", "report.html"}
    assert run("demo", "--out", folder).exit_code == 0, "a second demonstration replaces the first"
