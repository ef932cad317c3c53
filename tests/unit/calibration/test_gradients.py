"""Gradients taken layer by layer against autograd of the whole stock model, each sample fed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import save_variant
from torch import Tensor
from transformers import AutoModelForCausalLM

from expertweaver.calibration import gradients, samples
from expertweaver.calibration.capture import profile_layers
from expertweaver.calibration.gradients import LayerGradients, layer_gradients, next_tokens, spread_rows
from expertweaver.calibration.samples import PADDING, CalibrationSet
from expertweaver.calibration.statistics import LayerStatistics, StatisticsFolder
from expertweaver.dense.model import DenseModel, open_dense
from expertweaver.errors import CalibrationError

ROWS, LENGTH = 4, 24
SPANS = [(0, 0, 24), (1, 0, 9), (1, 9, 20), (2, 0, 10), (3, 0, 8), (3, 8, 16), (3, 16, 24)]


def calibration_set() -> CalibrationSet:
    """Rows with one sample, with several, and with padding."""
    sample_ids = torch.full((ROWS, LENGTH), PADDING)
    for sample, (row, start, stop) in enumerate(SPANS):
        sample_ids[row, start:stop] = sample
    token_ids = torch.randint(2, 96, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    return CalibrationSet(token_ids.where(sample_ids >= 0, 0), sample_ids, tuple("aabbaab"))


@pytest.fixture(params=["qwen2", "llama-tied", "phi3", "granite", "gemma", "gemma2"], scope="module")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_variant(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def dense(source: Path) -> DenseModel:
    return open_dense(str(source))


def whole_model_gradients(source: Path, samples: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Weight saliency, activation saliency and output metric of every layer, by plain autograd in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64).eval()
    kept: dict[tuple[int, str], list[Tensor]] = {}

    def keep(layer: int, name: str, tensor: Tensor) -> None:
        tensor.retain_grad()
        kept.setdefault((layer, name), []).append(tensor)

    for index, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, i=index: keep(i, "act", args[0]))
        layer.mlp.register_forward_hook(lambda _, args, out, i=index: keep(i, "out", out))
    loss: Any = 0.0
    for tokens in samples:
        logits = model(tokens[None]).logits[0, :-1]
        loss = loss + torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")
    num_targets = sum(len(tokens) - 1 for tokens in samples)
    loss.backward()

    def saliency(linear: Any) -> Tensor:
        return (linear.weight * linear.weight.grad).abs().detach() / num_targets

    result = []
    for index, layer in enumerate(model.model.layers):
        mlp = layer.mlp
        if hasattr(mlp, "gate_up_proj"):
            weight = saliency(mlp.gate_up_proj).sum(dim=1).view(2, -1).sum(dim=0)
        else:
            weight = saliency(mlp.gate_proj).sum(dim=1) + saliency(mlp.up_proj).sum(dim=1)
        weight = weight + saliency(mlp.down_proj).sum(dim=0)
        act = torch.cat([(h * h.grad).abs().detach()[0] for h in kept[index, "act"] if h.grad is not None])
        out = torch.cat([y.grad[0] for y in kept[index, "out"] if y.grad is not None])
        result.append((weight, act.sum(dim=0) / num_targets, out.T @ out / sum(map(len, samples))))
    return result


def samples_of(data: CalibrationSet, rows: list[int]) -> list[Tensor]:
    return [data.token_ids[row, start:stop] for row, start, stop in SPANS if row in rows]


def close(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == torch.float64 and float((found - expected).norm() / expected.norm()) < 1e-4


def check(found: list[LayerGradients], expected: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    assert [one.layer for one in found] == [1, 0], "from the last layer to the first"
    for one in found:
        weight, act, metric = expected[one.layer]
        assert torch.allclose(one.weight_saliency, weight, rtol=1e-4, atol=1e-6 * float(weight.max()))
        assert torch.allclose(one.act_saliency, act, rtol=1e-4, atol=1e-6 * float(act.max()))
        assert close(one.output_metric, metric)


def test_gradients_match_autograd_of_the_whole_model(dense: DenseModel, source: Path) -> None:
    data = calibration_set()
    found = list(layer_gradients(dense, data, num_tokens=1000))
    assert {one.num_tokens for one in found} == {data.num_tokens}
    expected = whole_model_gradients(source, samples_of(data, [0, 1, 2, 3]))
    assert float(expected[0][0].min()) > 0
    check(found, expected)


def test_whole_rows_are_taken_evenly_up_to_the_limit(dense: DenseModel, source: Path) -> None:
    data = calibration_set()
    assert spread_rows(data, 1000).tolist() == [0, 1, 2, 3]
    assert spread_rows(data, 3 * LENGTH - 1).tolist() == [0, 2]
    assert spread_rows(data, 1).tolist() == [0]
    check(list(layer_gradients(dense, data, 2 * LENGTH)), whole_model_gradients(source, samples_of(data, [0, 2])))


def test_batching_does_not_matter(dense: DenseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    together = list(layer_gradients(dense, calibration_set(), 1000))
    monkeypatch.setattr(samples, "BATCH_TOKENS", LENGTH)
    monkeypatch.setattr(gradients, "HEAD_TOKENS", 5)
    for a, b in zip(together, layer_gradients(dense, calibration_set(), 1000), strict=True):
        assert close(a.weight_saliency, b.weight_saliency)
        assert close(a.act_saliency, b.act_saliency)
        assert close(a.output_metric, b.output_metric)


def test_a_token_predicts_the_next_of_its_own_sample() -> None:
    token_ids = torch.tensor([[5, 6, 7, 8, 0]])
    assert next_tokens(token_ids, torch.tensor([[0, 0, 1, 1, PADDING]])).tolist() == [[6, -1, 8, -1, -1]]
    assert next_tokens(token_ids, torch.full((1, 5), PADDING)).tolist() == [[-1] * 5]


def profile(dense: DenseModel, folder: Path, **options: Any) -> list[LayerStatistics]:
    statistics = StatisticsFolder(folder, dense.dims.num_hidden_layers)
    settings = {"compute_dtype": torch.float32, "num_probes": 8, "scratch": folder}
    profile_layers(dense, calibration_set(), statistics, **settings, **options)
    return list(statistics)


def test_the_pass_stores_saliencies_only_where_gradients_are_asked_for(dense: DenseModel, tmp_path: Path) -> None:
    expected = {one.layer: one for one in layer_gradients(dense, calibration_set(), 50)}
    plain, found = profile(dense, tmp_path / "plain"), profile(dense, tmp_path / "with", gradient_tokens=50)
    for layer, (without, one) in enumerate(zip(plain, found, strict=True)):
        assert without.weight_saliency is None
        assert without.act_saliency is None
        assert torch.equal(without.contribution, one.contribution)
        assert one.weight_saliency is not None
        assert one.act_saliency is not None
        assert torch.equal(one.weight_saliency, expected[layer].weight_saliency)
        assert torch.equal(one.act_saliency, expected[layer].act_saliency)


def test_a_continued_pass_has_the_same_saliencies(dense: DenseModel, tmp_path: Path) -> None:
    whole = profile(dense, tmp_path / "whole", gradient_tokens=1000)
    StatisticsFolder(tmp_path / "continued", 2).save(0, whole[0])
    continued = profile(dense, tmp_path / "continued", gradient_tokens=1000)
    assert whole[1].weight_saliency is not None
    assert continued[1].weight_saliency is not None
    assert torch.equal(continued[1].weight_saliency, whole[1].weight_saliency)


def test_gradients_that_are_not_finite_are_refused(dense: DenseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gradients._head_gradient
    monkeypatch.setattr(gradients, "_head_gradient", lambda *arguments: real(*arguments) * torch.inf)
    with pytest.raises(CalibrationError, match=r"layer 1: expected finite gradients"):
        list(layer_gradients(dense, calibration_set(), 1000))
