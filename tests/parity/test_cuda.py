"""On a machine with a GPU: what `--device cuda` computes is what the CPU computes.

Skipped where torch sees no GPU. Run it with `python -m pytest -s tests/parity/test_cuda.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.comparisons import Ground, make_ground
from support.families import save_variant

from expertweaver import benchmark, compare, convert, evaluate, make_recipe
from expertweaver.assets import shipped_heldout, shipped_model
from expertweaver.bench.request import BenchOptions
from expertweaver.calibration.capture import profile_layers
from expertweaver.calibration.samples import CalibrationSet
from expertweaver.calibration.statistics import LayerStatistics, StatisticsFolder
from expertweaver.calibration.traffic import Streams
from expertweaver.checkpoint.manifest import RECORD_FOLDER
from expertweaver.dense.model import open_dense
from expertweaver.dense.runner import CPU
from expertweaver.evaluation.results import ModelQuality
from expertweaver.modeling.reference import activation, dense_ffn
from expertweaver.recipe.schema import method_options
from expertweaver.registry import module_names

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

GPU = torch.device("cuda", 0)
FAMILIES = ("llama", "qwen3", "phi3", "granite", "gemma3")


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The distance of two tensors over the norm of the second; over one where that is zero."""
    return float((a.double() - b.double()).norm() / (b.double().norm() or 1.0))


def calibration() -> CalibrationSet:
    token_ids = torch.randint(2, 96, (24, 64), generator=torch.Generator().manual_seed(0))
    return CalibrationSet(token_ids, torch.arange(24)[:, None].expand(24, 64).contiguous(), ("a",) * 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics(family: str, tmp_path: Path) -> None:
    dense = open_dense(str(save_variant(family, tmp_path / "dense")))
    found: list[LayerStatistics] = []
    for device in (CPU, GPU):
        folder = StatisticsFolder(tmp_path / device.type, dense.dims.num_hidden_layers)
        options: dict[str, Any] = {"compute_dtype": torch.float32, "num_probes": 500, "scratch": tmp_path}
        profile_layers(dense, calibration(), folder, device=device, **options)
        found.append(folder[dense.dims.num_hidden_layers - 1])
    here, there = found
    for name, value in vars(here).items():
        if value is not None:
            assert apart(getattr(there, name), value) < 1e-5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_both_streams(family: str, tmp_path: Path) -> None:
    dense = open_dense(str(save_variant(family, tmp_path / "dense")))
    act, found = activation(dense.dims.hidden_act), []
    for device in (CPU, GPU):
        streams = Streams(dense, calibration(), compute_dtype=torch.float32, scratch=tmp_path, device=device)
        for layer in range(dense.dims.num_hidden_layers):
            ffn = dense.read_ffn(layer)
            traffic = streams.enter(layer, ffn)
            halved = ffn.to(torch.float32, device)
            streams.leave(lambda x, halved=halved: dense_ffn(x, halved, act) / 2)
            found.append([torch.cat([b.x, b.target], dim=1) for b in traffic.batches()])
    here, there = found[: len(found) // 2], found[len(found) // 2 :]
    for a, b in zip(here, there, strict=True):
        assert apart(torch.cat(b), torch.cat(a)) < 1e-5


QUICK: dict[str, Any] = {"calibration.num_samples": 64, "calibration.sequence_length": 128, "num_slices": 32}
ON_SUMS = [name for name in module_names("methods") if not method_options(name)(name=name).is_sequential]
HELD_OUT: dict[str, Any] = {"text": [str(shipped_heldout())], "max_tokens_per_document": 128}


def converted(name: str, out: Path, device: str) -> Path:
    recipe = make_recipe(shipped_model(), settings={**QUICK, "method": name, "dtype": "float32"})
    return convert(recipe, out / f"{name}-{device}", device=device).path


@pytest.mark.parametrize("name", ON_SUMS)
def test_methods_that_rest_on_sums_make_the_same_model(name: str, tmp_path: Path) -> None:
    if method_options(name)(name=name).beyond_stock is not None:
        pytest.skip("no checkpoint holds it")
    models = [converted(name, tmp_path, device) for device in ("cpu", "cuda")]
    here, there = (load_file(model / RECORD_FOLDER / "partition.safetensors") for model in models)
    assert here
    assert here.keys() == there.keys()
    for key, owners in here.items():
        assert torch.equal(there[key], owners)


def test_weave_is_as_good(tmp_path: Path) -> None:
    """Rounding grows along its fits as another seed would (docs/determinism.md): other experts, a like loss."""
    models = [converted("weave", tmp_path, "cpu"), converted("weave", tmp_path, "cuda")]
    quality = evaluate([*models, converted("static", tmp_path, "cpu")], against=shipped_model(), **HELD_OUT)
    dense, cpu, gpu, static = (loss(model) for model in quality.models)
    print(f"\nover dense: weave {cpu - dense:.4f} (CPU), {gpu - dense:.4f} (GPU), static {static - dense:.4f}")
    assert 0 < max(cpu, gpu) - dense < 0.5 * (static - dense)


def loss(model: ModelQuality) -> float:
    [everything] = [domain for domain in model.domains if domain.domain == "all"]
    return everything.nats_per_token


def test_evaluation() -> None:
    here, there = (evaluate([shipped_model()], device=device, **HELD_OUT) for device in ("cpu", "cuda"))
    for a, b in zip(here.models[0].domains, there.models[0].domains, strict=True):
        assert b.nats_per_token == pytest.approx(a.nats_per_token, abs=1e-4)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return make_ground(tmp_path)


def test_comparison(ground: Ground) -> None:
    """Methods that draw nothing and look at sums of all tokens make the same design on both."""
    options = ground.request(methods="static,flap,abstopk", mlp_sparsities=[0.5], seeds=1)
    here = compare(**{**options, "source": ground.source, "out": ground.out})
    there = compare(**{**options, "source": ground.source, "out": ground.out.with_name("gpu")}, device="cuda")
    assert (here.device, there.device) == ("cpu", "cuda")
    for label in ("static", "flap", "abstopk"):
        [a], [b] = here.cells_of(label, 0.5), there.cells_of(label, 0.5)
        assert b.reached_mlp_sparsity == pytest.approx(a.reached_mlp_sparsity, abs=1e-3)
        for x, y in zip(a.documents, b.documents, strict=True):
            assert y.nats / y.num_tokens == pytest.approx(x.nats / x.num_tokens, abs=2e-3)


def test_bench(tmp_path: Path) -> None:
    done = convert(make_recipe(shipped_model(), settings={**QUICK, "method": "random"}), tmp_path / "x")
    options = BenchOptions(batches=(1,), prefills=(64,), prompt_length=16, new_tokens=4, repeats=2, device="cuda")
    measured = benchmark(done.path, options=options)
    assert {m.experts for m in measured.measurements} == {None, "eager", "grouped_mm"}
    assert measured.setup["gpu"] == torch.cuda.get_device_name(0)
    assert all(m.seconds.median > 0 for m in measured.measurements)
