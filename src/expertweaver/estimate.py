"""What a conversion will need, from sizes alone: memory, disk space for scratch, and time at a measured speed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from expertweaver.dense.model import DenseModel
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import Recipe

TYPICAL_RIDGES = 3
"""Ridges that the repair solves for as a rule: the first and its neighbours."""

LIBRARY_BYTES = 450_000_000
"""Of torch and transformers in a process that has converted a toy (docs/cost.md)."""


@dataclass(frozen=True)
class Speed:
    """Multiplications with addition a second in large matrix products: of the passes, in float32, in float64."""

    passes: float
    single: float
    double: float


def measured_speed(compute_dtype: str) -> Speed:
    """Multiply matrices for a moment, with as many threads as the conversion will use."""
    import torch

    def rate(dtype: torch.dtype) -> float:
        size = 1024
        matrix = torch.ones(size, size, dtype=dtype)
        torch.mm(matrix, matrix)
        start = time.perf_counter()
        for _ in range(3):
            torch.mm(matrix, matrix)
        return 3 * size**3 / (time.perf_counter() - start)

    return Speed(rate(getattr(torch, compute_dtype)), rate(torch.float32), rate(torch.float64))


@dataclass(frozen=True)
class Needs:
    """What a request needs of the machine.

    Attributes:
        dense: The source.
        recipe: The request.
        budget: The slices.
        num_tokens: Calibration tokens.
    """

    dense: DenseModel
    recipe: Recipe
    budget: SliceBudget
    num_tokens: int

    def memory_bytes(self) -> int:
        """Peak: libraries, two layers in float32, hidden states, statistics, and the largest step of a layer."""
        dims = self.dense.dims
        extra = self.recipe.method.extra_memory(
            hidden_size=dims.hidden_size, intermediate_size=dims.intermediate_size, num_tokens=self.num_tokens
        )
        layer = 2 * self._layer_params() * 4
        work = layer + max(self._batch_bytes(), extra, self._repair_bytes(), self._gradient_bytes())
        embeddings = 2 * dims.vocab_size * dims.hidden_size * 4
        return LIBRARY_BYTES + max(work, embeddings) + self._hidden_bytes()[0] + self._statistics_bytes()

    def scratch_bytes(self) -> int:
        """What the unfinished run keeps on disk: every layer's statistics, and hidden states too large for memory."""
        return self._statistics_bytes() * self.dense.dims.num_hidden_layers + self._hidden_bytes()[1]

    def seconds(self, speed: Speed) -> dict[str, float]:
        """Time of each part over all layers; reading, writing and verifying are not in it."""
        parts = {"passes": self._pass_products() / speed.passes}
        if self.recipe.method.needs_gradients:  # two passes forward, and one backward that costs as much as two
            taken = min(self.num_tokens, self.recipe.method.gradient_tokens)
            parts["gradients"] = 4 * taken * self._layer_params() / speed.single
        dims = self.dense.dims
        design = self.recipe.method.design_products(
            hidden_size=dims.hidden_size,
            intermediate_size=dims.intermediate_size,
            num_slices=self.budget.num_slices,
            num_tokens=self.num_tokens,
        )
        if design:
            parts["design"] = design / speed.single
        if self.recipe.method.repair:
            single, double = self._repair_products()
            parts["repair"] = single / speed.single + double / speed.double
        if self.recipe.method.is_sequential:
            parts["converted FFNs"] = 3 * self._matrix() * self.num_tokens / speed.single
        return {name: dims.num_hidden_layers * spent for name, spent in parts.items()}

    def _pass_products(self) -> int:
        """The dense layers, once for statistics and once in sequence, and the converted stream up to the FFN."""
        per_token = 0 if self.recipe.method.reads_traffic else self._layer_params()
        if self.recipe.method.is_sequential:
            per_token += 2 * self._layer_params() - 3 * self._matrix()
        return per_token * self.num_tokens

    def _repair_products(self) -> tuple[int, int]:
        """Activations and the system's matrix in float32; factoring and solving in float64."""
        unknowns = self._unknowns()
        gram = self.num_tokens * unknowns * self.dense.dims.intermediate_size // 2
        single = gram + 3 * self._matrix() * self.num_tokens
        double = TYPICAL_RIDGES * (unknowns**3 // 6 + unknowns**2 * self.dense.dims.hidden_size)
        return single, double

    def _matrix(self) -> int:
        return self.dense.dims.hidden_size * self.dense.dims.intermediate_size

    def _unknowns(self) -> int:
        """Of the repair's system: one a neuron, or one a fitting token where these are fewer."""
        return min(self._num_fitting(), self.dense.dims.intermediate_size)

    def _num_fitting(self) -> int:
        """Calibration tokens but for those that are held back to judge."""
        from expertweaver.calibration.traffic import JUDGE_EVERY

        return self.num_tokens - self.num_tokens // JUDGE_EVERY

    def _layer_params(self) -> int:
        return sum(_size(self.dense.shape(name)) for name in self.dense.names(0))

    def _batch_bytes(self) -> int:
        from expertweaver.calibration.samples import BATCH_TOKENS

        dims = self.dense.dims
        return BATCH_TOKENS * (3 * dims.intermediate_size + 4 * dims.hidden_size) * 4

    def _repair_bytes(self) -> int:
        """Of the system, of candidates, and of what they are fitted on. Square matrices are in float64.

        By neurons: half the matrix, and beside it a batch or the factor, whichever is larger. By tokens: the matrix,
        its factor, all activations and a batch.
        """
        from expertweaver.calibration.samples import BATCH_TOKENS
        from expertweaver.modeling.reference import PART_TOKENS

        if not self.recipe.method.repair:
            return 0
        unknowns, dims = self._unknowns(), self.dense.dims
        wide = dims.intermediate_size
        if self._num_fitting() < wide:
            return 16 * unknowns**2 + 8 * unknowns * wide + 56 * self._matrix() + self._batch_bytes()
        batch = 4 * (BATCH_TOKENS * (wide + 4 * dims.hidden_size) + 4 * PART_TOKENS * wide)
        return max(4 * wide**2 + batch, 12 * wide**2) + 32 * self._matrix()

    def _gradient_bytes(self) -> int:
        """Hidden states entering every layer, in float32, and the graph of a batch of one layer or of the head."""
        if not self.recipe.method.needs_gradients:
            return 0
        from expertweaver.calibration.gradients import HEAD_TOKENS
        from expertweaver.calibration.samples import BATCH_TOKENS

        dims = self.dense.dims
        taken = min(self.num_tokens, self.recipe.method.gradient_tokens)
        states = (dims.num_hidden_layers + 2) * taken * dims.hidden_size
        graph = BATCH_TOKENS * (6 * dims.intermediate_size + 12 * dims.hidden_size)
        graph += 9 * self._matrix() + 2 * dims.hidden_size**2
        return 4 * (states + max(graph, 3 * HEAD_TOKENS * dims.vocab_size))

    def _statistics_bytes(self) -> int:
        """Of one layer: sums a sample, kept inputs, and the record of a repaired down_proj."""
        dims, section = self.dense.dims, self.recipe.calibration
        probes = min(self.recipe.method.num_probes, section.num_samples * section.sequence_length)
        extra = 4 * self._matrix() if self.recipe.method.repair else 0
        return 8 * section.num_samples * dims.intermediate_size + 4 * probes * dims.hidden_size + extra

    def _hidden_bytes(self) -> tuple[int, int]:
        """Bytes of hidden states in memory and on disk, where a stream lives that is too large.

        One stream for statistics; two and the FFN's inputs where layers are converted in sequence, and the dense
        FFN's outputs where a norm follows them.
        """
        from expertweaver.calibration.capture import IN_MEMORY_BYTES

        width = 2 if self.recipe.calibration.compute_dtype == "bfloat16" else 4
        stream = self.num_tokens * self.dense.dims.hidden_size * width
        streams = 3 if self.dense.family.output_norm is None else 4
        sequential = streams if self.recipe.method.is_sequential else 0
        if stream <= IN_MEMORY_BYTES:
            return max(sequential, 1) * stream, 0
        return 0, (sequential + (0 if self.recipe.method.reads_traffic else 1)) * stream


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)
