"""The whole verb on a tiny model: what cells hold, that work is done once, and that another request is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.comparisons import SETTINGS, Ground
from support.families import save_text
from support.models import edit_config
from support.progress import RecordingProgress
from transformers import AutoModelForCausalLM, AutoTokenizer

from expertweaver import compare, convert, evaluate, make_recipe
from expertweaver.calibration.capture import profile_layers
from expertweaver.comparison import cells, run, statistics
from expertweaver.comparison.folder import OUTPUTS
from expertweaver.comparison.results import Comparison
from expertweaver.comparison.summary import summarize
from expertweaver.errors import CalibrationError, CheckpointError, Problem, RecipeError
from expertweaver.recipe.schema import method_options
from expertweaver.registry import module_names


def over_dense(comparison: Comparison, label: str, mlp_sparsity: float, domain: str = "all") -> float:
    [found] = [
        s.over_dense
        for s in summarize(comparison)
        if (s.method, s.mlp_sparsity, s.domain) == (label, mlp_sparsity, domain)
    ]
    return found


def stock_losses(model: Any, ground: Ground) -> Iterator[float]:
    """Nats per token of every judged document, by a stock model."""
    tokenizer = AutoTokenizer.from_pretrained(ground.source)
    for line in Path(ground.judged).read_text("utf-8").splitlines():
        ids = torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]])
        with torch.inference_mode():
            yield model(input_ids=ids, labels=ids).loss.item()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts designs, calibration passes and scorings."""
    counts = {"weave_model": 0, "score_documents": 0, "profile_layers": 0}

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted(cells, "weave_model")
    counted(cells, "score_documents")
    counted(statistics, "profile_layers")
    assert statistics.profile_layers is not profile_layers
    return counts


def test_the_table_of_a_tiny_model(ground: Ground) -> None:
    oracles = [name for name in module_names("methods") if method_options(name)(name=name).is_oracle]
    progress = RecordingProgress()
    asked = ["expertweaver", *oracles]
    done = compare(ground.source, **ground.request(methods=asked), progress=progress)
    assert [method.label for method in done.methods] == [*asked, "static", "random"]
    assert [method.is_oracle for method in done.methods] == [label in oracles for label in [*asked, "static", "random"]]
    assert {"static was added", "random was added"} <= {note.split(":")[0] for note in progress.notes}
    seeds = {"expertweaver": [0, 1], "random": [0, 1], "static": [None]}
    for label, expected in seeds.items():
        assert [cell.seed for cell in done.cells_of(label, 0.5)] == expected
    for cell in done.cells:
        assert cell.reached_mlp_sparsity == pytest.approx(cell.mlp_sparsity)
        assert cell.seconds >= 0
        assert len(cell.documents) == 24
    distance = {(s.method, s.mlp_sparsity): s.kl_to_dense or 0.0 for s in summarize(done) if s.domain == "all"}
    assert distance["random", 0.5] > distance["random", 0.25] > 0.01
    assert {path.name for path in ground.out.iterdir()} == {*OUTPUTS, "cells", "journal.json"}
    assert Comparison.from_json(json.loads((ground.out / "comparison.json").read_text("utf-8"))) == done


def test_a_cell_is_what_pruning_by_hand_gives(ground: Ground) -> None:
    """Static pruning once more: the same neurons, struck out of a stock model's down_proj."""
    done = compare(ground.source, **ground.request(methods="static", mlp_sparsities=[0.5]))
    out = ground.folder / "sparse"
    settings = {"method": "static", "mlp_sparsity": 0.5, "num_slices": 8, "calibration": [ground.fitted], **SETTINGS}
    convert(make_recipe(ground.source, settings=settings), out)
    from safetensors.torch import load_file

    owners = load_file(out / "expertweaver" / "partition.safetensors")
    model = AutoModelForCausalLM.from_pretrained(ground.source).eval()
    for layer in range(2):
        unused = owners[f"{layer}.expert_neurons"][1:].flatten()
        assert len(unused) == 32
        with torch.no_grad():
            model.model.layers[layer].mlp.down_proj.weight[:, unused] = 0.0
    [cell] = done.cells_of("static", 0.5)
    for expected, score in zip(stock_losses(model, ground), cell.documents, strict=True):
        assert score.nats / score.num_tokens == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("label", "settings"),
    [
        ("static", {"method": "static"}),
        ("static+repair", {"method": "static", "method.repair": True}),
        ("expertweaver", {"method": "expertweaver", "method.seed": 0}),
        ("moefication+repair", {"method": "moefication", "method.repair": True}),
    ],
)
def test_compare_agrees_with_convert_and_evaluate(ground: Ground, label: str, settings: dict[str, Any]) -> None:
    """A cell holds the number of the checkpoint that a user would get: the same rounding, the same router."""
    tolerance = 2e-5
    done = compare(ground.source, **ground.request(methods=label, mlp_sparsities=[0.5], seeds=1))
    request = {"mlp_sparsity": 0.5, "num_slices": 8, "calibration": [ground.fitted], **SETTINGS}
    out = ground.folder / "sparse"
    convert(make_recipe(ground.source, settings={**settings, **request}), out)
    result = evaluate([out], text=[ground.judged], against=ground.source)
    expected = result.models[1].quality("all").nats_per_token - result.models[0].quality("all").nats_per_token
    assert over_dense(done, label, 0.5) == pytest.approx(expected, abs=tolerance)
    [distance] = [s.kl_to_dense for s in summarize(done) if (s.method, s.domain) == (label, "all")]
    assert distance == pytest.approx(result.models[1].quality("all").kl_to_dense, abs=tolerance)
    assert distance is not None
    assert distance > 0.05, "a method that changes nothing would agree without meaning to"


def test_what_weave_serves_is_what_compare_measured_but_for_exact_ties(ground: Ground) -> None:
    """Weights are the same to the bit, and so are losses, except where two experts' scores are equal in float32.

    A kernel may choose either expert then. One token of 936 is such a one here, at the border gap 0.0.
    """
    done = compare(ground.source, **ground.request(methods="weave", mlp_sparsities=[0.5], seeds=1))
    request = {"mlp_sparsity": 0.5, "num_slices": 8, "calibration": [ground.fitted], **SETTINGS}
    out = ground.folder / "sparse"
    convert(make_recipe(ground.source, settings={"method.seed": 0, **request}), out)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    [cell] = done.cells_of("weave", 0.5)
    measured = [score.nats / score.num_tokens for score in cell.documents]
    differences = [abs(a - b) for a, b in zip(stock_losses(model, ground), measured, strict=True)]
    assert len(differences) == 24
    assert sum(difference > 2e-5 for difference in differences) <= 1


def test_a_repeated_command_does_no_work(ground: Ground, calls: dict[str, int]) -> None:
    first = compare(ground.source, **ground.request())
    assert calls == {"weave_model": 10, "score_documents": 3, "profile_layers": 1}
    assert compare(ground.source, **ground.request()) == first
    assert calls == {"weave_model": 10, "score_documents": 3, "profile_layers": 1}


def test_methods_budgets_and_seeds_may_be_added(ground: Ground, calls: dict[str, int]) -> None:
    compare(ground.source, **ground.request(methods="static", mlp_sparsities=[0.5], seeds=1))
    assert calls["weave_model"] == 2
    more = compare(ground.source, **ground.request(methods="static,expertweaver", mlp_sparsities=[0.25, 0.5], seeds=2))
    assert calls["weave_model"] == 10
    assert len(more.cells) == 10


def test_a_stopped_run_keeps_its_finished_cells(
    ground: Ground, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    real = cells.weave_model

    def stop_at_the_sixth(*arguments: Any, **options: Any) -> Any:
        if calls["weave_model"] == 5:
            raise StoppedError
        return real(*arguments, **options)

    monkeypatch.setattr(cells, "weave_model", stop_at_the_sixth)
    with pytest.raises(StoppedError):
        compare(ground.source, **ground.request())
    assert not (ground.out / "comparison.json").exists()
    monkeypatch.setattr(cells, "weave_model", real)
    done = compare(ground.source, **ground.request())
    assert calls["weave_model"] == 5 + 6, "four were kept, the fifth was not scored yet"
    other = compare(ground.source, **ground.request(out=ground.folder / "other"))
    assert [c.documents for c in done.cells] == [c.documents for c in other.cells]


def test_a_cell_that_diverges_while_designed_is_named_and_those_before_it_are_kept(
    ground: Ground, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cells.weave_model

    def diverge(*arguments: Any, **options: Any) -> Any:
        if calls["weave_model"] == 1:
            raise CalibrationError(Problem("dense, layer 1", "finite hidden states", "NaN", "Check the weights."))
        return real(*arguments, **options)

    monkeypatch.setattr(cells, "weave_model", diverge)
    request = ground.request(methods="static,moefication", mlp_sparsities=[0.5], seeds=1)
    with pytest.raises(CalibrationError) as raised:
        compare(ground.source, **request)
    [problem] = raised.value.problems
    assert problem.where == "moefication at mlp_sparsity 0.5, dense, layer 1"
    assert problem.fix.startswith("Leave this entry out")
    monkeypatch.setattr(cells, "weave_model", real)
    compare(ground.source, **ground.request(methods="static", mlp_sparsities=[0.5], seeds=1))
    assert calls["weave_model"] == 2, "static was kept; only random was left to do"


def test_nothing_is_scored_where_the_first_design_diverges(
    ground: Ground, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*arguments: Any, **options: Any) -> Any:
        raise CalibrationError(Problem("dense, layer 1", "finite hidden states", "NaN", "Check the weights."))

    monkeypatch.setattr(cells, "weave_model", diverge)
    with pytest.raises(CalibrationError, match=r"static at mlp_sparsity 0\.5, dense, layer 1"):
        compare(ground.source, **ground.request(methods="static", mlp_sparsities=[0.5], seeds=1))
    assert calls["score_documents"] == 0


def test_code_in_the_source_is_never_run_though_its_tokenizer_is_trusted(ground: Ground) -> None:
    (ground.source / "planted.py").write_text("raise RuntimeError('code of the folder was run')\n", encoding="utf-8")
    edit_config(ground.source, auto_map={"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"})
    settings = {**SETTINGS, "source.trust_remote_code": True}
    request = ground.request(methods="static", mlp_sparsities=[0.5], seeds=1, settings=settings)
    assert compare(ground.source, **request).cells


def test_a_cell_whose_logits_diverge_is_named_and_all_others_are_kept(
    ground: Ground, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cells.weave_model

    def spoiled(*arguments: Any, **options: Any) -> Any:
        layers = real(*arguments, **options)
        if arguments[3].name == "moefication":
            layers[-1] = replace(layers[-1], served=lambda weights: lambda x: torch.full_like(x, torch.nan))
        return layers

    monkeypatch.setattr(cells, "weave_model", spoiled)
    request = ground.request(methods="static,moefication", mlp_sparsities=[0.5], seeds=1)
    with pytest.raises(CheckpointError) as raised:
        compare(ground.source, **request)
    [problem] = raised.value.problems
    assert problem.where.startswith("moefication at mlp_sparsity 0.5, moefication (0) on ")
    assert calls["weave_model"] == 3
    compare(ground.source, **ground.request(methods="static", mlp_sparsities=[0.5], seeds=1))
    assert calls["weave_model"] == 3, "static and random were kept"


def test_a_changed_request_is_refused_and_may_start_anew(ground: Ground, calls: dict[str, int]) -> None:
    request = ground.request(methods="static", mlp_sparsities=[0.5], seeds=1)
    compare(ground.source, **request)
    other = save_text(ground.folder / "other.jsonl", seed=2)
    changed = {**request, "text": [str(other)], "num_slices": 4}
    with pytest.raises(CheckpointError) as raised:
        compare(ground.source, **changed)
    named = [problem.where.rpartition(": ")[2] for problem in raised.value.problems]
    assert named == ["num_slices", "text"]
    assert (raised.value.problems[0].expected, raised.value.problems[0].found) == ("8, as begun", "4")
    assert "--overwrite" in raised.value.problems[0].fix
    before = calls["weave_model"]
    done = compare(ground.source, **changed, overwrite=True)
    assert calls["weave_model"] == before + 2
    assert done.num_slices == 4


def test_cells_of_other_code_do_not_stand_in_one_table(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ground.request(methods="static", mlp_sparsities=[0.5], seeds=1)
    compare(ground.source, **request)
    monkeypatch.setattr(run, "code_fingerprint", lambda: "changed")
    with pytest.raises(CheckpointError) as raised:
        compare(ground.source, **request)
    assert [problem.where.rpartition(": ")[2] for problem in raised.value.problems] == ["code"]


def test_a_folder_of_somebody_is_left_alone(ground: Ground) -> None:
    ground.out.mkdir()
    (ground.out / "thesis.md").write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="an earlier comparison"):
            compare(ground.source, **ground.request(), overwrite=overwrite)
    assert [path.name for path in ground.out.iterdir()] == ["thesis.md"]


def test_shared_text_is_refused_or_dropped(ground: Ground) -> None:
    shared = Path(ground.fitted).read_text("utf-8").splitlines()[:2]
    judged = Path(ground.judged)
    judged.write_text(judged.read_text("utf-8") + "\n".join(shared) + "\n", encoding="utf-8")
    with pytest.raises(CalibrationError) as raised:
        compare(ground.source, **ground.request())
    [problem] = raised.value.problems
    assert "2 of 26 documents" in problem.found
    assert "document 25 (domain 'even')" in problem.found
    assert json.loads(shared[0])["text"].lower() in problem.found
    assert "--drop-overlapping" in problem.fix
    assert not ground.out.exists()
    progress = RecordingProgress()
    request = ground.request(methods="static", mlp_sparsities=[0.5], drop_overlapping=True, seeds=1)
    done = compare(ground.source, **request, progress=progress)
    assert (done.num_dropped, len(done.domains)) == (2, 24)
    assert any("2 of 26 evaluation documents were dropped" in note for note in progress.notes)


def test_everything_wrong_is_named_before_anything_is_read(ground: Ground, calls: dict[str, int]) -> None:
    request = ground.request(
        methods="weeve",
        mlp_sparsities=[0.3, 0.5, 0.7],
        settings={"method.tau": 1},
        text=["nowhere.txt"],
        seeds=0,
        dtype="int8",
    )
    with pytest.raises(RecipeError) as raised:
        compare(ground.source, **request)
    assert [problem.where for problem in raised.value.problems] == [
        "--methods weeve: method.name",
        "--seeds",
        "dtype",
        "--set method.tau",
        "nowhere.txt",
        "budget.mlp_sparsity",
        "budget.mlp_sparsity",
    ]
    assert not ground.out.exists()
    assert set(calls.values()) == {0}
