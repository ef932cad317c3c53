"""Computing on another device: refused where there is none; what is served and repaired keeps to one device.

There is no GPU where these tests run. The device `meta` stands for one: it has shapes only, and refuses a mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Bench, make_template, refusal, run
from support.families import save_variant

from expertweaver.dense.model import open_dense
from expertweaver.dense.runner import CPU, LayerRunner
from expertweaver.distributed import ALONE
from expertweaver.errors import RecipeError
from expertweaver.formats.base import DownScales, Layout, StoredLayer, load_format, stored_ffn
from expertweaver.machine import compute_device
from expertweaver.modeling.reference import activation, dense_ffn, designed_ffn
from expertweaver.modeling.values import GLUWeights, LayerDesign, NeuronOracle, NeuronRouter, Partition, Router
from expertweaver.repair import least_squares

ELSEWHERE = torch.device("meta")
NEURONS, HIDDEN = 8, 4


def test_a_gpu_that_is_not_there_is_refused_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench = Bench(make_template(tmp_path))
    for verb in ("plan", "convert"):
        error, [problem] = refusal(run(*bench.arguments("--device", "cuda", "--json", verb=verb)), 2)
        assert error == "RecipeError"
        assert problem["where"] == "--device cuda"
        assert "0 GPUs that torch" in problem["found"]
    assert bench.ours == []


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:x", ""])
def test_a_device_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="expected cpu, cuda or cuda:NUMBER"):
        compute_device(name)


def test_processes_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert compute_device("cuda") == torch.device("cuda", 1)
    assert compute_device("cuda:0") == torch.device("cuda", 0)
    assert compute_device("cpu") == torch.device("cpu")
    with pytest.raises(RecipeError, match="a GPU of number 2"):
        compute_device("cuda:2")


def weights(device: torch.device) -> GLUWeights:
    gate, up, down = torch.randn(NEURONS, HIDDEN), torch.randn(NEURONS, HIDDEN), torch.randn(HIDDEN, NEURONS)
    return GLUWeights(gate, up, down).to(torch.float32, device)


def inputs() -> torch.Tensor:
    return torch.empty(5, HIDDEN, device=ELSEWHERE)


ROUTERS = (Router(torch.randn(2, HIDDEN), torch.randn(2), 1), NeuronRouter(torch.arange(2), 1), NeuronOracle("gate", 3))


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: type(router).__name__)
def test_a_design_is_served_on_the_device(router: Router | NeuronRouter | NeuronOracle) -> None:
    partition = Partition(torch.arange(2), [torch.arange(2, 5), torch.arange(5, 8)])
    design, act = LayerDesign(partition, router, bias=torch.randn(HIDDEN)), activation("silu")
    assert designed_ffn(inputs(), weights(ELSEWHERE), design.on(ELSEWHERE), act).device == ELSEWHERE
    with pytest.raises(RuntimeError, match="device"):
        designed_ffn(inputs(), weights(ELSEWHERE), design, act)


IDS = torch.arange(NEURONS)
EXPERTS = {"alike": IDS[2:].view(3, 2), "of unequal width": (IDS[2:3], IDS[3:5], IDS[5:])}


@pytest.mark.parametrize("experts", EXPERTS.values(), ids=EXPERTS)
def test_a_stored_layer_is_served_on_the_device(experts: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
    stored = StoredLayer(
        IDS[:2],
        experts,
        torch.randn(3, HIDDEN),
        torch.randn(3),
        0,
        1.0,
        1.0,
        down=weights(CPU).down,
        output_bias=torch.randn(HIDDEN),
        scales=DownScales(shared=2.0, routed=0.5),
    )
    form, layout = load_format("glm4_moe"), Layout(3, 1, 1, 2)
    serve = partial(stored_ffn, layout=layout, form=form, dtype=torch.bfloat16, act=activation("silu"))
    assert serve(weights(ELSEWHERE), stored.on(ELSEWHERE))(inputs()).device == ELSEWHERE
    with pytest.raises(RuntimeError, match="device"):
        serve(weights(ELSEWHERE), stored)(inputs())


@pytest.mark.parametrize("make", [least_squares._neuron_system, least_squares._token_system])
def test_the_sums_of_a_repair_stay_on_the_device(make: Callable[..., Any]) -> None:
    active = torch.empty(9, NEURONS, device=ELSEWHERE)
    target = torch.empty(9, HIDDEN, device=ELSEWHERE)
    gram = make([(active, target)], weights(ELSEWHERE).down, ALONE).gram
    assert {part.device for part in gram} == {ELSEWHERE}


def test_a_layer_runs_on_the_device(tmp_path: Path) -> None:
    """Only the way back to host memory is not seen here: nothing comes back from `meta`."""
    dense = open_dense(str(save_variant("llama", tmp_path / "dense")))
    runner, act = LayerRunner(dense, torch.float32, device=ELSEWHERE), activation("silu")
    there = dense.read_ffn(0).to(torch.float32, ELSEWHERE)
    hidden, ids = torch.empty(2, 6, 32, device=ELSEWHERE), torch.zeros(2, 6, dtype=torch.int64)
    seen: list[torch.device] = []

    def ffn(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.device)
        return dense_ffn(x, there, act)

    with runner.layer(0) as module:
        assert {part.device for part in module.parameters()} == {ELSEWHERE}
        assert runner.run(module, hidden, ids, ffn).shape == hidden.shape
        assert seen == [ELSEWHERE]
