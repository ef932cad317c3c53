"""Decode and prefill speed of loaded models, taken in turns so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from expertweaver.errors import Problem, RecipeError
from expertweaver.evaluation.params import count_params
from expertweaver.machine import cpu_name

SEED = 0


@dataclass(frozen=True)
class Speed:
    """One model's speed, next to the first model's and to the best that its parameter count allows.

    Attributes:
        decode_tokens_per_second: Tokens of all sequences of the batch, from the median time.
        prefill_tokens_per_second: The same for reading the prompt.
        decode_ratio: This model's time over the first model's in the same round, median over rounds; below 1 is
            faster. It is not the quotient of the two medians above, which would let a slow phase of the machine in.
        prefill_ratio: The same for the prompt.
        ideal_ratio: Parameters that a token is multiplied with over the first model's
            (`ParamCounts.num_multiplied_params`): what the times would be if they followed the arithmetic.
        setup: What the numbers depend on: versions, threads, dtype, device, lengths, batch, repeats, CPU.
    """

    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    decode_ratio: float
    prefill_ratio: float
    ideal_ratio: float
    setup: dict[str, Any]


@dataclass(frozen=True)
class _Times:
    prefill: float
    decode: float


def measure_speed(
    models: Mapping[str, PreTrainedModel],
    *,
    prompt_length: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    batch: int = 1,
) -> dict[str, Speed]:
    """Time reading a random prompt and greedy decoding with a KV cache, in turns over the models.

    Every round runs all models once, in order; a first round is not counted. Exactly `new_tokens` steps are taken,
    no token stops them. The models are put into evaluation mode.

    Args:
        models: By name; the first is what ratios refer to, usually the dense model.
        prompt_length: Tokens of the prompt.
        new_tokens: Decoding steps, each of one token for every sequence.
        repeats: Counted rounds.
        batch: Sequences side by side.

    Raises:
        RecipeError: No model, a number below 1, or more positions than a model has.
    """
    _check_options(models, prompt_length, new_tokens, repeats, batch)
    prompt = _random_prompt(models, (batch, prompt_length))
    rounds = [{name: _time(model, prompt, new_tokens) for name, model in models.items()} for _ in range(repeats + 1)]
    del rounds[0]  # warm-up: caches, allocator, lazy initialisation
    first = next(iter(models))
    multiplied = {name: count_params(model).num_multiplied_params for name, model in models.items()}
    lengths = {"prompt_length": prompt_length, "new_tokens": new_tokens, "repeats": repeats, "batch": batch}
    return {
        name: Speed(
            decode_tokens_per_second=batch * new_tokens / median(r[name].decode for r in rounds),
            prefill_tokens_per_second=batch * prompt_length / median(r[name].prefill for r in rounds),
            decode_ratio=median(r[name].decode / r[first].decode for r in rounds),
            prefill_ratio=median(r[name].prefill / r[first].prefill for r in rounds),
            ideal_ratio=multiplied[name] / multiplied[first],
            setup=_setup(model) | lengths,
        )
        for name, model in models.items()
    }


def _check_options(
    models: Mapping[str, PreTrainedModel], prompt_length: int, new_tokens: int, repeats: int, batch: int
) -> None:
    if not models:
        raise RecipeError(Problem("models", "at least one model", "none", "Give the dense model first."))
    numbers = {"prompt_length": prompt_length, "new_tokens": new_tokens, "repeats": repeats, "batch": batch}
    problems = [Problem(k, "1 or more", str(v), "Raise it.") for k, v in numbers.items() if v < 1]
    for name, model in models.items():
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and prompt_length + new_tokens > limit:
            expected = f"prompt_length + new_tokens of at most {limit} (max_position_embeddings)"
            found = f"{prompt_length} + {new_tokens}"
            problems.append(Problem(f"model {name}", expected, found, "Shorten one of them."))
    if problems:
        raise RecipeError(*problems)


def _random_prompt(models: Mapping[str, PreTrainedModel], shape: tuple[int, int]) -> Tensor:
    vocab_size = min(model.config.get_text_config().vocab_size for model in models.values())
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(SEED))


@torch.inference_mode()
def _time(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> _Times:
    model.eval()
    prompt = prompt.to(model.device)
    start = _now(model.device)
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    read = _now(model.device)
    for _ in range(new_tokens):
        token = output.logits[:, -1:].argmax(dim=-1)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    return _Times(prefill=read - start, decode=_now(model.device) - read)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _setup(model: PreTrainedModel) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
    }
