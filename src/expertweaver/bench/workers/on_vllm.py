"""vLLM, on CPU or GPU, in this process; a step's time is that of a long answer less that of one token."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
import vllm  # pyright: ignore[reportMissingImports]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class Engine:
    """A loaded model."""

    def __init__(self, model: str, dtype: str, threads: int, max_length: int, max_batch: int, clock: str) -> None:
        self.now = CLOCKS[clock]
        torch.set_num_threads(threads)
        self.llm = vllm.LLM(
            model=model,
            dtype=dtype,
            max_model_len=max_length,
            max_num_seqs=max_batch,
            max_num_batched_tokens=max(max_length, max_batch),
            enforce_eager=True,
            gpu_memory_utilization=0.4,  # two models share the machine
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            seed=0,
        )
        self.setup = {"vllm": vllm.__version__, "torch": torch.__version__, "enforce_eager": True}

    def prefill(self, prompts: list[list[int]], variant: str | None = None) -> dict[str, Any]:
        """Seconds for reading the prompts and choosing one token each."""
        return {"seconds": self._generate(prompts, 1)}

    def decode(self, prompts: list[list[int]], steps: list[list[int]], variant: str | None = None) -> dict[str, Any]:
        """Seconds for as many greedy steps after the first token; which tokens, the engine chooses."""
        first = self._generate(prompts, 1)
        return {"seconds": self._generate(prompts, 1 + len(steps)) - first}

    def count(self, prompts: list[list[int]], steps: list[list[int]]) -> dict[str, Any]:
        """The engine does not tell which experts it ran."""
        return {"distinct": None}

    def _generate(self, prompts: list[list[int]], num_tokens: int) -> float:
        options = vllm.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        start = self.now()
        self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], options, use_tqdm=False)
        return self.now() - start
