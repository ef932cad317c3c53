"""Two streams through a model that is being converted, against the whole stock model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import VARIANTS, save_variant
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from expertweaver.calibration import capture
from expertweaver.calibration.samples import PADDING, CalibrationSet
from expertweaver.calibration.traffic import LayerTraffic, Streams, judging_tokens
from expertweaver.dense.model import open_dense
from expertweaver.errors import CalibrationError
from expertweaver.modeling.reference import activation, dense_ffn


def calibration_set() -> CalibrationSet:
    """Two rows, the second with padding."""
    sample_ids = torch.tensor([[0] * 12, [1] * 9 + [PADDING] * 3])
    token_ids = torch.randint(2, 96, (2, 12), generator=torch.Generator().manual_seed(0)).where(sample_ids >= 0, 0)
    return CalibrationSet(token_ids, sample_ids, ("a", "b"))


def half(x: Tensor, weights: Any) -> Tensor:
    """A converted FFN that anybody could tell from the dense one, also behind a norm."""
    return half_of(dense_ffn(x, weights.to(torch.float32), activation(weights.hidden_act)))


def half_of(output: Tensor) -> Tensor:
    """The second half of the coordinates, the others zero."""
    return output * (torch.arange(output.shape[-1]) >= output.shape[-1] // 2)


class Halved(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return half_of(self.mlp(x))


@torch.inference_mode()
def stock(source: Path, *, halved: bool) -> list[tuple[Tensor, Tensor]]:
    """FFN input and residual stream after the FFN of every layer, valid tokens of each sample fed alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    inputs: list[list[Tensor]] = [[] for _ in model.model.layers]
    after: list[list[Tensor]] = [[] for _ in model.model.layers]
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda _, args, store=inputs[number]: store.append(args[0][0]))
        layer.register_forward_hook(lambda _, a, out, store=after[number]: store.append(_hidden(out)[0]))
        if halved:
            layer.mlp = Halved(layer.mlp)
    samples = calibration_set()
    for sample in range(2):
        model(samples.token_ids[samples.sample_ids == sample][None])
    return [(torch.cat(x), torch.cat(h)) for x, h in zip(inputs, after, strict=True)]


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def all_of(traffic: LayerTraffic) -> tuple[Tensor, Tensor]:
    batches = list(traffic.batches())
    return torch.cat([b.x for b in batches]), torch.cat([b.target for b in batches])


TESTED = ["qwen2", "qwen3", "phi3", "phi3-longrope", "llama-tied", "mistral", "mistral-window", "granite", "gemma"]
TESTED += ["internlm3", "seed_oss", "qwen2-window", "olmo2", "gemma2", "gemma3"]


@pytest.mark.parametrize("variant", TESTED)
def test_both_streams_are_those_of_the_stock_model(variant: str, tmp_path: Path) -> None:
    source = save_variant(variant, tmp_path / "dense")
    dense = open_dense(str(source))
    streams = Streams(dense, calibration_set(), compute_dtype=torch.float32, scratch=tmp_path)
    valid = calibration_set().sample_ids != PADDING
    expected_dense, expected_half = stock(source, halved=False), stock(source, halved=True)
    for layer in range(dense.dims.num_hidden_layers):
        weights = dense.read_ffn(layer)
        traffic = streams.enter(layer, weights)
        x, target = all_of(traffic)
        assert torch.allclose(x, expected_half[layer][0], atol=1e-4)
        residual = streams.converted[valid].clone()
        if dense.family.output_norm is None:
            expected = residual + dense.traits.scales.residual * target
            assert torch.allclose(expected, expected_dense[layer][1], atol=1e-4), "target + residual is dense"
        else:
            own = dense_ffn(expected_dense[layer][0], weights.to(torch.float32), activation(weights.hidden_act))
            assert torch.allclose(target, own, atol=1e-4), "the target is what the dense FFN puts out"
        streams.leave(lambda x, weights=weights: half(x, weights))
        assert torch.allclose(streams.converted[valid], expected_half[layer][1], atol=1e-4)
    assert not torch.allclose(expected_half[-1][1], expected_dense[-1][1], atol=0.1), "the streams must differ"


def test_every_family_is_tested_here() -> None:
    assert {VARIANTS[name][0] for name in TESTED} == {family for family, _ in VARIANTS.values()}


def test_streams_in_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = open_dense(str(save_variant("llama", tmp_path / "dense")))

    def run(scratch: Path) -> Tensor:
        streams = Streams(dense, calibration_set(), compute_dtype=torch.float32, scratch=scratch)
        weights = dense.read_ffn(0)
        streams.enter(0, weights)
        streams.leave(lambda x: half(x, weights))
        return streams.converted.clone()

    in_memory = run(tmp_path / "a")
    monkeypatch.setattr(capture, "IN_MEMORY_BYTES", 0)
    assert torch.equal(run(tmp_path / "b"), in_memory)
    names = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert names == ["ffn-inputs.bin", "hidden-converted.bin", "hidden-dense.bin"]
    assert not (tmp_path / "a").exists()


def test_hidden_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    dense = open_dense(str(save_variant("llama", tmp_path / "dense")))
    streams = Streams(dense, calibration_set(), compute_dtype=torch.float32, scratch=tmp_path)
    streams.converted[1, 2] = torch.nan
    with pytest.raises(CalibrationError, match=r"dense, layer 0: expected finite hidden states, found NaN"):
        streams.enter(0, dense.read_ffn(0))


def made_traffic(rows: int, length: int) -> LayerTraffic:
    x = torch.arange(rows * length).float().view(rows, length, 1)
    valid = torch.ones(rows, length, dtype=torch.bool)
    valid[0, -2:] = False
    return LayerTraffic(x, torch.zeros_like(x), 2 * x, valid, judging_tokens(valid))


def test_fitting_and_judging_tokens_are_all_tokens_once() -> None:
    traffic = made_traffic(40, 64)
    fit, judge = (torch.cat([b.x for b in traffic.batches(judging=side)]) for side in (False, True))
    assert torch.equal(torch.cat([fit, judge]).sort(dim=0).values, traffic.inputs[traffic.valid])
    assert len(judge) / traffic.num_tokens == pytest.approx(1 / 8, abs=0.02)
    assert all(torch.equal(b.target, 2 * b.x) for b in traffic.batches())


def test_judging_tokens_fall_on_every_part_of_a_row() -> None:
    """A fixed step through rows of a whole number of runs would judge on the rows' ends only."""
    judging = judging_tokens(torch.ones(400, 256, dtype=torch.bool))
    share = judging.double().view(400, 4, 64).mean(dim=(0, 2))
    assert share.min() > 0.06
    assert share.max() < 0.19


def test_a_sample_is_spread_evenly_and_knows_its_judges() -> None:
    traffic = made_traffic(40, 64)
    sample = traffic.sample(100)
    judges = traffic.judging.flatten()
    assert len(sample.x) == 100
    assert sample.x.sort(dim=0).values.diff(dim=0).min() > 20
    assert torch.equal(torch.cat([sample.fitting, sample.judging]), sample.x)
    for part, held in ((sample.fitting, False), (sample.judging, True)):
        assert len(part) > 0
        assert part.diff(dim=0).min() > 0
        assert bool((judges[part[:, 0].long()] == held).all())
    assert len(traffic.sample(10**9).x) == traffic.num_tokens
