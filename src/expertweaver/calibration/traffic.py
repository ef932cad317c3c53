"""Two streams of hidden states through a model that is being converted: as the dense model has them, and as converted.

A layer is designed on what the converted layers before it put out, and repaired towards what the dense model puts out,
so that errors do not add up (docs/concepts.md, weave). Where the FFN's output passes a norm before it joins the
residual stream, no linear change of the FFN reaches a given residual. The target is then what the dense model's FFN
puts out: it makes good for what errors do to its input, but not for those that are in the residual stream already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expertweaver.calibration.capture import embed_all, hidden_buffer, shared_rows
from expertweaver.calibration.samples import PADDING, CalibrationSet, row_batches
from expertweaver.dense.model import DenseModel
from expertweaver.dense.runner import CPU, LayerRunner
from expertweaver.dense.stock import scaled
from expertweaver.distributed import ALONE, Group
from expertweaver.errors import CalibrationError, Problem
from expertweaver.modeling.reference import activation, dense_ffn
from expertweaver.modeling.values import GLUWeights

JUDGE_RUN, JUDGE_EVERY = 64, 8
"""Of every 8 runs of 64 tokens one, drawn at random, is held back to judge what the others fit."""


@dataclass(frozen=True)
class TrafficBatch:
    """Some valid tokens of a layer.

    Attributes:
        x: FFN inputs in the converted model, [t, H] float32.
        target: What the FFN would have to put out for the dense model's residual stream, or where its output is
            normalised what the dense model's FFN puts out, [t, H] float32.
        judging: Tokens held back from every fit, [t] bool.
    """

    x: Tensor
    target: Tensor
    judging: Tensor


@dataclass(frozen=True)
class TrafficSample:
    """Some evenly spread tokens of a layer, of all processes; at the leader only.

    Attributes:
        x: FFN inputs in the converted model, [n, H] float32; those held back from every fit come last.
        num_fitting: How many are not held back.
    """

    x: Tensor
    num_fitting: int

    @property
    def fitting(self) -> Tensor:
        """Inputs to fit on, [num_fitting, H]."""
        return self.x[: self.num_fitting]

    @property
    def judging(self) -> Tensor:
        """Inputs to judge on, [n - num_fitting, H]."""
        return self.x[self.num_fitting :]


class LayerTraffic:
    """What enters the FFN of one layer in the model converted so far, and what should leave it."""

    def __init__(
        self,
        inputs: Tensor,
        residual: Tensor | None,
        wanted: Tensor,
        valid: Tensor,
        judging: Tensor,
        *,
        residual_scale: float = 1.0,
        group: Group = ALONE,
    ) -> None:
        """Look at buffers that belong to `Streams`.

        Args:
            inputs: FFN inputs in the converted model, [R, T, H].
            residual: Its residual stream before the FFN's output is added, [R, T, H]; None if `wanted` is without one.
            wanted: The dense model's residual stream after its FFN, or what its FFN puts out, [R, T, H].
            valid: Which places hold a token, [R, T] bool.
            judging: Which of them are held back, [R, T] bool.
            residual_scale: What the FFN's output is multiplied by before it is added to the residual stream.
            group: The processes that have other rows.
        """
        self.inputs, self.residual, self.wanted = inputs, residual, wanted
        self.valid, self.judging, self.residual_scale, self.group = valid, judging, residual_scale, group

    @property
    def num_tokens(self) -> int:
        """Valid tokens in these rows, judging ones included."""
        return int(self.valid.sum())

    @property
    def num_fitting(self) -> int:
        """Valid tokens in these rows that are not held back."""
        return int((self.valid & ~self.judging).sum())

    def sample(self, count: int) -> TrafficSample:
        """At most `count` tokens, evenly spread over those of all processes; in order, but for the held-back ones."""
        per_process = self.group.all(self.num_tokens)
        total, before = sum(per_process), sum(per_process[: self.group.rank])
        kept = min(count, total)
        chosen = torch.arange(kept) * total // kept - before
        mine = chosen[(chosen >= 0) & (chosen < self.num_tokens)]
        places = self.valid.flatten().nonzero().squeeze(-1)[mine]
        held = self.judging.flatten()[places]
        fitting, judging = (
            self.group.rows(self.inputs.flatten(0, 1)[places[tokens]].float()) for tokens in (~held, held)
        )
        return TrafficSample(torch.cat([fitting, judging]), len(fitting))

    def batches(self, *, judging: bool | None = None) -> Iterator[TrafficBatch]:
        """All valid tokens in order, or only those that judge (True) or fit (False)."""
        chosen = self.valid if judging is None else self.valid & (self.judging == judging)
        for rows in row_batches(self.valid):
            tokens = chosen[rows]
            if tokens.any():
                target = self.wanted[rows][tokens].float()
                if self.residual is not None:
                    target = scaled(target - self.residual[rows][tokens].float(), 1 / self.residual_scale)
                yield TrafficBatch(self.inputs[rows][tokens].float(), target, self.judging[rows][tokens])


class Streams:
    """Both streams of hidden states, moved through the layers in order."""

    def __init__(
        self,
        dense: DenseModel,
        calibration: CalibrationSet,
        *,
        compute_dtype: torch.dtype,
        scratch: Path,
        group: Group = ALONE,
        device: torch.device = CPU,
    ) -> None:
        """Embed this process' rows of the calibration tokens twice.

        Args:
            dense: The source.
            calibration: Packed tokens.
            compute_dtype: Arithmetic of the passes.
            scratch: Folder for hidden states that are too large for memory, this process' own.
            group: The processes that share the rows.
            device: Where a layer is computed; hidden states stay in host memory.
        """
        mine, everywhere = shared_rows(calibration.sample_ids, group), calibration.sample_ids != PADDING
        self.valid, self.judging = everywhere[mine], judging_tokens(everywhere)[mine]
        calibration = calibration.rows(mine)
        self.dense, self.sample_ids, self.group = dense, calibration.sample_ids, group
        self.runner = LayerRunner(dense, compute_dtype, device=device)
        self.act = activation(dense.dims.hidden_act)
        self.wanted = embed_all(self.runner, calibration, scratch, "hidden-dense.bin")
        self.converted = embed_all(self.runner, calibration, scratch, "hidden-converted.bin")
        shape, normalised = self.converted.shape, dense.family.output_norm is not None
        self.inputs = hidden_buffer(shape, compute_dtype, scratch, "ffn-inputs.bin")
        self.outputs = hidden_buffer(shape, compute_dtype, scratch, "ffn-outputs.bin") if normalised else None
        self.module: Any = None

    def enter(self, layer: int, weights: GLUWeights) -> LayerTraffic:
        """Move both streams up to a layer's FFN, and the dense one through it; call `leave` before the next layer.

        Args:
            layer: The layer, in order from 0.
            weights: The dense FFN.

        Raises:
            CalibrationError: Hidden states that are not finite.
        """
        weights = weights.to(self.runner.dtype, self.runner.device)
        with self.runner.layer(layer) as self.module:
            for rows in row_batches(self.sample_ids):
                ids = self.sample_ids[rows]
                dense = partial(self._dense_ffn, rows, weights)
                self.wanted[rows] = self.runner.run(self.module, self.wanted[rows], ids, dense)
                inputs, residual = self.runner.stop_at_ffn(self.module, self.converted[rows], ids)
                self.inputs[rows], self.converted[rows] = inputs, residual
                if not bool(self.wanted[rows].isfinite().all() and inputs.isfinite().all()):
                    where = f"{self.dense.folder.name}, layer {layer}"
                    fix = "Use calibration.compute_dtype=float32, and check the model's weights."
                    raise CalibrationError(Problem(where, "finite hidden states", "NaN or infinite ones", fix))
        if self.outputs is not None:
            return LayerTraffic(self.inputs, None, self.outputs, self.valid, self.judging, group=self.group)
        return LayerTraffic(
            self.inputs,
            self.converted,
            self.wanted,
            self.valid,
            self.judging,
            residual_scale=self.dense.traits.scales.residual,
            group=self.group,
        )

    def leave(self, ffn: Callable[[Tensor], Tensor]) -> None:
        """Move the converted stream through the layer's converted FFN, which maps inputs [t, H] to outputs [t, H].

        The FFN lies on the device that the streams compute on.
        """
        for rows in row_batches(self.sample_ids):
            tokens = self.valid[rows]
            part = self.converted[rows]  # a view: what is written to it is in the stream
            output = ffn(self.inputs[rows][tokens].float().to(self.runner.device)).to(part.dtype)
            part[tokens] = self.runner.add_ffn(self.module, part[tokens], output)

    def _dense_ffn(self, rows: slice, weights: GLUWeights, x: Tensor) -> Tensor:
        output = dense_ffn(x, weights, self.act)
        if self.outputs is not None:
            self.outputs[rows] = output
        return output


def judging_tokens(valid: Tensor) -> Tensor:
    """Hold back one of every few runs of neighbouring tokens, drawn at random, [R, T] bool.

    At random, because a fixed step would fall on the same place of every row, or on the same domain.
    """
    count = int(valid.sum())
    run = min(JUDGE_RUN, max(1, count // (4 * JUDGE_EVERY)))
    num_runs = -(-count // run)
    order = torch.randperm(num_runs, generator=torch.Generator().manual_seed(0))
    held = torch.zeros(num_runs, dtype=torch.bool)
    held[order[: max(1, num_runs // JUDGE_EVERY)]] = True
    judging = torch.zeros_like(valid)
    judging[valid] = held.repeat_interleave(run)[:count]
    return judging
