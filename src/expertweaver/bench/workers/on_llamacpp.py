"""llama.cpp through llama-cpp-python's plain bindings: one batch call a step for all sequences."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class Engine:
    """A loaded GGUF file."""

    def __init__(self, model: str, dtype: str, threads: int, max_length: int, max_batch: int, clock: str) -> None:
        self.now = CLOCKS[clock]
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        if not os.path.isfile(model):
            raise FileNotFoundError(model)
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), options)
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {model}; its reason stands above")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = max_batch * -(-max_length // 256) * 256
        context.n_seq_max = max_batch
        context.n_threads = context.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise ValueError("llama.cpp cannot make a context; its reason stands above")
        self.chunk = int(context.n_batch)
        self.setup = {
            "llama-cpp-python": llama_cpp.__version__,
            "system": llama_cpp.llama_print_system_info().decode().strip(),
            "n_ubatch": int(context.n_ubatch),
        }

    def prefill(self, prompts: list[list[int]], variant: str | None = None) -> dict[str, Any]:
        """Seconds for reading the prompts, with the head on the last position only."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        start = self.now()
        for sequence, ids in enumerate(prompts):
            entries = [(token, place, sequence, place == len(ids) - 1) for place, token in enumerate(ids)]
            for at in range(0, len(entries), self.chunk):
                self._run(entries[at : at + self.chunk])
        return {"seconds": self.now() - start}

    def decode(self, prompts: list[list[int]], steps: list[list[int]], variant: str | None = None) -> dict[str, Any]:
        """Seconds for feeding `steps`, one token of every sequence at a time, after the prompts were read."""
        self.prefill(prompts)
        start = self.now()
        for step, tokens in enumerate(steps):
            self._run([(token, len(prompts[s]) + step, s, True) for s, token in enumerate(tokens)])
        return {"seconds": self.now() - start}

    def count(self, prompts: list[list[int]], steps: list[list[int]]) -> dict[str, Any]:
        """The engine does not tell which experts it ran."""
        return {"distinct": None}

    def _run(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Feed tokens, each with its position, its sequence, and whether its logits are wanted."""
        batch = llama_cpp.llama_batch_init(len(entries), 0, 1)
        for row, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, wanted
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        batch.n_tokens = len(entries)
        code = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_synchronize(self.context)
        llama_cpp.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
