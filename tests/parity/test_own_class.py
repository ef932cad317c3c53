"""A tiny model of every family in our own class: converted, reloaded, compared with the dense model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.families import VARIANTS, save_text, save_variant
from transformers import AutoModelForCausalLM

from expertweaver import convert, make_recipe
from expertweaver.conversion import Conversion
from expertweaver.dense.family import families
from expertweaver.dense.model import open_dense
from expertweaver.formats.expertweaver_moe import FORMAT
from expertweaver.modeling.reference import activation, dense_ffn

MAX_DIFFERENCE = 2e-5
WINDOW = 8
TESTED = (
    "llama-tied",
    "llama-3-rope",
    "mistral-window",
    "qwen2-window",
    "qwen3",
    "phi3-partial-rope",
    "gemma",
    "granite",
    "internlm3",
    "seed_oss",
    "olmo2",
    "gemma2",
    "gemma3",
)


def test_every_family_is_tested_here() -> None:
    assert {VARIANTS[name][0] for name in TESTED} == set(families())


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "format": "expertweaver_moe",
        "num_slices": 8,
        "mlp_sparsity": 0.5,
        "calibration": [str(save_text(folder / "text.jsonl"))],
        "calibration.sequence_length": 32,
        "calibration.num_samples": 24,
    } | more


@pytest.fixture(params=TESTED, scope="module")
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Conversion]:
    folder = tmp_path_factory.mktemp(request.param)
    source = save_variant(request.param, folder / "dense")
    recipe = make_recipe(source, settings=settings(folder, method="expertweaver", **{"method.alpha_max": 0.3}))
    return source, convert(recipe, folder / "sparse")


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokens() -> torch.Tensor:
    """Longer than the window of the families that have one."""
    return torch.randint(2, 96, (3, 5 * WINDOW), generator=torch.Generator().manual_seed(7))


@torch.inference_mode()
def test_all_experts_on_equals_dense(converted: tuple[Path, Conversion]) -> None:
    source, done = converted
    dense, sparse = load(source), load(done.path)
    assert type(sparse).__name__ == "ExpertWeaverMoeForCausalLM"
    assert isinstance(sparse, type(dense)), "the source's own class does everything but the FFN"
    expected, before = dense(tokens()).logits, sparse(tokens()).logits
    for layer in sparse.model.layers:
        FORMAT.set_all_experts_on(layer.mlp)
    assert expected.abs().max() > 1
    assert (sparse(tokens()).logits - expected).abs().max() < MAX_DIFFERENCE
    assert (before - expected).abs().max() > 100 * MAX_DIFFERENCE, "skipping experts must change something"


@torch.inference_mode()
def test_k_experts_equal_a_forward_written_out_here(converted: tuple[Path, Conversion]) -> None:
    source, done = converted
    dense, sparse = open_dense(str(source)), load(done.path)
    owners = load_file(done.path / "expertweaver" / "partition.safetensors")
    act = activation(dense.dims.hidden_act)
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(3))
    for index, layer in enumerate(sparse.model.layers):
        weights, router = dense.read_ffn(index), layer.mlp.router
        for token, found in zip(x[0], layer.mlp(x)[0], strict=True):
            chosen = (router.weight @ token + router.bias).topk(router.top_k).indices
            neurons = torch.cat([owners[f"{index}.shared_neurons"], *owners[f"{index}.expert_neurons"][chosen]])
            assert len(neurons) == dense.dims.intermediate_size // 2
            assert (found - dense_ffn(token, weights.slice(neurons), act)).abs().max() < MAX_DIFFERENCE


@torch.inference_mode()
def test_the_window_and_the_positions_are_the_source_s(converted: tuple[Path, Conversion]) -> None:
    """What is far away changes the last token only where some layer sees it."""
    source, done = converted
    config = json.loads((source / "config.json").read_text("utf-8"))
    everywhere = config.get("sliding_window") is not None and "layer_types" not in config
    sparse = load(done.path)
    changed = tokens()
    changed[:, 0] = (changed[:, 0] + 1) % 90 + 2
    same = torch.equal(sparse(changed).logits[:, -1], sparse(tokens()).logits[:, -1])
    assert same == everywhere, "two layers of a window of 8 reach 14 tokens back"


def test_generation_with_the_cache_equals_generation_without(converted: tuple[Path, Conversion]) -> None:
    _, done = converted
    sparse = load(done.path)
    options = {"max_new_tokens": 3 * WINDOW, "do_sample": False, "eos_token_id": None}
    found = [sparse.generate(tokens()[:1, :5], use_cache=use, **options) for use in (True, False)]
    assert torch.equal(*found)
    assert found[0].shape == (1, 5 + 3 * WINDOW)


def test_verification_saw_what_these_tests_see(converted: tuple[Path, Conversion]) -> None:
    _, done = converted
    assert done.verification.whole_model
    assert done.verification.identity_error < 5e-6
    assert done.verification.reference_error < 5e-6
    assert done.verification.tied_share == 0


@torch.inference_mode()
def test_a_saved_model_loads_the_same(converted: tuple[Path, Conversion], tmp_path: Path) -> None:
    _, done = converted
    sparse = load(done.path)
    sparse.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert torch.equal(again(tokens()).logits, sparse(tokens()).logits)
    assert json.loads(again.config.to_json_string()) == json.loads(sparse.config.to_json_string())


@pytest.mark.parametrize("variant", ["olmo2", "gemma2"])
@torch.inference_mode()
def test_repair_helps_behind_a_norm_too(variant: str, tmp_path: Path) -> None:
    """weave's target is then the dense FFN's output, and reaching for it brings the logits nearer."""
    source = save_variant(variant, tmp_path / "dense")
    expected = load(source)(tokens()).logits.log_softmax(dim=-1)
    losses = []
    for repair in (False, True):
        more = {"method": "static", "method.repair": repair, "calibration.num_samples": 200}
        recipe = make_recipe(source, settings=settings(tmp_path, **more))
        done = convert(recipe, tmp_path / f"repaired-{repair}")
        found = load(done.path)(tokens()).logits.log_softmax(dim=-1)
        losses.append(float((expected.exp() * (expected - found)).sum(dim=-1).mean()))
    assert losses[1] < losses[0]
