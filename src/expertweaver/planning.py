"""Everything decidable from configuration, shapes and paths, decided before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertweaver.calibration.documents import check_paths
from expertweaver.calibration.request import CalibrationRequest
from expertweaver.calibration.tokenizer import require_tokenizer
from expertweaver.checkpoint.folder import check_space, check_target
from expertweaver.choosing import Choice, choose_format
from expertweaver.dense.model import DenseModel, open_dense
from expertweaver.errors import Attempts, listed
from expertweaver.estimate import Needs, measured_speed
from expertweaver.machine import compute_device
from expertweaver.modeling.values import Need
from expertweaver.partition.budget import (
    ENGINE_BLOCK,
    FAST_WIDTH,
    GROUPED_BLOCK,
    SliceBudget,
    slice_budget,
    slice_count,
)
from expertweaver.recipe.schema import Recipe

if TYPE_CHECKING:
    import torch

TOKENS_PER_NEURON = 8
"""Calibration tokens a neuron that the least-squares repair wants."""

RECORD_BYTES = 8_000_000
"""Room for what lies beside the weights: the report with its figures, the record, the tokenizer."""

STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Plan:
    """What a conversion will do and need.

    Attributes:
        recipe: The request.
        dense: The opened source.
        budget: Slices.
        format: Target architecture by name, also where the recipe left the choice to us.
        dtype: Type of the written weights, by name.
        max_num_params: Parameters of the result at most (the router's size depends on the shared share).
        max_num_active_params: Parameters used per token at most.
        output_bytes: Size of the weights on disk, at most; RECORD_BYTES come on top.
        memory_bytes: Estimated peak memory.
        scratch_bytes: Disk space that the unfinished run needs beside the weights.
        seconds: Estimated time of each part, from the speed of products measured just now; None if not measured.
        warnings: What the user should know before starting.
    """

    recipe: Recipe
    dense: DenseModel
    budget: SliceBudget
    format: str
    dtype: str
    max_num_params: int
    max_num_active_params: int
    output_bytes: int
    memory_bytes: int
    scratch_bytes: int
    seconds: Mapping[str, float] | None
    warnings: tuple[str, ...]

    @property
    def calibration(self) -> CalibrationRequest:
        """The calibration text that was asked for."""
        return CalibrationRequest(self.recipe.calibration, self.dense)

    @property
    def advice(self) -> tuple[str, ...]:
        """What would make the result faster, at a price."""
        return tuple(speed_advice(self.dense.dims.intermediate_size, self.budget.slice_width))

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the written weights."""
        import torch

        return getattr(torch, self.dtype)

    def to_values(self) -> dict[str, Any]:
        """The plan as JSON values."""
        dims = self.dense.dims
        return {
            "source": self.dense.folder.name,
            "family": self.dense.family.name,
            "method": self.recipe.method.name,
            "format": self.format,
            "num_hidden_layers": dims.num_hidden_layers,
            "hidden_size": dims.hidden_size,
            "intermediate_size": dims.intermediate_size,
            "num_slices": self.budget.num_slices,
            "slice_width": self.budget.slice_width,
            "active_slices": self.budget.active_slices,
            "max_shared_slices": self.budget.max_shared,
            "mlp_sparsity": self.budget.mlp_sparsity,
            "dtype": self.dtype,
            "dense_num_params": self.dense.num_params,
            "max_num_params": self.max_num_params,
            "max_num_active_params": self.max_num_active_params,
            "calibration_paths": list(self.calibration.paths),
            "max_calibration_tokens": self.calibration.max_tokens,
            "sequence_length": self.calibration.sequence_length,
            "output_bytes": self.output_bytes,
            "record_bytes": RECORD_BYTES,
            "memory_bytes": self.memory_bytes,
            "scratch_bytes": self.scratch_bytes,
            "seconds": None if self.seconds is None else dict(self.seconds),
            "warnings": list(self.warnings),
            "advice": list(self.advice),
        }


def plan(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    device: str = "cpu",
    estimate_time: bool = True,
) -> Plan:
    """Check a request completely and say what it will do, without reading a weight.

    Args:
        recipe: The request.
        out: Where the result would go; None leaves the target unchecked.
        overwrite: Whether an existing `out` may be replaced.
        device: Where layers would be computed: cpu, cuda or cuda:NUMBER.
        estimate_time: Measure this machine for a moment to estimate the time.

    Raises:
        ExpertWeaverError: Of the kind of the first problem found, with all problems.
    """
    dense = open_dense(recipe.source.model)
    dims = dense.dims
    dtype = STORED_DTYPES[dense.dtype] if recipe.output.dtype == "auto" else recipe.output.dtype
    calibration = CalibrationRequest(recipe.calibration, dense)
    target = None if out is None else Path(out)
    budget, choice = _run_checks(recipe, dense, dtype, calibration.paths, target, overwrite=overwrite, device=device)
    total, active = _params(dense, budget)
    output_bytes = total * (4 if dtype == "float32" else 2) + 4 * dims.num_hidden_layers * budget.num_slices
    needs = Needs(dense, recipe, budget, calibration.max_tokens)
    if target is not None:
        check_space(target, output_bytes + RECORD_BYTES + needs.scratch_bytes())
    seconds = needs.seconds(measured_speed(recipe.calibration.compute_dtype)) if estimate_time else None
    warnings = (*choice.notes, *_warnings(recipe, dense, budget, calibration, dtype))
    return Plan(
        recipe=recipe,
        dense=dense,
        budget=budget,
        format=choice.name,
        dtype=dtype,
        max_num_params=total,
        max_num_active_params=active,
        output_bytes=output_bytes,
        memory_bytes=needs.memory_bytes(),
        scratch_bytes=needs.scratch_bytes(),
        seconds=seconds,
        warnings=warnings,
    )


def _run_checks(
    recipe: Recipe,
    dense: DenseModel,
    dtype: str,
    paths: Sequence[str],
    out: Path | None,
    *,
    overwrite: bool,
    device: str,
) -> tuple[SliceBudget, Choice]:
    """Run every check of the request and raise all problems together."""
    attempt = Attempts()
    width, sparsity = dense.dims.intermediate_size, recipe.budget.mlp_sparsity
    num_slices = slice_count(width, mlp_sparsities=[sparsity], num_slices=recipe.budget.num_slices)
    budget = attempt(lambda: slice_budget(width, mlp_sparsity=sparsity, num_slices=num_slices))
    choice = attempt(lambda: choose_format(recipe.output.format, dense, dtype, recipe.method, budget))
    attempt(lambda: require_tokenizer(dense.folder.path))
    attempt(lambda: check_paths(paths))
    attempt(lambda: check_paths(recipe.evaluate.text))
    attempt(lambda: compute_device(device))
    if out is not None:
        attempt(lambda: check_target(out, overwrite=overwrite, source=dense.folder.path))
    attempt.finish()
    assert budget is not None
    assert choice is not None
    return budget, choice


def _params(dense: DenseModel, budget: SliceBudget) -> tuple[int, int]:
    """Parameters of the result in all and per token, with the largest router a layer can have."""
    dims = dense.dims
    router = dims.num_hidden_layers * budget.num_slices * dims.hidden_size
    tied = dims.vocab_size * dims.hidden_size if dense.origins["lm_head.weight"].source != "lm_head.weight" else 0
    total = dense.num_params + tied + router
    skipped = (budget.num_slices - budget.active_slices) * budget.slice_width * 3 * dims.hidden_size
    return total, total - dims.num_hidden_layers * skipped


def _warnings(
    recipe: Recipe, dense: DenseModel, budget: SliceBudget, calibration: CalibrationRequest, dtype: str
) -> list[str]:
    warnings = []
    wider = [name for name, info in dense.reader.tensors.items() if info.dtype == "F32" and dtype != "float32"]
    if wider:
        warnings.append(f"{len(wider)} float32 tensors of the source are rounded to {dtype}: {listed(wider, 3)}")
    warnings += calibration.notes()
    if budget.slice_width % ENGINE_BLOCK:
        warnings.append(
            f"experts are {budget.slice_width} neurons wide; engines quantise in blocks of {ENGINE_BLOCK}"
            + _better_slices(dense.dims.intermediate_size)
        )
    if budget.slice_width % GROUPED_BLOCK:
        warnings.append(
            f"transformers' grouped experts kernel needs widths that are multiples of {GROUPED_BLOCK}: config.json "
            "selects its plain loop over experts instead"
        )
    if Need.OVERLAPPING_EXPERTS in recipe.method.needs:
        warnings.append(
            "experts overlap: a neuron is stored once for each that has it, which num_params here leaves out"
        )
    if recipe.method.repair:
        warnings += few_tokens(calibration.max_tokens, dense.dims.intermediate_size)
    return warnings


def few_tokens(num_tokens: int, intermediate_size: int) -> list[str]:
    """Tell that tokens are few for the repair: its ridge then holds it at the source's weights."""
    if num_tokens >= TOKENS_PER_NEURON * intermediate_size:
        return []
    return [
        f"at most {num_tokens:,} calibration tokens are {num_tokens / intermediate_size:.1f} per FFN neuron; the "
        f"least-squares repair wants {TOKENS_PER_NEURON} and changes less with fewer: raise calibration.num_samples"
    ]


def speed_advice(intermediate_size: int, slice_width: int) -> list[str]:
    """Name slice counts whose experts are wide enough for the kernels, if these are narrower and there are any."""
    counts = _usable_counts(intermediate_size, FAST_WIDTH)
    if slice_width >= FAST_WIDTH or not counts:
        return []
    return [
        f"experts {slice_width} neurons wide run slower than their share of the FFN says: num_slices {_listed(counts)} "
        f"gives widths of {FAST_WIDTH} and more, which come nearer to it, at a coarser choice (docs/speed.md)"
    ]


def _better_slices(intermediate_size: int) -> str:
    counts = _usable_counts(intermediate_size, ENGINE_BLOCK)
    return f" (num_slices {_listed(counts)} would do)" if counts else ""


def _usable_counts(intermediate_size: int, least: int) -> list[int]:
    """Slice counts from 8 to 256 whose width is a whole number of blocks, and at least so wide."""
    widths = [w for w in range(ENGINE_BLOCK, intermediate_size // 2 + 1, ENGINE_BLOCK) if intermediate_size % w == 0]
    return sorted(intermediate_size // w for w in widths if w >= least and 8 <= intermediate_size // w <= 256)


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
