"""What `evaluate` reports, against transformers' own loss and against sums written out here."""

from __future__ import annotations

import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from support.progress import RecordingProgress
from tiny_models import model_of, save, token_ids, tokenizer_of, words, write_text
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from expertweaver.evaluation import quality, scoring
from expertweaver.evaluation.params import count_params
from expertweaver.evaluation.quality import evaluate

DOCUMENTS = [("a", words(21, 1)), ("a", words(9, 2)), ("b", words(40, 3))]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("dense") / "dense", model_of(seed=0))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("sparse") / "sparse", model_of("glm4_moe", seed=1))


@pytest.fixture
def text(tmp_path: Path) -> str:
    return write_text(tmp_path / "text.jsonl", DOCUMENTS)


def reload(path: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path).eval()


def reference_loss(model: PreTrainedModel, ids: list[int]) -> float:
    """Summed nats of one window by transformers' own loss."""
    batch = torch.tensor([ids])
    with torch.inference_mode():
        return model(input_ids=batch, labels=batch).loss.item() * (len(ids) - 1)


def probs(model: PreTrainedModel, document: str) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids(document)])).logits[0, :-1].double().softmax(-1)


def test_loss_is_the_loss_of_transformers(dense: str, tmp_path: Path) -> None:
    document = words(30)
    result = evaluate([dense], text=[write_text(tmp_path / "t.jsonl", [("d", document)])])
    [model] = result.models
    expected = reference_loss(reload(dense), token_ids(document)) / 29
    entry = model.quality("d")
    assert entry.num_tokens == 29
    assert entry.nats_per_token == pytest.approx(expected, rel=1e-6)
    assert entry.nats_per_token != pytest.approx(math.log(64), abs=0.1), "a uniform model would prove nothing"
    assert entry.perplexity == pytest.approx(math.exp(expected), rel=1e-5)


@pytest.mark.parametrize(("length", "predicted"), [(20, 17), (17, 14), (16, 14), (8, 7), (2, 1)])
def test_windows_are_scored_apart(dense: str, tmp_path: Path, length: int, predicted: int) -> None:
    ids = token_ids(words(length))
    path = write_text(tmp_path / "t.jsonl", [("d", words(length))])
    entry = evaluate([dense], text=[path], context=8).models[0].quality("d")
    windows = [ids[0:8], ids[8:16], ids[16:24]]
    expected = sum(reference_loss(reload(dense), w) for w in windows if len(w) > 1)
    assert entry.num_tokens == predicted
    assert entry.nats_per_token == pytest.approx(expected / predicted, rel=1e-6)


def test_default_context_is_what_the_model_has_positions_for(dense: str, tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.jsonl", [("d", words(100))])
    result = evaluate([dense], text=[path])
    assert result.context == 64
    assert result.models[0].quality("d").num_tokens == 63 + 35


def test_documents_are_cut_to_max_tokens(dense: str, tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.jsonl", [("d", words(30))])
    entry = evaluate([dense], text=[path], max_tokens_per_document=10).models[0].quality("d")
    assert entry.num_tokens == 9
    assert entry.nats_per_token == pytest.approx(reference_loss(reload(dense), token_ids(words(30))[:10]) / 9, rel=1e-6)


def test_domains_are_token_weighted_and_end_with_all(dense: str, text: str) -> None:
    model = evaluate([dense], text=[text]).models[0]
    losses = [reference_loss(reload(dense), token_ids(document)) for _, document in DOCUMENTS]
    assert [(d.domain, d.num_documents, d.num_tokens) for d in model.domains] == [
        ("a", 2, 28),
        ("b", 1, 39),
        ("all", 3, 67),
    ]
    assert model.quality("a").nats_per_token == pytest.approx((losses[0] + losses[1]) / 28, rel=1e-6)
    assert model.quality("all").nats_per_token == pytest.approx(sum(losses) / 67, rel=1e-6)


def test_a_copy_of_the_dense_model_is_at_distance_zero(dense: str, text: str, tmp_path: Path) -> None:
    copy = save(tmp_path / "copy", reload(dense))
    result = evaluate([copy], text=[text], against=dense)
    assert [model.name for model in result.models] == ["dense", "copy"]
    for model in result.models:
        for entry in model.domains:
            assert entry.kl_to_dense == 0.0
            assert entry.top1_agreement == 1.0
    assert result.models[0].domains == result.models[1].domains


def test_distance_to_another_model(dense: str, sparse: str, text: str) -> None:
    model = evaluate([sparse], text=[text], against=dense).models[1]
    kl, agreed = 0.0, 0
    for _, document in DOCUMENTS:
        p, q = probs(reload(dense), document), probs(reload(sparse), document)
        kl += F.kl_div(q.log(), p, reduction="sum").item()
        agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
    entry = model.quality("all")
    assert entry.kl_to_dense == pytest.approx(kl / 67, rel=1e-6)
    assert entry.kl_to_dense is not None
    assert entry.kl_to_dense > 0.1
    assert 0 < agreed < 67, "both sides of the comparison must occur"
    assert entry.top1_agreement == agreed / 67


def test_kl_is_taken_from_the_dense_side(dense: str, sparse: str, text: str) -> None:
    there = evaluate([sparse], text=[text], against=dense).models[1].quality("all").kl_to_dense
    back = evaluate([dense], text=[text], against=sparse).models[1].quality("all").kl_to_dense
    assert there != pytest.approx(back, rel=1e-3)


def test_without_a_dense_model_there_is_no_distance(dense: str, sparse: str, text: str) -> None:
    result = evaluate([dense, sparse], text=[text])
    assert not result.has_dense
    assert [entry.kl_to_dense for model in result.models for entry in model.domains] == [None] * 6
    assert [entry.top1_agreement for model in result.models for entry in model.domains] == [None] * 6
    beside = evaluate([sparse], text=[text], against=dense)
    for alone, paired in zip(result.models, beside.models, strict=True):
        assert alone.quality("all").nats_per_token == paired.quality("all").nats_per_token


def test_rows_are_scored_alike_in_chunks(dense: str, sparse: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate([sparse], text=[text], against=dense).models[1].quality("all")
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 64 * 7)
    chunked = evaluate([sparse], text=[text], against=dense).models[1].quality("all")
    assert chunked.num_tokens == whole.num_tokens
    assert chunked.nats_per_token == pytest.approx(whole.nats_per_token, rel=1e-12)
    assert chunked.kl_to_dense == pytest.approx(whole.kl_to_dense, rel=1e-12)
    assert chunked.top1_agreement == whole.top1_agreement


def test_half_precision_weights_are_scored_in_full_precision(dense: str, tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.jsonl", [("d", words(30))])
    found = evaluate([dense], text=[path], dtype="bfloat16").models[0].quality("d").nats_per_token
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16).eval()
    ids = torch.tensor([token_ids(words(30))])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, :-1]
    assert logits.dtype == torch.bfloat16
    expected = F.cross_entropy(logits.double(), ids[0, 1:]).item()
    assert found == pytest.approx(expected, rel=1e-9)
    assert found != pytest.approx(F.cross_entropy(logits, ids[0, 1:]).item(), rel=1e-9), "bf16 arithmetic differs"


def test_bos_is_what_the_tokenizer_adds(tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.jsonl", [("d", words(12))])
    folder = save(tmp_path / "bos", model_of(), tokenizer_of(adds_bos=True))
    entry = evaluate([folder], text=[path]).models[0].quality("d")
    assert entry.num_tokens == 12
    assert entry.nats_per_token == pytest.approx(reference_loss(model_of(), [1, *token_ids(words(12))]) / 12, rel=1e-6)


@pytest.mark.parametrize(("adds_bos", "num_tokens"), [(True, 4), (False, 4)])
def test_chat_messages_get_one_bos(tmp_path: Path, adds_bos: bool, num_tokens: int) -> None:
    template = "{{ bos_token }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    folder = save(tmp_path / "chat", model_of(), tokenizer_of(adds_bos=adds_bos, chat_template=template))
    turns = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"}]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": turns, "domain": "d"}), encoding="utf-8")
    entry = evaluate([folder], text=[str(path)]).models[0].quality("d")
    assert entry.num_tokens == num_tokens
    assert entry.nats_per_token == pytest.approx(reference_loss(model_of(), [1, 4, 5, 6, 7]) / 4, rel=1e-6)


def test_models_are_named_once_and_apart(tmp_path: Path, dense: str, text: str) -> None:
    other = save(tmp_path / "dense", model_of(seed=5))
    result = evaluate([dense, other, dense], text=[text])
    assert [model.name for model in result.models] == [dense, other]
    assert [model.name for model in evaluate([dense], text=[text], against=dense).models] == ["dense"]


def test_parameters_and_provenance_are_recorded(dense: str, sparse: str, text: str) -> None:
    result = evaluate([sparse], text=[text], against=dense, max_tokens_per_document=30, context=16)
    assert (result.context, result.max_tokens_per_document, result.dtype) == (16, 30, "float32")
    assert (result.text, result.has_dense) == ((text,), True)
    counts = count_params(reload(sparse))
    assert (result.models[1].num_params, result.models[1].num_active_params) == (
        counts.num_params,
        counts.num_active_params,
    )
    assert result.models[1].num_active_params < result.models[1].num_params
    assert result.models[0].num_active_params == result.models[0].num_params
    assert json.loads(json.dumps(result.to_json()))["models"][1]["path"] == sparse


def test_progress_counts_documents(dense: str, sparse: str, text: str) -> None:
    heard = RecordingProgress()
    evaluate([sparse], text=[text], against=dense, progress=heard)
    assert heard.stages == [("scoring sparse", 3)]
    assert heard.steps == 3


def test_side_by_side_and_one_by_one_measure_the_same(
    tmp_path: Path, dense: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [save(tmp_path / f"m{seed}", model_of(seed=seed)) for seed in (1, 2)]
    heard = RecordingProgress()
    together = evaluate(others, text=[text], against=dense, progress=heard)
    assert [total for _, total in heard.stages] == [3]
    monkeypatch.setattr(quality, "available_memory", lambda device: 0)
    apart = evaluate(others, text=[text], against=dense, progress=heard)
    assert [total for _, total in heard.stages] == [3, 3, 3]
    assert together == apart
    assert len({model.quality("all").nats_per_token for model in together.models}) == 3


@pytest.mark.parametrize("with_dense", [True, False])
def test_without_memory_only_the_dense_model_is_kept(
    tmp_path: Path, dense: str, text: str, monkeypatch: pytest.MonkeyPatch, with_dense: bool
) -> None:
    monkeypatch.setattr(quality, "available_memory", lambda device: 0)
    others = [save(tmp_path / f"m{seed}", model_of(seed=seed)) for seed in (1, 2, 3)]
    alive: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
    counts: list[int] = []
    real = quality.load_model

    def load(*args: Any, **options: Any) -> PreTrainedModel:
        counts.append(len(alive))
        model = real(*args, **options)
        alive.add(model)
        return model

    monkeypatch.setattr(quality, "load_model", load)
    evaluate(others, text=[text], against=dense if with_dense else None)
    assert counts == ([0, 1, 1, 1] if with_dense else [0, 0, 0])
