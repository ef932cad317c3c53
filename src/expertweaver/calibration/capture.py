"""The calibration pass: hidden states travel through the dense model layer by layer, statistics stay behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from expertweaver.calibration.gradients import layer_gradients
from expertweaver.calibration.samples import PADDING, CalibrationSet, row_batches
from expertweaver.calibration.statistics import StatisticsAccumulator, StatisticsFolder, TokenBatch
from expertweaver.dense.model import DenseModel
from expertweaver.dense.runner import CPU, LayerRunner
from expertweaver.distributed import ALONE, Group
from expertweaver.modeling.reference import activation, dense_ffn, neuron_activations
from expertweaver.modeling.values import GLUWeights

IN_MEMORY_BYTES = 2 << 30
"""Hidden states above this size live in a file."""


def profile_layers(
    dense: DenseModel,
    calibration: CalibrationSet,
    statistics: StatisticsFolder,
    *,
    compute_dtype: torch.dtype,
    num_probes: int,
    scratch: Path,
    gradient_tokens: int | None = None,
    on_layer: Callable[[int], None] = lambda layer: None,
    group: Group = ALONE,
    device: torch.device = CPU,
) -> None:
    """Fill `statistics` for every layer; layers already there are run through but not measured again.

    Several processes each run rows of their own; the leader keeps the sum. Gradients are the leader's alone.

    Args:
        dense: The model.
        calibration: Packed tokens.
        statistics: Where each layer's result is saved.
        compute_dtype: Arithmetic of the pass; sums are float32 or better.
        num_probes: Tokens whose FFN inputs are kept.
        scratch: Folder for hidden states that are too large for memory.
        gradient_tokens: Tokens that gradients of the loss are taken on first, at most; None for no gradients. A pass
            that is continued takes them again, down to the first layer that is missing.
        on_layer: Called after each layer, for progress.
        group: The processes that share the rows.
        device: Where a layer is computed; hidden states stay in host memory.

    Raises:
        CalibrationError: Activations or gradients that are not finite.
    """
    missing = group.lead(lambda: [layer for layer in range(len(statistics)) if not statistics.has(layer)])
    if not missing:
        return
    saliencies = {}
    if gradient_tokens is not None and group.leads:
        saliencies = _saliencies(dense, calibration, gradient_tokens, missing[0])
    mine = shared_rows(calibration.sample_ids, group)
    probe_mask, calibration = calibration.probe_mask(num_probes)[mine], calibration.rows(mine)
    runner = LayerRunner(dense, compute_dtype, device=device)
    hidden = embed_all(runner, calibration, scratch)
    for layer in range(max(missing) + 1):
        weights = dense.read_ffn(layer).to(compute_dtype, device)
        measured = StatisticsAccumulator(weights, calibration.domain_ids) if layer in missing else None
        _run_layer(runner, layer, weights, hidden, calibration, probe_mask, measured)
        if measured is not None:
            found = measured.finish(f"{dense.folder.name}, layer {layer}", group)
            if group.leads:
                statistics.save(layer, replace(found, **saliencies.get(layer, {})))
        on_layer(layer)


def _saliencies(
    dense: DenseModel, calibration: CalibrationSet, num_tokens: int, first_layer: int
) -> dict[int, dict[str, Tensor]]:
    """The saliencies of each layer from `first_layer` on, by their names in LayerStatistics."""
    saliencies = {}
    for found in layer_gradients(dense, calibration, num_tokens):
        saliencies[found.layer] = {"weight_saliency": found.weight_saliency, "act_saliency": found.act_saliency}
        if found.layer == first_layer:
            break
    return saliencies


def embed_all(
    runner: LayerRunner, calibration: CalibrationSet, scratch: Path, name: str = "hidden-states.bin"
) -> Tensor:
    """Hidden states entering the first layer, [R, T, H], in memory or in a file of this name."""
    shape = torch.Size((*calibration.token_ids.shape, runner.dense.dims.hidden_size))
    hidden = hidden_buffer(shape, runner.dtype, scratch, name)
    embed = runner.embedder()
    for rows in row_batches(calibration.sample_ids):
        hidden[rows] = embed(calibration.token_ids[rows])
    return hidden


def hidden_buffer(shape: torch.Size, dtype: torch.dtype, scratch: Path, name: str) -> Tensor:
    """Room for hidden states [R, T, H], in memory, or in a file in `scratch` where they are large."""
    size = shape.numel()
    if size * dtype.itemsize <= IN_MEMORY_BYTES:
        return torch.empty(shape, dtype=dtype)
    scratch.mkdir(parents=True, exist_ok=True)
    _reserve(scratch / name, size * dtype.itemsize)
    return torch.from_file(str(scratch / name), shared=True, size=size, dtype=dtype).view(shape)


def _reserve(file: Path, size: int) -> None:
    """Take the disk space now: writing to a mapped file on a full disk would kill the process."""
    with file.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(stream.fileno(), 0, size)


def shared_rows(rows: Tensor, group: Group) -> slice:
    """This process' share of packed rows [R, T]: whole batches, so that each is computed as one process would.

    Only the order in which sums over batches are added up then differs.
    """
    batches = list(row_batches(rows))
    mine = [batches[index] for index in group.part(len(batches))]
    return slice(mine[0].start, mine[-1].stop) if mine else slice(0, 0)


def _run_layer(
    runner: LayerRunner,
    layer: int,
    weights: GLUWeights,
    hidden: Tensor,
    calibration: CalibrationSet,
    probe_mask: Tensor,
    measured: StatisticsAccumulator | None,
) -> None:
    act = activation(runner.dense.dims.hidden_act)
    with runner.layer(layer) as module:
        for rows in row_batches(calibration.sample_ids):
            sample_ids = calibration.sample_ids[rows]
            valid = sample_ids != PADDING
            tokens = TokenBatch(sample_ids[valid], probe_mask[rows][valid])

            def ffn(x: Tensor, valid: Tensor = valid, tokens: TokenBatch = tokens) -> Tensor:
                if measured is None:
                    return dense_ffn(x, weights, act)
                gate_act, neuron_act = neuron_activations(x, weights, act)
                measured.add(tokens, x[valid], gate_act[valid], neuron_act[valid])
                return neuron_act @ weights.down.T

            hidden[rows] = runner.run(module, hidden[rows], sample_ids, ffn)
