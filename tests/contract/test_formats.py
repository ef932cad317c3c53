"""Every registered format through one suite, over every kind of model that it accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.families import ACCEPTED, VARIANTS, save_text, save_variant
from support.llamacpp import PAIRS as IN_LLAMA_CPP
from support.llamacpp import REFUSED
from transformers import AutoModelForCausalLM

from expertweaver import convert, make_recipe
from expertweaver.conversion import Conversion
from expertweaver.dense.family import families
from expertweaver.dense.model import DenseModel, open_dense
from expertweaver.formats.base import Capabilities, Format, load_format
from expertweaver.formats.parts.fit import DYNAMIC, unserved
from expertweaver.modeling.reference import activation, dense_ffn
from expertweaver.modeling.values import Need
from expertweaver.registry import module_names

MAX_DIFFERENCE = 2e-5
"""Largest |difference| of float32 logits (which span about 10) that re-association is allowed to make."""

OWN = "expertweaver_moe"

PAIRS = [
    (variant, name)
    for variant, names in ACCEPTED.items()
    for name in sorted(names - {"glm4_moe"} if variant not in ("llama", "qwen2", "qwen3") else names)
    if name != OWN
]
"""Converted here; tests/parity converts every model that glm4_moe accepts, and those of our own class."""


@pytest.mark.parametrize("name", module_names("formats"))
def test_a_format_has_every_function_of_the_contract_with_its_parameters(name: str) -> None:
    form = load_format(name)
    contract = {n: f for n, f in vars(Format).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert len(contract) >= 8
    for function, declared in contract.items():
        wanted = [p for p in inspect.signature(declared).parameters if p != "self"]
        assert list(inspect.signature(getattr(form, function)).parameters) == wanted, function
        assert inspect.getdoc(getattr(form, function)), function


@pytest.mark.parametrize("name", module_names("formats"))
def test_a_format_says_what_it_can_hold(name: str) -> None:
    found = load_format(name).capabilities
    assert isinstance(found, Capabilities)
    assert all(isinstance(need, Need) for need in found.needs)
    assert all(file.is_file() for file in found.side_files)
    assert Need.ORACLE not in found.needs, "nothing that is served can know what an oracle knows"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves each model once."""
    root = tmp_path_factory.mktemp("sources")

    def source(variant: str) -> Path:
        return root / variant if (root / variant).exists() else save_variant(variant, root / variant)

    return source


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_format_accepts_a_model_or_says_why_not(variant: str, sources: Callable[[str], Path]) -> None:
    dense = open_dense(str(sources(variant)))
    problems = {name: load_format(name).check(dense, torch.float32) for name in module_names("formats")}
    assert {name for name, found in problems.items() if not found} == ACCEPTED[variant]
    assert all(str(problem) for found in problems.values() for problem in found)


def test_the_plan_says_of_a_model_what_the_export_to_llama_cpp_refuses(sources: Callable[[str], Path]) -> None:
    told: dict[str, set[str]] = {name: set() for name in REFUSED}
    for variant, name in IN_LLAMA_CPP:
        lost = unserved(load_format(name).capabilities, open_dense(str(sources(variant))))
        if "llama.cpp" in {engine for engines in lost.values() for engine in engines}:
            told[name].add(variant)
    assert told == REFUSED


def test_what_no_format_takes_to_llama_cpp_is_said_by_each() -> None:
    can = {name: load_format(name).capabilities for name in module_names("formats")}
    served = {name for name in can if "llama.cpp" in can[name].engines}
    assert {name for name in can if "llama.cpp" in can[name].not_served.get(DYNAMIC, ())} == served > {"dots1"}


PAGE = (Path(__file__).parents[2] / "docs/formats.md").read_text("utf-8")
KINDS = {"-window": "with a window", "-longrope": "with longrope", "-partial-rope": "with partial positions"}
SAME_AS_THE_FAMILY = (
    "llama-3-rope",
    "llama-linear-rope",
    "llama-tied",
    "llama-wide-heads",
    "granite-biased",
    "olmo2-biased",
    "qwen2-yarn",
)


def table(first_heading: str) -> list[dict[str, str]]:
    """Rows of the page's table whose first column has this heading."""
    lines = PAGE[PAGE.index(f"| {first_heading} |") :].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_the_page_says_which_format_holds_which_model() -> None:
    documented = {row.pop("Model"): {name.strip("`") for name, cell in row.items() if cell} for row in table("Model")}
    expected = {}
    for variant in set(VARIANTS) - set(SAME_AS_THE_FAMILY):
        kind = next((words for ending, words in KINDS.items() if variant.endswith(ending)), "")
        expected[f"`{VARIANTS[variant][0]}` {kind}".strip()] = ACCEPTED[variant]
    assert documented == expected
    assert all(ACCEPTED[variant] == ACCEPTED[VARIANTS[variant][0]] for variant in SAME_AS_THE_FAMILY)


def test_the_page_says_what_a_format_declares() -> None:
    rows = {row["Format"].strip("`"): row for row in table("Format")}
    assert set(rows) == set(module_names("formats"))
    for name, row in rows.items():
        can = load_format(name).capabilities
        assert row["Engines whose code has the class"] == ", ".join(can.engines)
        assert (row["Router with a bias"] == "yes") == can.selection_bias
        assert (row["Layers may share different numbers of slices"] == "yes") == can.layer_adaptive_share
        assert row["Shared expert"] == can.shared_expert


def test_every_family_has_a_format_and_every_format_a_family() -> None:
    assert {VARIANTS[variant][0] for variant, names in ACCEPTED.items() if names} == set(families())
    assert set().union(*ACCEPTED.values()) == set(module_names("formats"))


@pytest.mark.parametrize("name", [name for name in module_names("formats") if name != OWN])
def test_a_type_that_is_not_exact_is_refused(name: str, sources: Callable[[str], Path]) -> None:
    [problem] = load_format(name).check(open_dense(str(sources(_first(name, but="gemma")))), torch.float16)
    assert (problem.where, problem.found) == ("output.dtype", "float16")
    if "gemma" in _accepting(name):
        [problem] = load_format(name).check(open_dense(str(sources("gemma"))), torch.bfloat16)
        assert (problem.expected, problem.found) == ("float32 for gemma", "bfloat16")


@dataclass(frozen=True)
class Converted:
    """A conversion into one format, and what the format shares."""

    form: Format
    dense: DenseModel
    done: Conversion

    def load(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.done.path, dtype=torch.float32).eval()


@pytest.fixture(params=PAIRS, ids="-".join, scope="module")
def converted(
    request: pytest.FixtureRequest, sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Converted:
    variant, name = request.param
    folder, form = tmp_path_factory.mktemp(name), load_format(name)
    settings = {
        "num_slices": 8,
        "mlp_sparsity": 0.375,
        "calibration": [str(save_text(folder / "text.jsonl"))],
        "calibration.sequence_length": 32,
        "calibration.num_samples": 24,
        "method": "random",
        "method.num_shared_slices": 0 if form.capabilities.shared_expert == "none" else 2,
        "format": name,
    }
    done = convert(make_recipe(sources(variant), settings=settings), folder / "sparse")
    return Converted(form, open_dense(str(sources(variant))), done)


def tokens() -> torch.Tensor:
    return torch.randint(2, 96, (3, 40), generator=torch.Generator().manual_seed(7))


@torch.inference_mode()
def test_all_experts_on_equals_dense(converted: Converted) -> None:
    sparse = converted.load()
    dense = AutoModelForCausalLM.from_pretrained(converted.dense.folder.path, dtype=torch.float32).eval()
    expected, before = dense(tokens()).logits, sparse(tokens()).logits
    for layer in sparse.model.layers:
        converted.form.set_all_experts_on(converted.form.stock_ffn(layer))
    assert type(sparse).__name__ == sparse.config.architectures[0]
    assert sparse.config.model_type == converted.done.manifest["format"]
    assert expected.abs().max() > 1
    assert (sparse(tokens()).logits - expected).abs().max() < MAX_DIFFERENCE
    assert (before - expected).abs().max() > 100 * MAX_DIFFERENCE, "skipping experts must change something"


@torch.inference_mode()
def test_k_experts_equal_a_sum_written_out_here(converted: Converted) -> None:
    """Each FFN against the shared and the chosen slices of the dense weights; the stock router says which, and K."""
    sparse, dense = converted.load(), converted.dense
    manifest, act = converted.done.manifest, activation(dense.dims.hidden_act)
    owners = load_file(converted.done.path / "expertweaver" / "partition.safetensors")
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(3))
    for index, layer in enumerate(sparse.model.layers):
        found, chosen, weights = watched(converted.form.stock_ffn(layer), x)
        weights = weights * manifest["layers"][index]["down_scales"]["routed"]
        assert chosen.shape == (20, manifest["stored"]["num_experts_per_tok"])
        assert (weights - 1).abs().max() < 0.01
        ffn = dense.read_ffn(index)
        expected = dense_ffn(x[0], ffn.slice(owners[f"{index}.shared_neurons"]), act)
        for token, (experts, scores) in enumerate(zip(chosen.tolist(), weights, strict=True)):
            for expert, weight in zip(experts, scores, strict=True):
                part = ffn.slice(owners[f"{index}.expert_neurons"][expert])
                expected[token] += weight * dense_ffn(x[0, token], part, act)
        assert (found[0] - expected).abs().max() < MAX_DIFFERENCE


def watched(ffn: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output of an FFN, and the expert ids and weights [T, K] that its router gave."""
    seen: list[Any] = []
    [router] = [module for module in ffn.modules() if type(module).__name__.lower().endswith("topkrouter")]
    hook = router.register_forward_hook(lambda module, inputs, output: seen.append(output))
    output = ffn(x)
    hook.remove()
    _, weights, chosen = seen[0]
    return output, chosen, weights


def test_verification_saw_what_these_tests_see(converted: Converted) -> None:
    verification = converted.done.verification
    assert verification.whole_model
    assert max(verification.identity_error, verification.reference_error) < 5e-6
    assert verification.tied_share < 0.05
    stored = converted.done.manifest["stored"]
    assert stored["n_shared_experts"] == (0 if converted.form.capabilities.shared_expert == "none" else 2)


@pytest.mark.parametrize("name", module_names("formats"))
def test_a_stock_layer_is_loaded_from_the_same_names(
    name: str, sources: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a model does not fit into memory, layers are loaded one at a time, and bfloat16 is checked as written."""
    monkeypatch.setattr("expertweaver.conversion.available_memory", lambda: 0)
    settings = {
        "num_slices": 8,
        "mlp_sparsity": 0.375,
        "calibration": [str(save_text(tmp_path / "text.jsonl"))],
        "calibration.sequence_length": 32,
        "method": "random",
        "method.num_shared_slices": 0 if load_format(name).capabilities.shared_expert == "none" else 1,
        "format": name,
        "dtype": "bfloat16",
    }
    done = convert(make_recipe(sources(_first(name, but="gemma")), settings=settings), tmp_path / "sparse")
    assert not done.verification.whole_model
    assert max(done.verification.identity_error, done.verification.reference_error) < 5e-6


def _accepting(name: str) -> list[str]:
    return [variant for variant, names in ACCEPTED.items() if name in names]


def _first(name: str, but: str = "") -> str:
    return next(variant for variant in _accepting(name) if variant != but)
