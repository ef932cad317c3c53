"""Every method through the whole road: converted, reloaded by stock transformers, compared with the dense model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.families import save_text, save_variant
from transformers import AutoModelForCausalLM

from expertweaver import convert, make_recipe
from expertweaver.checkpoint.shards import file_sha256
from expertweaver.conversion import Conversion
from expertweaver.dense.model import DenseModel, open_dense
from expertweaver.formats.glm4_moe import FORMAT
from expertweaver.modeling.reference import activation, dense_ffn
from expertweaver.modeling.values import GLUWeights
from expertweaver.recipe.schema import method_options
from expertweaver.registry import module_names

REPAIRING = {"weave"}
STOCK = [name for name in module_names("methods") if method_options(name)(name=name).beyond_stock is None]


def test_some_methods_are_exported_and_some_are_not() -> None:
    assert {"expertweaver", "weave", "static", "random"} < set(STOCK) < set(module_names("methods"))


@pytest.fixture(params=STOCK, scope="module")
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A folder, the source in it, and the settings of one method."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = {
        "method": request.param,
        "num_slices": 8,
        "mlp_sparsity": 0.5,
        "calibration": [str(save_text(folder / "text.jsonl", documents=40))],
        "calibration.sequence_length": 32,
    }
    return folder, save_variant("qwen2", folder / "dense"), settings


@pytest.fixture(scope="module")
def converted(road: tuple[Path, Path, dict[str, Any]]) -> Conversion:
    folder, source, settings = road
    return convert(make_recipe(source, settings=settings), folder / "sparse")


def served_ffn(done: Conversion, dense: DenseModel, layer: int) -> GLUWeights:
    """The dense FFN put together again from the experts on disk and the recorded partition."""
    owners = load_file(done.path / "expertweaver" / "partition.safetensors")
    shard = load_file(sorted(done.path.glob("*.safetensors"))[layer + 1])
    prefix = f"model.layers.{layer}.mlp"
    parts = {part: torch.full_like(getattr(dense.read_ffn(layer), part), torch.nan) for part in ("gate", "up", "down")}
    slices = [("shared_experts", owners[f"{layer}.shared_neurons"])]
    slices += [(f"experts.{e}", neurons) for e, neurons in enumerate(owners[f"{layer}.expert_neurons"])]
    for name, neurons in slices:
        parts["gate"][neurons] = shard[f"{prefix}.{name}.gate_proj.weight"]
        parts["up"][neurons] = shard[f"{prefix}.{name}.up_proj.weight"]
        parts["down"][:, neurons] = shard[f"{prefix}.{name}.down_proj.weight"]
    return GLUWeights(parts["gate"], parts["up"], parts["down"])


def test_gate_and_up_are_the_source_and_down_is_unless_repaired(
    converted: Conversion, road: tuple[Path, Path, dict[str, Any]]
) -> None:
    _, source, settings = road
    dense = open_dense(str(source))
    for layer in range(2):
        served, original = served_ffn(converted, dense, layer), dense.read_ffn(layer)
        assert torch.equal(served.gate, original.gate)
        assert torch.equal(served.up, original.up)
        repaired = settings["method"] in REPAIRING
        assert torch.equal(served.down, original.down) != repaired
        change = float((served.down - original.down).norm() / original.down.norm())
        recorded = converted.manifest["layers"][layer]["measures"].get("down_change", 0.0)
        assert change == pytest.approx(recorded, rel=1e-4)
    assert converted.verification.repaired == (settings["method"] in REPAIRING)


@torch.inference_mode()
def test_all_experts_on_is_the_ffn_that_is_served(
    converted: Conversion, road: tuple[Path, Path, dict[str, Any]]
) -> None:
    dense = open_dense(str(road[1]))
    model: Any = AutoModelForCausalLM.from_pretrained(converted.path, dtype=torch.float32)
    x = torch.randn(1, 30, 32, generator=torch.Generator().manual_seed(3))
    for index, layer in enumerate(model.model.layers):
        expected = dense_ffn(x, served_ffn(converted, dense, index), activation("silu"))
        chosen_only = layer.mlp(x)
        FORMAT.set_all_experts_on(layer.mlp)
        assert (layer.mlp(x) - expected).abs().max() < 2e-5
        assert (chosen_only - expected).abs().max() > 0.01


def test_the_same_request_writes_the_same_bytes(converted: Conversion, road: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, source, settings = road
    again = convert(make_recipe(source, settings=settings), folder / "again")
    assert again.manifest["files_sha256"] | {"README.md": ""} == converted.manifest["files_sha256"] | {"README.md": ""}


def test_a_run_stopped_after_the_first_layer_ends_the_same(
    converted: Conversion, road: tuple[Path, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source, settings = road
    out = folder / "stopped"
    import expertweaver.checkpoint.writer as writer

    real, written = writer.write_shard, []

    def stop_at_the_second(file: Path, tensors: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(file)
        real(file, tensors)

    recipe = make_recipe(source, settings=settings)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            convert(recipe, out)
    first = file_sha256(written[0])
    done = convert(recipe, out)
    assert file_sha256(done.path / written[0].name) == first
    weights = {n: h for n, h in done.manifest["files_sha256"].items() if n.endswith(".safetensors")}
    assert weights == {n: converted.manifest["files_sha256"][n] for n in weights}
    assert done.manifest["layers"] == converted.manifest["layers"]
    assert not any(out.glob(".*")), "nothing of the run is left behind"


def test_a_zero_ffn_is_converted_too(road: tuple[Path, Path, dict[str, Any]]) -> None:
    """Depth-expanded models start blocks with a zero down_proj."""
    folder, source, settings = road
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    zeroed = folder / "zeroed"
    model.save_pretrained(zeroed)
    for file in source.glob("tokenizer*"):
        (zeroed / file.name).write_bytes(file.read_bytes())
    done = convert(make_recipe(zeroed, settings=settings), folder / "from-zero")
    assert dataclasses.asdict(done.verification)["identity_error"] < 5e-6
