"""Every way in which an evaluation is refused names where, what was expected, what was found and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import model_of, save, tokenizer_of, words, write_text

from expertweaver.errors import CalibrationError, CheckpointError, RecipeError
from expertweaver.evaluation import quality
from expertweaver.evaluation.quality import evaluate


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save(tmp_path / "model", model_of())


@pytest.fixture
def text(tmp_path: Path) -> str:
    return write_text(tmp_path / "text.jsonl", [("d", words(20)), ("d", words(30, 1))])


def refuse_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read before the request was checked")

    monkeypatch.setattr(quality, "load_model", load)


def rewrite(folder: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = Path(folder) / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("as_type", [str, Path])
def test_missing_path(tmp_path: Path, text: str, as_type: Callable[[str], str | Path]) -> None:
    with pytest.raises(CheckpointError, match=r"gone: expected .*folder.*found nothing at this path\. Check"):
        evaluate([as_type(str(tmp_path / "gone"))], text=[text])


def test_a_path_object_never_becomes_a_download(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("network"))
    with pytest.raises(CheckpointError, match="nothing at this path"):
        evaluate([Path("owner/name")], text=[text])


def test_hub_model_out_of_reach(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(repo_id: str, *, revision: str | None, **_: Any) -> str:
        asked.append((repo_id, revision))
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"owner/name@v1: .*OSError: no network.*Check the id"):
        evaluate(["owner/name@v1"], text=[text])
    assert asked == [("owner/name", "v1")]


def test_folder_that_holds_no_model(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"with config\.json, found a folder without it"):
        evaluate([str(tmp_path)], text=[text])


@pytest.mark.parametrize("keep_config", [True, False])
def test_folder_without_tokenizer(model: str, text: str, keep_config: bool) -> None:
    (Path(model) / "tokenizer.json").unlink()
    if not keep_config:
        (Path(model) / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"model: expected a tokenizer, found .*Save the tokenizer beside"):
        evaluate([model], text=[text])


@pytest.mark.parametrize("content", ["{", '{"model_type": "no_such_type"}'])
def test_unreadable_config(model: str, text: str, content: str) -> None:
    (Path(model) / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"expected a readable config\.json, found \w+"):
        evaluate([model], text=[text])


def test_absent_weights(model: str, text: str) -> None:
    (Path(model) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expected weights that transformers loads, found OSError"):
        evaluate([model], text=[text])


def test_truncated_weights(model: str, text: str) -> None:
    file = Path(model) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="expected weights that transformers loads"):
        evaluate([model], text=[text])


def test_missing_tensors_are_not_made_up(model: str, text: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(model, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"every tensor of its architecture, found 1 missing: {name}"):
        evaluate([model], text=[text])


def test_nan_names_the_document_and_the_model(tmp_path: Path, model: str) -> None:
    bad = save(tmp_path / "bad", model_of(seed=1))
    rewrite(bad, lambda tensors: tensors["model.embed_tokens.weight"][3 + 59].fill_(float("nan")))
    path = write_text(tmp_path / "t.jsonl", [("clean", "w1 w2 w3"), ("broken", "w4 w59 w5")])
    expected = (
        r"bad on document 2 \(domain 'broken', 'w4 w59 w5'\): expected finite logits, found \d+ of 128 logits NaN"
    )
    with pytest.raises(CheckpointError, match=expected):
        evaluate([bad], text=[path], against=model)


def test_other_vocabulary_size(tmp_path: Path, model: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_weights(monkeypatch)
    other = save(tmp_path / "other", model_of(vocab_size=65))
    with pytest.raises(CalibrationError, match="other: expected the vocab_size 64 of model, found 65"):
        evaluate([other], text=[text], against=model)


def test_other_token_ids(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_weights(monkeypatch)
    other = save(tmp_path / "other", model_of(), tokenizer_of(shift=1))
    path = write_text(tmp_path / "t.jsonl", [("d", "w5 w6")])
    message = r"tokenized by other: expected .*model \(\[8, 9\] at position 0, 2 in all\), found \[7, 8\] there"
    with pytest.raises(CalibrationError, match=message):
        evaluate([other], text=[path], against=model)


def test_a_tokenizer_that_adds_bos_differs(tmp_path: Path, model: str) -> None:
    other = save(tmp_path / "other", model_of(), tokenizer_of(adds_bos=True))
    path = write_text(tmp_path / "t.jsonl", [("d", "w5 w6")])
    with pytest.raises(CalibrationError, match=r"2 in all\), found \[1, 8, 9\] there, 3 in all"):
        evaluate([model, other], text=[path])


def test_documents_too_short_are_named(tmp_path: Path, model: str) -> None:
    path = write_text(tmp_path / "t.jsonl", [("d", "w1 w2"), ("x", "w7"), ("y", "w8")])
    message = r"2 shorter: document 2 \(domain 'x', 'w7'\): 1; document 3 \(domain 'y', 'w8'\): 1\. Remove"
    with pytest.raises(CalibrationError, match=message):
        evaluate([model], text=[path])


def test_messages_without_a_chat_template(tmp_path: Path, model: str) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "w1 w2"}]}', encoding="utf-8")
    with pytest.raises(CalibrationError, match="a chat template"):
        evaluate([model], text=[str(path)])


def test_a_domain_called_all(tmp_path: Path, model: str) -> None:
    path = write_text(tmp_path / "t.jsonl", [("all", "w1 w2")])
    with pytest.raises(CalibrationError, match=r"domain 'all': .* Rename it"):
        evaluate([model], text=[path])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 1}, "context: expected 2 or more, found 1"),
        ({"max_tokens_per_document": 0}, "max_tokens_per_document: expected 2 or more, found 0"),
        ({"dtype": "float31"}, "Did you mean 'float32'"),
        ({"context": 65}, "at most 64, the max_position_embeddings of model, found 65"),
    ],
)
def test_options_out_of_range(
    model: str, text: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    refuse_weights(monkeypatch)
    with pytest.raises(RecipeError, match=message):
        evaluate([model], text=[text], **options)


def test_no_model(text: str) -> None:
    with pytest.raises(RecipeError, match="at least one model"):
        evaluate([], text=[text])
