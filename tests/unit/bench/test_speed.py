"""Speeds by a clock that only the models move, so that every number is known beforehand."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from expertweaver.bench.speed import measure_speed
from expertweaver.errors import RecipeError

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "num_nextn_predict_layers": 0,
}


def dense_model(**overrides: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**COMMON, **overrides}))


def sparse_model() -> PreTrainedModel:
    return Glm4MoeForCausalLM(Glm4MoeConfig(**COMMON, **MOE))


def head(model: PreTrainedModel) -> nn.Linear:
    module = model.get_output_embeddings()
    assert isinstance(module, nn.Linear)
    return module


class Clock:
    """Stands still except for the forward passes of the models that it watches; records all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, tuple[int, ...], int]] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def watch(self, name: str, model: PreTrainedModel, *, prefill: list[float], decode: float) -> PreTrainedModel:
        """Charge `prefill[round]` for a prompt (the last for all later rounds) and `decode` for one token."""
        rounds = iter(prefill)

        def charge(module: nn.Module, arguments: Any, options: dict[str, Any], output: Any) -> None:
            shape = tuple(options["input_ids"].shape)
            self.calls.append((name, shape, output.past_key_values.get_seq_length()))
            self.now += next(rounds) if shape[1] > 1 else decode

        model.register_forward_hook(charge, with_kwargs=True)
        return model


def test_medians_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    models = {
        "dense": clock.watch("dense", dense_model(), prefill=[99.0, 1.0, 2.0, 10.0], decode=0.5),
        "sparse": clock.watch("sparse", sparse_model(), prefill=[99.0, 3.0, 1.0, 5.0], decode=0.2),
    }
    speeds = measure_speed(models, prompt_length=8, new_tokens=4, repeats=3, batch=2)
    assert speeds["dense"].prefill_tokens_per_second == pytest.approx(16 / 2.0)
    assert speeds["sparse"].prefill_tokens_per_second == pytest.approx(16 / 3.0)
    assert speeds["sparse"].prefill_ratio == pytest.approx(0.5), "median of 3/1, 1/2, 5/10, not 3/2"
    assert speeds["dense"].decode_tokens_per_second == pytest.approx(2 * 4 / (4 * 0.5))
    assert speeds["sparse"].decode_tokens_per_second == pytest.approx(2 * 4 / (4 * 0.2))
    assert speeds["sparse"].decode_ratio == pytest.approx(0.4)
    assert (speeds["dense"].decode_ratio, speeds["dense"].prefill_ratio, speeds["dense"].ideal_ratio) == (1, 1, 1)


def test_models_take_turns_with_a_growing_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    models = {name: clock.watch(name, dense_model(), prefill=[1.0] * 3, decode=1.0) for name in ("a", "b")}
    measure_speed(models, prompt_length=8, new_tokens=3, repeats=2, batch=2)
    turn = [((2, 8), 8), ((2, 1), 9), ((2, 1), 10), ((2, 1), 11)]
    assert clock.calls == [(name, *step) for _ in range(3) for name in ("a", "b") for step in turn]


def prefer_eos(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output + 10.0 * nn.functional.one_hot(torch.tensor(2), 64)


def test_end_of_sequence_stops_nothing_and_decoding_is_greedy() -> None:
    """Every token is followed by eos, which is fed back like any other."""
    model = dense_model()
    with torch.no_grad():
        head(model).weight.zero_()
    fed: list[list[int]] = []
    head(model).register_forward_hook(prefer_eos)
    model.register_forward_pre_hook(
        lambda module, arguments, options: fed.append(options["input_ids"][0].tolist()), with_kwargs=True
    )
    measure_speed({"dense": model}, prompt_length=8, new_tokens=5, repeats=1)
    assert [len(ids) for ids in fed] == [8, 1, 1, 1, 1, 1] * 2
    assert fed[1:6] == [[2]] * 5


def test_only_the_last_position_is_projected_in_prefill() -> None:
    model = dense_model()
    rows: list[int] = []
    head(model).register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    measure_speed({"dense": model}, prompt_length=8, new_tokens=2, repeats=1)
    assert rows == [1] * 6


def test_ideal_ratio_does_not_depend_on_tying() -> None:
    tied, untied = dense_model(tie_word_embeddings=True), dense_model()
    models = {"tied": tied, "untied": untied, "sparse": sparse_model()}
    speeds = measure_speed(models, prompt_length=2, new_tokens=1, repeats=1)
    attention, head, norms = 2 * (32 * 32 * 2 + 2 * 32 * 16), 64 * 32, 5 * 32
    dense_work = attention + head + norms + 2 * 3 * 32 * 48
    sparse_work = attention + head + norms + 2 * (3 * 32 * 16 * 2 + 4 * 32)
    assert speeds["untied"].ideal_ratio == 1.0
    assert speeds["sparse"].ideal_ratio == pytest.approx(sparse_work / dense_work)


def test_setup_tells_what_the_numbers_depend_on() -> None:
    setup = measure_speed({"dense": dense_model()}, prompt_length=4, new_tokens=2, repeats=1)["dense"].setup
    assert (setup["prompt_length"], setup["new_tokens"], setup["repeats"], setup["batch"]) == (4, 2, 1, 1)
    assert (setup["torch"], setup["transformers"]) == (torch.__version__, transformers.__version__)
    assert (setup["threads"], setup["dtype"], setup["device"]) == (torch.get_num_threads(), "float32", "cpu")
    assert setup["cpu"]


def test_real_times_are_positive_and_dropout_is_off() -> None:
    model = dense_model().train()
    speed = measure_speed({"dense": model}, prompt_length=4, new_tokens=2, repeats=2)["dense"]
    assert 0 < speed.decode_tokens_per_second < 1e6
    assert 0 < speed.prefill_tokens_per_second < 1e7
    assert not model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats: expected 1 or more, found 0"),
        ({"batch": -1}, "batch: expected 1 or more, found -1"),
        ({"prompt_length": 60, "new_tokens": 5}, r"at most 64 \(max_position_embeddings\), found 60 \+ 5"),
    ],
)
def test_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        measure_speed({"dense": dense_model()}, **options)


def test_no_model() -> None:
    with pytest.raises(RecipeError, match="at least one model"):
        measure_speed({})
