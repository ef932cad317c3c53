"""Verification must see damage: each test breaks a sound checkpoint in one way and expects its name in the error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import save_text, save_variant

from expertweaver import convert, make_recipe
from expertweaver.calibration.samples import CalibrationSet
from expertweaver.checkpoint.verify import Verification, verify
from expertweaver.conversion import calibration_set
from expertweaver.dense.model import DenseModel
from expertweaver.errors import VerificationError
from expertweaver.estimate import LIBRARY_BYTES
from expertweaver.formats.base import Layout, StoredLayer, load_format
from expertweaver.planning import plan


@dataclass(frozen=True)
class Sound:
    """A converted tiny model and what verification needs to know of it."""

    path: Path
    dense: DenseModel
    calibration: CalibrationSet
    stored: list[StoredLayer]
    layout: Layout

    def verify(self, folder: Path, *, memory_budget: int = 1 << 40) -> Verification:
        form = load_format("glm4_moe")
        return verify(
            folder, self.dense, form, self.stored, self.layout, self.calibration,
            dtype=torch.float32, memory_budget=memory_budget,
        )  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    folder = tmp_path_factory.mktemp("sound")
    settings = {
        "num_slices": 8,
        "mlp_sparsity": 0.5,
        "calibration": [str(save_text(folder / "text.jsonl"))],
        "calibration.sequence_length": 32,
        "method": "expertweaver",
        "method.alpha_max": 0.3,
    }
    recipe = make_recipe(save_variant("qwen2", folder / "dense"), settings=settings)
    done = convert(recipe, folder / "sparse")
    todo = plan(recipe)
    owners = load_file(done.path / "expertweaver" / "partition.safetensors")
    tensors = all_tensors(done.path)
    stored = [
        StoredLayer(
            owners[f"{i}.shared_neurons"],
            owners[f"{i}.expert_neurons"],
            tensors[f"model.layers.{i}.mlp.gate.weight"],
            tensors[f"model.layers.{i}.mlp.gate.e_score_correction_bias"],
            record["router_scale_log2"],
            record["max_abs_router_logit"],
            record["routing_kept"],
        )
        for i, record in enumerate(done.manifest["layers"])
    ]
    sizes = done.manifest["stored"]
    layout = Layout(
        sizes["num_experts"], sizes["num_experts_per_tok"], sizes["n_shared_experts"], sizes["moe_intermediate_size"]
    )
    return Sound(done.path, todo.dense, calibration_set(todo), stored, layout)


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], *, layer: int = 0) -> None:
    """Change the tensors of one layer's shard, keeping the index true to them."""
    file = sorted(folder.glob("*.safetensors"))[layer + 1]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f != file.name} | dict.fromkeys(
        tensors, file.name
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def damage_gate(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.experts.1.gate_proj.weight"][0, 0] += 1


def swap_experts(tensors: dict[str, torch.Tensor]) -> None:
    a, b = (f"model.layers.0.mlp.experts.{e}.down_proj.weight" for e in (0, 1))
    tensors[a], tensors[b] = tensors[b], tensors[a]


def damage_bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.k_proj.bias"] *= 2


def drop_tensor(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.0.self_attn.k_proj.bias"]


def add_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.experts.99.gate_proj.weight"] = torch.zeros(2, 2)


def change_router(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.gate.weight"] *= -1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage_gate, r"experts\.1\.gate_proj\.weight differs"),
        (swap_experts, r"experts\.0\.down_proj\.weight differs"),
        (damage_bias, r"k_proj\.bias differs"),
        (drop_tensor, r"k_proj\.bias is missing"),
        (add_tensor, r"experts\.99\.gate_proj\.weight has no origin"),
        (change_router, r"gate\.weight differs"),
    ],
)
def test_damage_is_named(sound: Sound, tmp_path: Path, change: Any, words: str) -> None:
    folder = shutil.copytree(sound.path, tmp_path / "damaged")
    edit(folder, change)
    with pytest.raises(VerificationError, match=words):
        sound.verify(folder)


@pytest.mark.parametrize("memory_budget", [1 << 40, 0], ids=["whole model", "layer by layer"])
def test_a_sound_checkpoint_passes_either_way(sound: Sound, memory_budget: int) -> None:
    found = sound.verify(sound.path, memory_budget=memory_budget)
    assert found.whole_model == (memory_budget > 0)
    assert max(found.identity_error, found.reference_error, found.logit_error) < 5e-6
    assert found.num_test_tokens == 64


def test_loading_is_counted_as_three_copies(sound: Sound) -> None:
    needed = 3 * 4 * sum(tensor.numel() for tensor in all_tensors(sound.path).values())
    assert sound.verify(sound.path, memory_budget=needed).whole_model
    assert not sound.verify(sound.path, memory_budget=needed - 1).whole_model


def test_a_conversion_verifies_within_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[int] = []

    def watched(*args: Any, memory_budget: int, **kwargs: Any) -> Verification:
        budgets.append(memory_budget)
        return verify(*args, memory_budget=memory_budget, **kwargs)

    monkeypatch.setattr("expertweaver.conversion.verify", watched)
    text = str(save_text(tmp_path / "text.jsonl"))
    settings = {"num_slices": 8, "mlp_sparsity": 0.5, "calibration": [text], "calibration.sequence_length": 32}
    recipe = make_recipe(save_variant("llama", tmp_path / "dense"), settings=settings | {"method": "random"})
    convert(recipe, tmp_path / "sparse")
    monkeypatch.setattr("expertweaver.conversion.available_memory", lambda: 1000)
    convert(recipe, tmp_path / "crowded")
    assert budgets == [plan(recipe).memory_bytes - LIBRARY_BYTES, 500]


@pytest.mark.parametrize("memory_budget", [1 << 40, 0], ids=["whole model", "layer by layer"])
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("routed_scaling_factor", 1.0, "all experts on"),
        ("num_experts_per_tok", 1, "K experts"),
        ("norm_topk_prob", True, "all experts on"),
        ("hidden_act", "gelu", "all experts on"),
    ],
)
def test_a_wrong_configuration_is_seen_by_the_forward_checks(
    sound: Sound, tmp_path: Path, memory_budget: int, key: str, value: Any, words: str
) -> None:
    folder = shutil.copytree(sound.path, tmp_path / "misconfigured")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(VerificationError, match=words):
        sound.verify(folder, memory_budget=memory_budget)


@pytest.mark.parametrize("memory_budget", [1 << 40, 0], ids=["whole model", "layer by layer"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_bias": False}, r"unexpected_keys: .*k_proj\.bias"),
        ({"num_hidden_layers": 3}, r"missing_keys: .*layers\.2\.input_layernorm\.weight"),
        ({"n_routed_experts": 7}, r"mismatched_keys: .*layers\.0\.mlp\.experts\.down_proj"),
        ({"vocab_size": 64}, r"mismatched_keys: .*lm_head\.weight"),
    ],
)
def test_what_transformers_says_of_the_folder_is_an_error(
    sound: Sound, tmp_path: Path, memory_budget: int, change: dict[str, Any], words: str
) -> None:
    folder = shutil.copytree(sound.path, tmp_path / "misconfigured")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match=words):
        sound.verify(folder, memory_budget=memory_budget)


@pytest.mark.parametrize("memory_budget", [1 << 40, 0], ids=["whole model", "layer by layer"])
@pytest.mark.parametrize(
    "change", [{"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}, {"rms_norm_eps": 0.5}]
)
def test_wrong_attention_or_norms_are_seen_by_the_logits(
    sound: Sound, tmp_path: Path, memory_budget: int, change: dict[str, Any]
) -> None:
    folder = shutil.copytree(sound.path, tmp_path / "misconfigured")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match="logits"):
        sound.verify(folder, memory_budget=memory_budget)


def test_the_neurons_must_be_a_permutation(sound: Sound, tmp_path: Path) -> None:
    twice = torch.stack(list(sound.stored[0].expert_neurons))
    twice[0] = twice[1]
    broken = StoredLayer(**{**vars(sound.stored[0]), "expert_neurons": twice})
    with pytest.raises(VerificationError, match="not a permutation"):
        Sound(sound.path, sound.dense, sound.calibration, [broken, *sound.stored[1:]], sound.layout).verify(sound.path)
