"""The main road end to end on tiny models: exactness, determinism, types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.families import save_text, save_variant
from support.progress import RecordingProgress
from transformers import AutoModelForCausalLM

from expertweaver import convert, make_recipe
from expertweaver.checkpoint.shards import file_sha256
from expertweaver.conversion import Conversion


def run(
    folder: Path, name: str, source: Path, progress: RecordingProgress | None = None, **settings: Any
) -> Conversion:
    text = folder / "text.jsonl"
    if not text.exists():
        save_text(text)
    chosen = {
        "num_slices": 8,
        "mlp_sparsity": 0.5,
        "calibration": [str(text)],
        "calibration.sequence_length": 32,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    recipe = make_recipe(source, settings=chosen)
    return convert(recipe, folder / name, progress=progress or RecordingProgress())


def weight_hashes(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_variant("llama-tied", tmp_path / "dense")


def test_the_same_recipe_writes_the_same_bytes_and_the_seed_matters(tmp_path: Path, source: Path) -> None:
    first, again = (run(tmp_path, name, source, method__seed=1) for name in ("first", "again"))
    shards = {n: h for n, h in weight_hashes(first.path).items() if n.endswith((".safetensors", ".json"))}
    assert shards == {n: h for n, h in weight_hashes(again.path).items() if n in shards}
    assert len([n for n in shards if n.endswith(".safetensors")]) == 4  # embeddings, two layers, head
    other = run(tmp_path, "other", source, method__seed=2)
    assert weight_hashes(other.path) != weight_hashes(first.path)


@torch.inference_mode()
def test_nothing_skipped_is_the_dense_model(tmp_path: Path, source: Path) -> None:
    done = run(tmp_path, "whole", source, mlp_sparsity=0.0)
    ids = torch.randint(2, 96, (2, 30), generator=torch.Generator().manual_seed(0))
    dense, sparse = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32)(ids).logits for p in (source, done.path)
    )
    assert (dense - sparse).abs().max() < 0.005 * dense.abs().max()  # routing weights are one to 3e-3
    budget = done.manifest["budget"]
    assert budget["num_active_params"] == budget["num_params"]


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_bfloat16_source_in_either_type(tmp_path: Path, stored: str) -> None:
    source = save_variant("qwen3", tmp_path / "dense", dtype=torch.bfloat16)
    done = run(tmp_path, "sparse", source, dtype=stored)
    tensors = {n: t for file in done.path.glob("*.safetensors") for n, t in load_file(file).items()}
    types = {t.dtype for n, t in tensors.items() if not n.endswith("e_score_correction_bias")}
    assert types == {getattr(torch, stored)}
    assert json.loads((done.path / "config.json").read_text())["dtype"] == stored
    original = {n: t for file in source.glob("*.safetensors") for n, t in load_file(file).items()}
    assert torch.equal(tensors["model.norm.weight"].bfloat16(), original["model.norm.weight"])


def test_a_narrower_type_is_verified_against_the_rounded_source(tmp_path: Path, source: Path) -> None:
    done = run(tmp_path, "sparse", source, dtype="bfloat16")
    assert done.verification.identity_error < 5e-6


def test_params_are_counted_as_stored(tmp_path: Path, source: Path) -> None:
    done = run(tmp_path, "sparse", source)
    model: Any = AutoModelForCausalLM.from_pretrained(done.path, dtype=torch.float32)
    budget, stored = done.manifest["budget"], done.manifest["stored"]
    assert budget["num_params"] == sum(p.numel() for p in model.parameters())
    idle = stored["num_experts"] - stored["num_experts_per_tok"]
    assert budget["num_params"] - budget["num_active_params"] == 2 * idle * stored["moe_intermediate_size"] * 3 * 32
    assert stored["n_shared_experts"] + stored["num_experts_per_tok"] == budget["active_slices"] == 4


def test_layers_that_share_more_are_stored_in_the_same_shapes(tmp_path: Path, source: Path) -> None:
    """tau between the layers' spreads makes their shares differ; the extra slices are always-chosen experts."""
    finer = {
        "method": "expertweaver",
        "num_slices": 32,
        "mlp_sparsity": 0.25,
        "method__tau": "auto",
        "method__alpha_min": 0.0,
    }
    done = run(tmp_path, "sparse", source, **finer)
    shares = [layer["num_shared"] for layer in done.manifest["layers"]]
    owners = load_file(done.path / "expertweaver" / "partition.safetensors")
    stored = done.manifest["stored"]
    assert len(set(shares)) == 2
    assert min(shares) == stored["n_shared_experts"]
    for layer in range(2):
        assert owners[f"{layer}.expert_neurons"].shape == (stored["num_experts"], 2)
        shard = load_file(sorted(done.path.glob("*.safetensors"))[layer + 1])
        bias = shard[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"]
        assert int((bias == 2).sum()) == shares[layer] - stored["n_shared_experts"]


def test_warnings_are_told_and_recorded(tmp_path: Path, source: Path) -> None:
    heard = RecordingProgress()
    done = run(tmp_path, "sparse", source, heard, method="expertweaver", method__tau=50.0)
    assert any("tau 50 is inert" in note for note in heard.notes)
    assert any("clipped to 3" in note for note in heard.notes)
    assert done.manifest["warnings"] == heard.notes
    assert [title for title, _ in heard.stages] == ["calibrating", "weaving", "verifying"]


def test_evaluation_lands_in_card_and_report(tmp_path: Path, source: Path) -> None:
    text = save_text(tmp_path / "heldout.jsonl", seed=9)
    done = run(tmp_path, "sparse", source, evaluate__text=[str(text)])
    result = json.loads((done.path / "expertweaver" / "evaluation.json").read_text())
    assert [model["name"] for model in result["models"]] == ["dense", "sparse"]
    nats = result["models"][1]["domains"][-1]["nats_per_token"]
    assert f"{nats:.3f}" in (done.path / "README.md").read_text()
    assert "partial" not in (done.path / "README.md").read_text()


def test_the_card_says_whether_weights_were_changed(tmp_path: Path, source: Path) -> None:
    """The default method repairs down_proj; the paper's does not."""
    repaired, sorted_only = (
        (run(tmp_path, method, source, method=method).path / "README.md").read_text()
        for method in ("weave", "expertweaver")
    )
    assert "`down_proj` of 2 of 2 layers was refitted" in repaired
    assert "refitted" not in sorted_only


def test_short_text_is_told_though_the_request_was_large(tmp_path: Path, source: Path) -> None:
    """F is 64: 24 documents of 40 letters are 12 tokens a neuron, two of them one."""
    enough, few = RecordingProgress(), RecordingProgress()
    run(tmp_path, "enough", source, enough)
    save_text(tmp_path / "short.jsonl", documents=2)
    done = run(tmp_path, "few", source, few, calibration=[str(tmp_path / "short.jsonl")])
    assert not any("per FFN neuron" in note for note in enough.notes)
    assert [note for note in few.notes if "80 calibration tokens are 1.2 per FFN neuron" in note]
    assert any("per FFN neuron" in warning for warning in done.manifest["warnings"])


def test_the_licence_of_the_source_is_inherited(tmp_path: Path, source: Path) -> None:
    (source / "README.md").write_text("---\nlicense: llama3.2\nlicense_link: https://example.org/l\n---\n# Model\n")
    card = run(tmp_path, "sparse", source).path / "README.md"
    assert "license: llama3.2" in card.read_text()
    assert "base_model: dense" in card.read_text()
