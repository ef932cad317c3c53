"""What only our own class can hold, through the whole road: a bias, unequal and overlapping experts, own shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.families import save_text, save_variant
from transformers import AutoModelForCausalLM

from expertweaver import convert, make_recipe
from expertweaver.checkpoint.finished import unpack_experts
from expertweaver.conversion import Conversion
from expertweaver.dense.model import open_dense
from expertweaver.evaluation.params import count_params
from expertweaver.modeling.reference import activation, dense_ffn

METHODS: dict[str, dict[str, Any]] = {
    "flap": {"method": "flap"},
    "flap-global": {"method": "flap", "method.scope": "global"},
    "read-me": {"method": "read_me"},
    "weave": {"method": "weave"},
}


@pytest.fixture(params=METHODS, scope="module")
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Conversion]:
    folder = tmp_path_factory.mktemp(request.param)
    source = save_variant("olmo2", folder / "dense")
    settings = {
        "format": "expertweaver_moe",
        "num_slices": 8,
        "mlp_sparsity": 0.5,
        "calibration": [str(save_text(folder / "text.jsonl", documents=40))],
        "calibration.sequence_length": 32,
    }
    recipe = make_recipe(source, settings=settings | METHODS[request.param])
    return request.param, source, convert(recipe, folder / "sparse")


@torch.inference_mode()
def test_an_ffn_runs_the_recorded_neurons_and_the_bias(converted: tuple[str, Path, Conversion]) -> None:
    name, source, done = converted
    dense, owners = open_dense(str(source)), load_file(done.path / "expertweaver" / "partition.safetensors")
    model: Any = AutoModelForCausalLM.from_pretrained(done.path, dtype=torch.float32)
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(3))
    widths, neurons = [], torch.empty(0)
    for index, layer in enumerate(model.model.layers):
        kept = {k.removeprefix(f"{index}."): v for k, v in owners.items() if k.startswith(f"{index}.")}
        experts, router = unpack_experts(kept), layer.mlp.router
        weights = dense.read_ffn(index)
        for token, found in zip(x[0], layer.mlp(x)[0], strict=True):
            chosen = (router.weight @ token + router.bias).topk(router.top_k).indices.tolist()
            neurons = torch.cat([kept["shared_neurons"], *(experts[e] for e in chosen)])
            assert len(neurons) == len(neurons.unique()), "no neuron runs twice"
            expected = dense_ffn(token, weights.slice(neurons), activation("silu"))
            if layer.mlp.output_bias is not None:
                expected = expected + layer.mlp.output_bias
            if name != "weave":  # which repairs down_proj
                assert (found - expected).abs().max() < 2e-5
        widths.append(len(neurons))
        assert (layer.mlp.output_bias is not None) == name.startswith("flap")
    assert sum(widths) == 2 * 32, "as many neurons as the budget says"
    assert (len(set(widths)) > 1) == (name == "flap-global")


def test_the_record_counts_what_the_class_counts(converted: tuple[str, Path, Conversion]) -> None:
    _, _, done = converted
    model: Any = AutoModelForCausalLM.from_pretrained(done.path)
    counts, budget = count_params(model), done.manifest["budget"]
    assert (counts.num_params, counts.num_active_params) == (budget["num_params"], budget["num_active_params"])
    assert sum(layer["num_shared"] + layer["num_active_routed"] for layer in done.manifest["layers"]) == 8
    assert (done.path / "expertweaver" / "report.html").stat().st_size > 0


def test_verification_was_exact(converted: tuple[str, Path, Conversion]) -> None:
    _, _, done = converted
    assert done.verification.identity_error < 5e-6
    assert done.verification.reference_error < 5e-6


def test_layers_keep_the_share_the_method_gave_them(converted: tuple[str, Path, Conversion]) -> None:
    """A stock format stores the smallest share of any layer; our own class each layer's own."""
    _, _, done = converted
    config = json.loads((done.path / "config.json").read_text("utf-8"))
    shared = config["shared_expert_intermediate_size"]
    shared = [shared, shared] if isinstance(shared, int) else shared
    assert [size / 8 for size in shared] == pytest.approx([x["num_shared"] for x in done.manifest["layers"]], abs=0.01)
