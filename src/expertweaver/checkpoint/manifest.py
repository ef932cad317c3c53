"""The record of a conversion: what was asked, what was read, what was decided, what was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expertweaver.calibration.samples import CalibrationSet
from expertweaver.checkpoint.shards import file_sha256
from expertweaver.dense.model import DenseModel
from expertweaver.formats.base import Layout, StoredLayer, alike
from expertweaver.modeling.values import LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.planning import Plan

RECORD_FOLDER = "expertweaver"
"""Folder beside the weights that holds recipe, manifest, partition, run facts and report."""

MANIFEST_VERSION = 1
CV_QUANTILES = 21
FREQUENCY_QUANTILES = 101


def layer_record(
    layer: int,
    allocation: Allocation,
    design: LayerDesign,
    budget: SliceBudget,
    stored: StoredLayer,
    frequency: Tensor,
) -> dict[str, Any]:
    """One layer's entry: the shared share and why, the spread of the CVs, the router's folding.

    `frequency` says for each neuron on which share of tokens it is among the strongest, [F].
    """
    partition, width = design.partition, budget.slice_width
    sizes = sorted(map(len, partition.expert_neurons), reverse=True)
    num_chosen = getattr(design.router, "num_experts_per_tok", 0)
    cv = allocation.cv
    spread = None
    if cv is not None:
        quantiles = _quantiles(cv, CV_QUANTILES)
        spread = {"tau": allocation.tau, "quantiles": quantiles, "mean": round(float(cv.mean()), 6)}
    return {
        "layer": layer,
        "num_shared": in_slices(len(partition.shared_neurons), width),
        "num_routed": in_slices(sum(sizes), width),
        "num_active_routed": in_slices(sum(sizes[:num_chosen]), width),
        "alpha": allocation.alpha,
        "r": allocation.r,
        "clip": allocation.clip,
        "cv": spread,
        "activation_frequency": _quantiles(frequency, FREQUENCY_QUANTILES),
        "router_scale_log2": stored.scale_log2,
        "max_abs_router_logit": stored.max_abs_logit,
        "routing_kept": stored.routing_kept,
        "stored_num_experts_per_tok": stored.num_experts_per_tok,
        "down_scales": asdict(stored.scales),
        "measures": dict(design.measures),
    }


def build_manifest(
    plan: Plan,
    calibration: CalibrationSet,
    layout: Layout,
    layers: Sequence[dict[str, Any]],
    warnings: Sequence[str],
    num_params: int,
) -> dict[str, Any]:
    """Everything about a conversion that does not depend on the time or the machine."""
    import safetensors
    import transformers

    from expertweaver import __version__

    dense, budget = plan.dense, plan.budget
    return {
        "manifest_version": MANIFEST_VERSION,
        "recipe": plan.recipe.to_values(),
        "source": source_record(dense),
        "method": plan.recipe.method.name,
        "format": plan.format,
        "dtype": plan.dtype,
        "budget": {
            "mlp_sparsity": budget.mlp_sparsity,
            "num_slices": budget.num_slices,
            "slice_width": budget.slice_width,
            "active_slices": budget.active_slices,
            "num_params": num_params,
            "num_active_params": num_params - skipped_params(dense, layout),
            "dense_num_params": dense.num_params,
        },
        "stored": stored_record(layout),
        "calibration": {
            "domains": calibration.domains,
            "num_tokens": calibration.num_tokens,
            "fingerprint": calibration.fingerprint,
            "shipped": not plan.recipe.calibration.paths,
        },
        "dropped_tensors": dict(dense.dropped),
        "warnings": list(warnings),
        "layers": list(layers),
        "versions": {
            "expertweaver": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "safetensors": safetensors.__version__,
        },
    }


def source_record(dense: DenseModel) -> dict[str, Any]:
    """Which model was read."""
    dims = dense.dims
    return {
        "model": dense.folder.name,
        "revision": dense.folder.revision,
        "headers_sha256": dense.reader.fingerprint,
        "family": dense.family.name,
        "hidden_size": dims.hidden_size,
        "intermediate_size": dims.intermediate_size,
        "num_hidden_layers": dims.num_hidden_layers,
        "vocab_size": dims.vocab_size,
    }


def stored_record(layout: Layout) -> dict[str, Any]:
    """The sizes as stored: one value where all layers are alike, else one for each layer."""
    layers = layout.layers
    return {
        "num_experts": alike([len(layer.experts) for layer in layers]),
        "num_experts_per_tok": alike([layer.num_experts_per_tok for layer in layers]),
        "n_shared_experts": alike([in_slices(layer.shared, layout.slice_width) for layer in layers]),
        "moe_intermediate_size": alike([alike(layer.experts) for layer in layers]),
    }


def in_slices(num_neurons: int, slice_width: int) -> int | float:
    """Neurons counted in slices, to two decimals where it is not a whole number."""
    return num_neurons // slice_width if num_neurons % slice_width == 0 else round(num_neurons / slice_width, 2)


def skipped_params(dense: DenseModel, layout: Layout) -> int:
    """Parameters of the routed experts that a token does not run, over all layers; of unequal ones the smallest."""
    skipped = 0
    for layer in layout.layers:
        skipped += sum(sorted(layer.experts, reverse=True)[layer.num_experts_per_tok :])
    return skipped * 3 * dense.dims.hidden_size


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file beside the record folder, and of the recipe and the partition inside it."""
    files = [file for file in folder.iterdir() if file.is_file()]
    files += [folder / RECORD_FOLDER / name for name in ("recipe.yaml", "partition.safetensors")]
    return {str(file.relative_to(folder)): file_sha256(file) for file in sorted(files)}


def _quantiles(values: Tensor, count: int) -> list[float]:
    ordered = values.double().sort().values
    places = torch.linspace(0, len(ordered) - 1, count, dtype=torch.float64).round().long()
    return [round(float(value), 6) for value in ordered[places]]
