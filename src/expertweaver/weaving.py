"""Designing a model's layers in order, each on what the layers converted before it put out where the method asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from expertweaver.calibration.samples import CalibrationSet
from expertweaver.calibration.statistics import LayerStatistics
from expertweaver.calibration.traffic import LayerTraffic, Streams, TrafficBatch, TrafficSample
from expertweaver.dense.model import DenseModel
from expertweaver.dense.runner import CPU
from expertweaver.distributed import ALONE, Group
from expertweaver.formats.base import Format, stored_ffn, uniform_layout
from expertweaver.machine import return_freed_memory
from expertweaver.methods.base import load_method
from expertweaver.modeling.reference import (
    Activation,
    activation,
    designed_ffn,
    neuron_activations,
    running_neurons,
    token_parts,
)
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import SliceBudget
from expertweaver.progress import SILENT, Progress
from expertweaver.recipe.schema import MethodSection
from expertweaver.repair.least_squares import Batch, repair_down


class Served(Protocol):
    """An FFN as it is served."""

    def __call__(self, weights: GLUWeights) -> Callable[[Tensor], Tensor]:
        """Make what maps inputs [t, H] to outputs [t, H] of the dense FFN in float32."""
        ...


def serve_design(weights: GLUWeights, design: LayerDesign, act: Activation) -> Callable[[Tensor], Tensor]:
    """What a design makes of a dense FFN, as it is before any format has stored it."""
    return partial(designed_ffn, weights=weights, design=design, act=act)


@dataclass(frozen=True)
class WovenLayer:
    """A layer's design, and what is served of it."""

    design: LayerDesign
    served: Served


class Loom:
    """Designs layer after layer by one method; a sequential method sees the traffic of the layers done so far.

    Of several processes the leader designs, and gives the design to all: on another kind of processor the same
    evidence could make another one, and on a shared machine each would only slow the others down.
    """

    def __init__(
        self,
        dense: DenseModel,
        calibration: CalibrationSet,
        method: MethodSection,
        budget: SliceBudget,
        *,
        compute_dtype: torch.dtype,
        scratch: Path,
        group: Group = ALONE,
        device: torch.device = CPU,
    ) -> None:
        self.dense, self.method, self.budget, self.group, self.device = dense, method, budget, group, device
        self.streams = (
            Streams(dense, calibration, compute_dtype=compute_dtype, scratch=scratch, group=group, device=device)
            if method.is_sequential
            else None
        )

    def layer(
        self,
        layer: int,
        allocation: Allocation,
        statistics: Sequence[LayerStatistics],
        finish: Callable[[GLUWeights, LayerDesign, LayerTraffic | None], Served],
        *,
        known: Served | None = None,
    ) -> None:
        """Design one layer; layers come in order.

        Args:
            layer: The layer.
            allocation: Its share of the budget.
            statistics: Of all layers; empty for a method that reads traffic.
            finish: Is given the dense FFN, the design and the traffic, keeps the design, and says what is served, on
                the loom's device.
            known: What is served, if the layer was designed before; it is then only passed through.
        """
        weights = self.dense.read_ffn(layer)
        traffic = self.streams.enter(layer, weights) if self.streams is not None else None
        return_freed_memory()
        if known is None:
            design = self._design(layer, allocation, statistics, weights, traffic)
            return_freed_memory()
            if self.method.repair and traffic is not None:
                design = repaired(design, weights, traffic, self.device)
            known = finish(weights, design, traffic)
        if self.streams is not None:
            self.streams.leave(known(weights.to(torch.float32, self.device)))

    def _design(
        self,
        layer: int,
        allocation: Allocation,
        statistics: Sequence[LayerStatistics],
        weights: GLUWeights,
        traffic: LayerTraffic | None,
    ) -> LayerDesign:
        module, evidence = load_method(self.method.name), self._evidence(layer, statistics, weights, traffic)
        return self.group.lead(lambda: module.design(self.method, layer, evidence(), weights, allocation, self.budget))

    def _evidence(
        self, layer: int, statistics: Sequence[LayerStatistics], weights: GLUWeights, traffic: LayerTraffic | None
    ) -> Callable[[], LayerStatistics | TrafficSample]:
        """What the leader designs on; a sample of traffic is gathered here, where all processes meet."""
        if not self.method.reads_traffic or traffic is None:
            return lambda: statistics[layer]
        sample = traffic.sample(self.method.num_cluster_tokens(weights.num_neurons))
        return lambda: sample


def weave_model(
    dense: DenseModel,
    calibration: CalibrationSet,
    statistics: Sequence[LayerStatistics],
    method: MethodSection,
    budget: SliceBudget,
    *,
    compute_dtype: torch.dtype,
    scratch: Path,
    stored_as: tuple[Format, torch.dtype] | None = None,
    device: torch.device = CPU,
    progress: Progress = SILENT,
) -> list[WovenLayer]:
    """Design every layer of a model by one method, without writing anything.

    Args:
        dense: The source.
        calibration: The tokens that a sequential method runs.
        statistics: Of all layers on the same tokens; unused by a method that reads traffic.
        method: The method and its options.
        budget: The slices.
        compute_dtype: Arithmetic of the passes.
        scratch: Folder for hidden states that are too large for memory.
        stored_as: Serve what this format would hold in this type; None serves the design as it is.
        device: Where passes and repairs are computed, and layers are served; designs stay in host memory.
        progress: Hears of the layers done.
    """
    num_layers = dense.dims.num_hidden_layers
    allocations = load_method(method.name).allocate(method, statistics, budget, num_layers)
    layout = uniform_layout(allocations, budget)
    loom = Loom(dense, calibration, method, budget, compute_dtype=compute_dtype, scratch=scratch, device=device)
    act = activation(dense.dims.hidden_act)
    layers: list[WovenLayer] = []

    def keep(weights: GLUWeights, design: LayerDesign, traffic: LayerTraffic | None) -> Served:
        served: Served
        if stored_as is None:
            served = partial(serve_design, design=design.on(device), act=act)
        else:
            form, dtype = stored_as
            stored = form.store_layer(design, layout, probe_inputs(method, len(layers), statistics, traffic)())
            served = partial(stored_ffn, stored=stored.on(device), layout=layout, form=form, dtype=dtype, act=act)
        layers.append(WovenLayer(design, served))
        return served

    with progress.stage("weaving", num_layers) as step:
        for layer, allocation in enumerate(allocations):
            loom.layer(layer, allocation, statistics, keep)
            step()
    return layers


def probe_inputs(
    method: MethodSection, layer: int, statistics: Sequence[LayerStatistics], traffic: LayerTraffic | None
) -> Callable[[], Tensor]:
    """What gives the leader the FFN inputs that set the range of a layer's router when it is stored, [P, H].

    A sample of traffic is gathered here, where all processes meet.
    """
    if not method.reads_traffic or traffic is None:
        return lambda: statistics[layer].probe_inputs
    sample = traffic.sample(method.num_probes)
    return lambda: sample.x


def repaired(
    design: LayerDesign, weights: GLUWeights, traffic: LayerTraffic, device: torch.device = CPU
) -> LayerDesign:
    """Repair a design's down_proj by least squares, so that the neurons that run give what the dense model's FFN would.

    The target is the dense residual stream minus the converted one, so earlier layers' errors are repaired too.

    Args:
        design: What runs on which token; an output bias is kept and taken out of the target.
        weights: The dense FFN.
        traffic: The layer's tokens.
        device: Where products, sums and the solution are computed.
    """
    act, served, down = activation(weights.hidden_act), design.on(device), weights.down.to(device, torch.float32)

    def running(batch: TrafficBatch, exact: GLUWeights) -> Batch:
        x, target = batch.x.to(device), batch.target.to(device)
        active = x.new_empty(len(x), exact.num_neurons)
        for inputs, found in token_parts(x, active):
            gate_act, neuron_act = neuron_activations(inputs, exact, act)
            runs = running_neurons(inputs, gate_act, neuron_act, served, exact.down)
            torch.mul(neuron_act, runs, out=found)
        return active, target if served.bias is None else target - served.bias

    def batches(judging: bool) -> Iterator[Batch]:
        gate, up = (part.to(device, torch.float32) for part in (weights.gate, weights.up))
        exact = replace(weights, gate=gate, up=up, down=down)  # only while batches are read
        for batch in traffic.batches(judging=judging):
            yield running(batch, exact)
        del gate, up, exact
        return_freed_memory()

    group = traffic.group
    repair = repair_down(
        batches(judging=False),
        lambda: batches(judging=True),
        down,
        num_fitting=sum(group.all(traffic.num_fitting)),
        group=group,
    )
    return replace(design, down=repair.down.cpu(), measures={**design.measures, **repair.measures(down)})
