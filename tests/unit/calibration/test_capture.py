"""The layer-by-layer pass against the whole stock model, and statistics against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import save_variant
from transformers import AutoModelForCausalLM

from expertweaver.calibration import capture, samples
from expertweaver.calibration.capture import profile_layers
from expertweaver.calibration.samples import PADDING, CalibrationSet
from expertweaver.calibration.statistics import LayerStatistics, StatisticsFolder, activation_frequency
from expertweaver.dense.model import DenseModel, open_dense

NUM_MARKERS = 16


def calibration_set() -> CalibrationSet:
    """Three rows; samples of several lengths, two rows with several samples, padding."""
    generator = torch.Generator().manual_seed(0)
    sample_ids = torch.full((3, 24), PADDING)
    for sample, (row, start, stop) in enumerate([(0, 0, 24), (1, 0, 9), (1, 9, 20), (2, 0, 10)]):
        sample_ids[row, start:stop] = sample
    token_ids = torch.randint(2, 96, (3, 24), generator=generator).where(sample_ids >= 0, 0)
    return CalibrationSet(token_ids, sample_ids, ("a", "a", "b", "b"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_variant("qwen2", tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def dense(source: Path) -> DenseModel:
    return open_dense(str(source))


def profile(dense: DenseModel, folder: Path, **options: Any) -> list[LayerStatistics]:
    statistics = StatisticsFolder(folder, dense.dims.num_hidden_layers)
    settings = {
        "compute_dtype": torch.float32,
        "num_probes": 1000,
        "scratch": folder,
    } | options
    profile_layers(dense, calibration_set(), statistics, **settings)
    return list(statistics)


@torch.inference_mode()
def whole_model_activations(source: Path) -> list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """FFN input, gate_act and neuron_act of every layer, for each sample fed alone to the stock model."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    seen: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    for layer, store in zip(model.model.layers, seen, strict=True):
        layer.mlp.register_forward_pre_hook(lambda _, args, store=store: store.append(args[0][0]))
    data = calibration_set()
    for sample in range(data.num_samples):
        model(data.token_ids[data.sample_ids == sample][None])
    result = []
    for layer, store in zip(model.model.layers, seen, strict=True):
        gate = [layer.mlp.act_fn(layer.mlp.gate_proj(x)) for x in store]
        result.append([(x, g, g * layer.mlp.up_proj(x)) for x, g in zip(store, gate, strict=True)])
    return result


def test_statistics_match_the_whole_model_fed_one_sample_at_a_time(
    dense: DenseModel, source: Path, tmp_path: Path
) -> None:
    for layer, (found, expected) in enumerate(
        zip(profile(dense, tmp_path), whole_model_activations(source), strict=True)
    ):
        absolute = torch.stack([gate.abs().mean(dim=0) for _, gate, _ in expected], dim=1)
        signed = torch.stack([gate.mean(dim=0) for _, gate, _ in expected], dim=1)
        assert torch.allclose(found.profile("abs").float(), absolute, atol=1e-5)
        assert torch.allclose(found.profile("signed").float(), signed, atol=1e-5)
        assert found.tokens_per_sample.tolist() == [24, 9, 11, 10]
        act = torch.cat([neuron for _, _, neuron in expected])
        norms = dense.read_ffn(layer).down.norm(dim=0)
        assert torch.allclose(found.contribution.float(), (act.abs() * norms).square().sum(dim=0), rtol=1e-4)
        gate = torch.cat([gate for _, gate, _ in expected]).abs()
        assert torch.allclose(found.mean_abs().float(), gate.mean(dim=0), atol=1e-5)
        inputs = torch.cat([x for x, _, _ in expected])
        assert torch.allclose(found.probe_inputs, inputs, atol=1e-5)  # few tokens: all of them are probes
        marked = torch.zeros_like(gate).scatter_(1, gate.topk(NUM_MARKERS, dim=1).indices, 1).mean(dim=0)
        found_marked = activation_frequency(found.probe_inputs, dense.read_ffn(layer), NUM_MARKERS)
        assert torch.allclose(found_marked.float(), marked, atol=0.02)


def test_batching_does_not_matter(dense: DenseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = profile(dense, tmp_path / "together")
    monkeypatch.setattr(samples, "BATCH_TOKENS", 24)
    apart = profile(dense, tmp_path / "apart")
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a.tokens_per_sample, b.tokens_per_sample)
        assert torch.allclose(a.gate_act_abs, b.gate_act_abs, atol=1e-5)
        assert torch.allclose(a.contribution, b.contribution, rtol=1e-5)


def test_hidden_states_on_disk_give_the_same(
    dense: DenseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = profile(dense, tmp_path / "memory")
    monkeypatch.setattr(capture, "IN_MEMORY_BYTES", 0)
    on_disk = profile(dense, tmp_path / "disk")
    assert (tmp_path / "disk" / "hidden-states.bin").stat().st_size == 3 * 24 * 32 * 4
    for a, b in zip(in_memory, on_disk, strict=True):
        assert torch.equal(a.gate_act_abs, b.gate_act_abs)


def test_a_continued_pass_measures_only_what_is_missing(dense: DenseModel, tmp_path: Path) -> None:
    whole = profile(dense, tmp_path / "whole")
    statistics = StatisticsFolder(tmp_path / "continued", dense.dims.num_hidden_layers)
    statistics.save(0, whole[1])  # a mark that a fresh measurement of layer 0 would overwrite
    continued = profile(dense, tmp_path / "continued")
    assert torch.equal(continued[0].gate_act_abs, whole[1].gate_act_abs)
    assert torch.equal(continued[1].gate_act_abs, whole[1].gate_act_abs)


def test_bfloat16_is_close(dense: DenseModel, tmp_path: Path) -> None:
    exact = profile(dense, tmp_path / "float32")
    rough = profile(dense, tmp_path / "bfloat16", compute_dtype=torch.bfloat16)
    for a, b in zip(exact, rough, strict=True):
        assert not torch.equal(a.gate_act_abs, b.gate_act_abs)
        assert torch.allclose(a.mean_abs(), b.mean_abs(), rtol=0.1, atol=0.02)
