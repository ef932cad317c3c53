"""From statistics or traffic to the shards of a converted model, one decoder layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from expertweaver.calibration.samples import CalibrationSet
from expertweaver.calibration.statistics import LayerStatistics, activation_frequency
from expertweaver.calibration.traffic import LayerTraffic
from expertweaver.checkpoint.finished import FinishedLayers
from expertweaver.checkpoint.folder import Workplace
from expertweaver.checkpoint.manifest import layer_record
from expertweaver.checkpoint.shards import ShardNames, write_index, write_shard
from expertweaver.checkpoint.verify import copied_tensors, outer_tensors
from expertweaver.dense.runner import CPU
from expertweaver.distributed import ALONE, Group
from expertweaver.formats.base import Layout, StoredLayer, load_format, stored_ffn
from expertweaver.modeling.reference import activation
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.planning import Plan
from expertweaver.progress import Progress
from expertweaver.weaving import Loom, Served, probe_inputs


class LayerWriter:
    """Designs, slices and writes every layer; a layer whose record exists was finished by an earlier run."""

    def __init__(
        self,
        todo: Plan,
        calibration: CalibrationSet,
        layout: Layout,
        statistics: Sequence[LayerStatistics],
        folder: Workplace,
        group: Group = ALONE,
        device: torch.device = CPU,
    ) -> None:
        """Prepare a run.

        Args:
            todo: What to do.
            calibration: The tokens that a sequential method runs.
            layout: The uniform sizes of the format.
            statistics: Of all layers; empty for a method that reads traffic.
            folder: Where shards and records go.
            group: The processes that share the work; the leader writes.
            device: Where a sequential method's passes and repairs are computed.
        """
        self.todo, self.calibration, self.layout = todo, calibration, layout
        self.statistics, self.folder = statistics, folder
        self.group, self.device = group, device
        self.form = load_format(todo.format)
        self.act = activation(todo.dense.dims.hidden_act)
        self.names = ShardNames(todo.dense.dims.num_hidden_layers)
        self.finished = FinishedLayers(folder.scratch, todo.dense.dims.num_hidden_layers)

    def write(self, allocations: Sequence[Allocation], progress: Progress) -> FinishedLayers:
        """Write the shards of all layers and of what lies around them, and their index."""
        layers = range(len(allocations))
        with progress.stage("weaving", len(allocations)) as step:
            if not self.group.lead(lambda: all(self.finished.has(layer) for layer in layers)):
                self._weave(allocations, step)
        if self.group.leads:
            self._write_rest()
        return self.finished

    def _weave(self, allocations: Sequence[Allocation], step: Callable[[], None]) -> None:
        recipe = self.todo.recipe
        loom = Loom(
            self.todo.dense,
            self.calibration,
            recipe.method,
            self.todo.budget,
            compute_dtype=getattr(torch, recipe.calibration.compute_dtype),
            scratch=self.folder.scratch,
            group=self.group,
            device=self.device,
        )
        for layer, allocation in enumerate(allocations):
            stored = self.group.lead(lambda layer=layer: self.finished[layer] if self.finished.has(layer) else None)
            known = self._served(stored) if stored is not None else None
            loom.layer(layer, allocation, self.statistics, partial(self._finish, layer, allocation), known=known)
            step()

    def _finish(
        self, layer: int, allocation: Allocation, weights: GLUWeights, design: LayerDesign, traffic: LayerTraffic | None
    ) -> Served:
        """Let the leader write a designed layer's shard and record, and say what it serves."""
        probes = probe_inputs(self.todo.recipe.method, layer, self.statistics, traffic)
        return self._served(self.group.lead(lambda: self._store(layer, allocation, weights, design, probes())))

    def _store(
        self, layer: int, allocation: Allocation, weights: GLUWeights, design: LayerDesign, probes: Tensor
    ) -> StoredLayer:
        budget = self.todo.budget
        frequency = activation_frequency(probes, weights.to(torch.float32), budget.active_slices * budget.slice_width)
        stored = self.form.store_layer(design, self.layout, probes)
        tensors = copied_tensors(self.todo.dense, self.form, layer, self.todo.torch_dtype)
        tensors |= self.form.layer_tensors(layer, stored, weights, self.todo.torch_dtype)
        write_shard(self.folder.partial / self.names.layer(layer), tensors)
        record = layer_record(layer, allocation, design, budget, stored, frequency)
        self.finished.save(layer, stored, record)
        return stored

    def _served(self, stored: StoredLayer) -> Served:
        """What a written layer serves, with its weights as rounded on disk."""
        dtype = self.todo.torch_dtype
        there = stored.on(self.device)
        return partial(stored_ffn, stored=there, layout=self.layout, form=self.form, dtype=dtype, act=self.act)

    def _write_rest(self) -> None:
        rest = outer_tensors(self.todo.dense, self.form, self.todo.torch_dtype)
        embeddings = "model.embed_tokens.weight"
        write_shard(self.folder.partial / self.names.embeddings, {embeddings: rest.pop(embeddings)})
        write_shard(self.folder.partial / self.names.head, rest)
        write_index(self.folder.partial, self.names)
