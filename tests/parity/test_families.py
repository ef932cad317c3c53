"""A real tiny model of every family that glm4_moe holds, converted, reloaded by stock transformers, compared.

tests/contract/test_formats.py does the same for the other formats and the families that only they hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.families import ACCEPTED, VARIANTS, save_text, save_variant
from torch.nn import Module
from transformers import AutoModelForCausalLM, Glm4MoeForCausalLM

from expertweaver import convert, make_recipe
from expertweaver.conversion import Conversion
from expertweaver.dense.family import families
from expertweaver.dense.model import open_dense
from expertweaver.formats.glm4_moe import FORMAT
from expertweaver.modeling.reference import activation, dense_ffn

MAX_DIFFERENCE = 2e-5
"""Largest |difference| of float32 logits (which span about 10) that re-association is allowed to make."""


def test_every_family_has_a_variant() -> None:
    assert {family for family, _ in VARIANTS.values()} == set(families())
    assert set(ACCEPTED) == set(VARIANTS)
    assert all(ACCEPTED.values()), "every variant is converted, here or by tests/contract/test_formats.py"


def test_every_rope_type_of_every_family_is_known_to_the_tests() -> None:
    covered: dict[str, set[str]] = {}
    for family, build in VARIANTS.values():
        rope = build().rope_parameters
        kinds = [values for values in rope.values() if isinstance(values, dict)] or [rope]
        covered.setdefault(family, set()).update(values["rope_type"] for values in kinds)
    supported = {rope for family in families().values() for rope in family.rope_types}
    assert set().union(*covered.values()) == supported


@pytest.fixture(params=sorted(v for v, names in ACCEPTED.items() if "glm4_moe" in names), scope="module")
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Conversion]:
    folder = tmp_path_factory.mktemp(request.param)
    source = save_variant(request.param, folder / "dense")
    settings = {
        "num_slices": 8,
        "mlp_sparsity": 0.5,
        "calibration": [str(save_text(folder / "text.jsonl"))],
        "calibration.sequence_length": 32,
        "calibration.num_samples": 24,
        "method": "expertweaver",
        "method.alpha_max": 0.3,
    }
    return source, convert(make_recipe(source, settings=settings), folder / "sparse")


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokens() -> torch.Tensor:
    return torch.randint(2, 96, (3, 40), generator=torch.Generator().manual_seed(7))


@torch.inference_mode()
def test_all_experts_on_equals_dense(converted: tuple[Path, Conversion]) -> None:
    source, done = converted
    dense, sparse = load(source), load(done.path)
    assert isinstance(sparse, Glm4MoeForCausalLM)
    expected = dense(tokens()).logits
    before = sparse(tokens()).logits
    for layer in sparse.model.layers:
        FORMAT.set_all_experts_on(cast("Module", layer.mlp))
    found = sparse(tokens()).logits
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < MAX_DIFFERENCE
    assert (before - expected).abs().max() > 100 * MAX_DIFFERENCE, "skipping experts must change something"


@torch.inference_mode()
def test_k_experts_equal_a_forward_written_out_here(converted: tuple[Path, Conversion]) -> None:
    """Each FFN of the reloaded model against a loop over tokens on the dense weights and the recorded partition."""
    from safetensors.torch import load_file

    source, done = converted
    dense, sparse = open_dense(str(source)), load(done.path)
    owners = load_file(done.path / "expertweaver" / "partition.safetensors")
    act = activation("silu")
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(3))
    for index, layer in enumerate(sparse.model.layers):
        weights = dense.read_ffn(index)
        router, shared = layer.mlp.gate, owners[f"{index}.shared_neurons"]
        for token, found in zip(x[0], layer.mlp(x)[0], strict=True):
            scores = (router.weight @ token).sigmoid()
            chosen = (scores + router.e_score_correction_bias).topk(router.top_k).indices
            expected = dense_ffn(token, weights.slice(shared), act)
            for expert in chosen.tolist():
                part = dense_ffn(token, weights.slice(owners[f"{index}.expert_neurons"][expert]), act)
                expected = expected + 2 * scores[expert] * part
            assert (found - expected).abs().max() < MAX_DIFFERENCE


@torch.inference_mode()
def test_served_routing_weights_are_one(converted: tuple[Path, Conversion]) -> None:
    _, done = converted
    sparse = load(done.path)
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(5))
    for layer in sparse.model.layers:
        _, weights, _ = layer.mlp.gate(x)
        assert (weights - 1).abs().max() < 0.01
        assert torch.equal(weights.bfloat16(), torch.ones_like(weights).bfloat16())


def test_stock_model_generates(converted: tuple[Path, Conversion]) -> None:
    _, done = converted
    sparse = load(done.path)
    ids = sparse.generate(tokens()[:1, :5], max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert ids.shape == (1, 9)


def test_verification_saw_what_these_tests_see(converted: tuple[Path, Conversion]) -> None:
    _, done = converted
    assert done.verification.whole_model
    assert done.verification.identity_error < 5e-6
    assert done.verification.reference_error < 5e-6
    assert done.verification.tied_share < 0.05
