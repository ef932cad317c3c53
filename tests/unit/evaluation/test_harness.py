"""lm-evaluation-harness on local tasks, without network."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import model_of, save, token_ids, words, write_text
from transformers import PreTrainedModel

from expertweaver.errors import RecipeError
from expertweaver.evaluation import quality
from expertweaver.evaluation.harness import find_tasks
from expertweaver.evaluation.quality import evaluate

QUESTIONS = [(f"w{i} w{i + 1} w{i + 2}", [f"w{i + 3}", f"w{i + 5}", f"w{i + 7}"], i % 3) for i in range(24)]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one task, one template without a name, and a cache of its own for `datasets`."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("network"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [json.dumps({"question": q, "choices": c, "label": label}) for q, c, label in QUESTIONS]
    data = folder / "questions.jsonl"
    data.write_text("\n".join(rows), encoding="utf-8")
    (folder / "next_word.yaml").write_text(TASK.format(name="ew_next_word", data=data), encoding="utf-8")
    (folder / "_template.yaml").write_text("process_docs: !function utils.process\n", encoding="utf-8")
    return folder


def accuracy(model: PreTrainedModel) -> float:
    """Share of questions whose right answer is the likeliest of the three next tokens."""
    right = 0
    for question, choices, label in QUESTIONS:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([token_ids(question)])).logits[0, -1]
        right += int(logits[[token_ids(choice)[0] for choice in choices]].argmax()) == label
    return right / len(QUESTIONS)


@pytest.mark.parametrize("as_file", [True, False])
def test_local_task_by_file_and_by_folder(task: Path, tmp_path: Path, as_file: bool) -> None:
    pytest.importorskip("lm_eval")
    models = {name: model_of(seed=seed) for name, seed in (("dense", 0), ("other", 1))}
    dense, other = (save(tmp_path / name, model) for name, model in models.items())
    text = write_text(tmp_path / "t.jsonl", [("d", words(20))])
    path = task / "next_word.yaml" if as_file else task
    result = evaluate([other], text=[text], against=dense, tasks=[str(path)])
    assert result.lm_eval is not None
    expected = {name: accuracy(model) for name, model in models.items()}
    assert expected["dense"] != expected["other"], "mixed-up models would go unseen"
    found = {name: metrics["ew_next_word"]["acc,none"] for name, metrics in result.lm_eval.items()}
    assert found == pytest.approx(expected)
    json.dumps(result.to_json())


def test_without_tasks_nothing_is_run(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", model_of())
    assert evaluate([folder], text=[write_text(tmp_path / "t.jsonl", [("d", words(20))])]).lm_eval is None


def test_missing_extra_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lm_eval", "lm_eval.models.huggingface"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(quality, "open_candidates", lambda *_, **__: pytest.fail("models were opened"))
    with pytest.raises(RecipeError, match=r"pip install 'expertweaver\[lm-eval\]'"):
        evaluate(["model"], text=["text"], tasks=["arc_easy"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("arc_esy", "Did you mean 'arc_easy'"), ("no/such/file.yaml", "lm-eval ls tasks")],
)
def test_unknown_task(name: str, message: str) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(RecipeError, match=message):
        find_tasks([name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("test_split: test\n", "the key 'task', found none"),
        ("- a\n", "a YAML mapping, found list"),
        ("a: [\n", "a readable YAML file"),
    ],
)
def test_files_that_are_no_tasks(tmp_path: Path, content: str, message: str) -> None:
    pytest.importorskip("lm_eval")
    file = tmp_path / "task.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        find_tasks([str(file)])


def test_folder_without_tasks(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(RecipeError, match="a folder without task files"):
        find_tasks([str(tmp_path)])
