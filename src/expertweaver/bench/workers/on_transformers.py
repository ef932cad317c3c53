"""transformers: a plain loop with a KV cache; the experts' implementation is chosen for every request."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from expertweaver.evaluation.loading import DTYPES
from expertweaver.evaluation.routing import watch_routers
from expertweaver.machine import compute_device
from expertweaver.serving import INDEX_LOOP
from expertweaver.serving.index_loop import leave_index_loop, use_index_loop

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class Engine:
    """A loaded model."""

    def __init__(
        self, model: str, dtype: str, threads: int, max_length: int, max_batch: int, clock: str, device: str
    ) -> None:
        self.clock = CLOCKS[clock]
        torch.set_num_threads(threads)
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        loaded = load(Path(model), dtype=DTYPES[dtype], local_files_only=True).eval()
        self.model: PreTrainedModel = loaded.to(compute_device(device))
        self.setup = {"torch": torch.__version__, "transformers": transformers.__version__}
        if self.model.device.type == "cuda":
            self.setup["gpu"] = torch.cuda.get_device_name(self.model.device)
        self.variant: str | None = None

    def prefill(self, prompts: list[list[int]], variant: str | None = None) -> dict[str, Any]:
        """Seconds for reading the prompts, with the head on the last position only."""
        self._use(variant)
        ids = self._ids(prompts)
        with torch.inference_mode():
            start = self._now()
            self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            return {"seconds": self._now() - start}

    def decode(self, prompts: list[list[int]], steps: list[list[int]], variant: str | None = None) -> dict[str, Any]:
        """Seconds for feeding `steps`, one token of every sequence at a time, after the prompts were read."""
        self._use(variant)
        return self._decode(prompts, steps)

    def count(self, prompts: list[list[int]], steps: list[list[int]]) -> dict[str, Any]:
        """Distinct experts that a step touches in a layer, on average over steps and layers; null for dense."""
        seen: list[int] = []

        def see(layer: int, expert_ids: torch.Tensor) -> None:
            if len(expert_ids) == len(prompts):  # a step, not the prompt
                seen.append(len(expert_ids.unique()))

        with watch_routers(self.model, see):
            self._decode(prompts, steps)
        return {"distinct": sum(seen) / len(seen) if seen else None}

    @torch.inference_mode()
    def _decode(self, prompts: list[list[int]], steps: list[list[int]]) -> dict[str, Any]:
        output = self.model(input_ids=self._ids(prompts), use_cache=True, logits_to_keep=1)
        ids = self._ids(steps)[..., None]
        start = self._now()
        for tokens in ids:
            output = self.model(input_ids=tokens, past_key_values=output.past_key_values, use_cache=True)
        return {"seconds": self._now() - start}

    def _ids(self, tokens: list[list[int]]) -> torch.Tensor:
        return torch.tensor(tokens, device=self.model.device)

    def _now(self) -> float:
        """The clock's time, once all that was asked of a GPU is done."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return self.clock()

    def _use(self, variant: str | None) -> None:
        """Switch to an implementation of the experts; index_loop also changes how their weights lie in memory."""
        if variant == self.variant or variant is None:
            return
        if self.variant == INDEX_LOOP:
            leave_index_loop(self.model, variant)
        elif variant == INDEX_LOOP:
            use_index_loop(self.model)
        else:
            self.model.set_experts_implementation(variant)
        self.variant = variant
