"""Any small shape, budget and division into shards: the same result, or a refusal in four parts."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.commands import Bench, hashes, refusal, run
from support.families import SIZES, save_text, save_tokenizer
from support.models import INDEX, WEIGHTS

few = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def divide(folder: Path, owners: list[int]) -> None:
    """Divide a model into as many shards as there are different owners, a tensor to each in turn."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {name: f"part-{owners[place % len(owners)]}.safetensors" for place, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name, owner in weight_map.items() if owner == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


@few
@given(owners=st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_however_a_source_is_divided_the_weights_are_the_same(template: Path, owners: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(shutil.copytree(template, Path(name) / "bench"))
        assert bench.convert().exit_code == 0
        whole = weights(bench.out)
        shutil.rmtree(bench.out)
        divide(bench.source, owners)
        assert bench.convert().exit_code == 0
        assert weights(bench.out) == whole


def weights(folder: Path) -> dict[str, str]:
    """Hashes of what a model is; the record names the source's headers, which differ."""
    kinds = (".safetensors", "config.json", "index.json")
    return {name: value for name, value in hashes(folder).items() if name.endswith(kinds)}


SHAPES = st.fixed_dictionaries(
    {
        "head_dim": st.sampled_from([4, 8, 16]),
        "num_key_value_heads": st.sampled_from([1, 2]),
        "groups": st.integers(1, 3),
        "intermediate_size": st.sampled_from([24, 32, 60, 64]),
        "num_hidden_layers": st.integers(1, 3),
        "hidden_size": st.sampled_from([24, 48]),  # transformers wants a multiple of the heads
    }
)


@few
@given(
    shape=SHAPES,
    num_slices=st.sampled_from([2, 4, 6, 8]),
    mlp_sparsity=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    method=st.sampled_from(["weave", "expertweaver", "static"]),
)
def test_any_shape_and_budget_is_converted_or_refused_in_words(
    shape: dict[str, Any], num_slices: int, mlp_sparsity: float, method: str
) -> None:
    heads = shape["num_key_value_heads"] * shape.pop("groups")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        sizes = {**SIZES, **shape, "num_attention_heads": heads}
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(folder / "dense")
        save_tokenizer(folder / "dense")
        save_text(folder / "text.jsonl")
        result = run(
            "convert", folder / "dense", folder / "sparse", "--calibration", folder / "text.jsonl", "--json",
            "--num-slices", str(num_slices), "--mlp-sparsity", str(mlp_sparsity), "--method", method,
            "--set", "calibration.sequence_length=16", "--set", "calibration.num_samples=16",
        )  # fmt: skip
        if result.exit_code == 0:
            budget = json.loads(result.stdout)["manifest"]["budget"]
            assert abs(budget["mlp_sparsity"] - mlp_sparsity) < 1e-9
            assert budget["active_slices"] * budget["slice_width"] == shape["intermediate_size"] * (1 - mlp_sparsity)
        else:
            refusal(result, result.exit_code)
            assert result.exit_code in (2, 3)
            assert shape["intermediate_size"] % num_slices or (num_slices * mlp_sparsity) % 1
        assert [path.name for path in folder.glob("sparse*")] == ["sparse"] * (result.exit_code == 0)
