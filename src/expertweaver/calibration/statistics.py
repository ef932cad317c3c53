"""What is remembered of a layer's activations: sums that can be merged, over valid tokens only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from expertweaver.distributed import ALONE, Group
from expertweaver.errors import CalibrationError, Problem
from expertweaver.modeling.reference import activation, neuron_activations
from expertweaver.modeling.values import GLUWeights


@dataclass(frozen=True)
class LayerStatistics:
    """Mergeable sums over the calibration tokens of one layer; N samples, F neurons, P probe tokens.

    Attributes:
        gate_act_abs: Sum over each sample's tokens of |gate_act|, [N, F] float32.
        gate_act_signed: The same of gate_act, [N, F] float32.
        tokens_per_sample: [N] int64.
        contribution: Sum over all tokens of (|neuron_act| * ||down column||)^2, [F] float64.
        neuron_act_sum: Sum over all tokens of neuron_act, [F] float64.
        neuron_act_squared: Sum over all tokens of neuron_act^2, [F] float64.
        probe_inputs: FFN inputs of the probe tokens, [P, H] float32.
        probe_domains: Number of each probe token's domain, [P] int64.
        weight_saliency: Sum of |weight * dloss/dweight| over a neuron's gate, up and down weights, [F] float64; None
            unless the method asks for gradients.
        act_saliency: Sum over the gradients' tokens of |neuron_act * dloss/dneuron_act|, [F] float64; None likewise.
    """

    gate_act_abs: Tensor
    gate_act_signed: Tensor
    tokens_per_sample: Tensor
    contribution: Tensor
    neuron_act_sum: Tensor
    neuron_act_squared: Tensor
    probe_inputs: Tensor
    probe_domains: Tensor
    weight_saliency: Tensor | None = None
    act_saliency: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Valid tokens that were counted."""
        return int(self.tokens_per_sample.sum())

    def profile(self, kind: str) -> Tensor:
        """Mean gate activation of every neuron on every sample, [F, N] float64; kind is 'abs' or 'signed'.

        Source: ExpertWeaver (arXiv 2602.15521), step 1.
        """
        sums = self.gate_act_abs if kind == "abs" else self.gate_act_signed
        return (sums.double() / self.tokens_per_sample[:, None].double()).T.contiguous()

    def mean_abs(self) -> Tensor:
        """Mean |gate_act| over all valid tokens, [F] float64."""
        return self.gate_act_abs.double().sum(dim=0) / self.num_tokens


def activation_frequency(x: Tensor, weights: GLUWeights, num_strongest: int) -> Tensor:
    """Share of tokens on which each neuron is among the `num_strongest` of largest |gate_act|: [T, H] to [F]."""
    strength = neuron_activations(x, weights, activation(weights.hidden_act))[0].abs()
    strongest = strength.topk(num_strongest, dim=1).indices
    return torch.bincount(strongest.flatten(), minlength=weights.num_neurons).double() / len(x)


@dataclass(frozen=True)
class TokenBatch:
    """The valid tokens of a batch.

    Attributes:
        sample_ids: Sample of each token, [T].
        probe: Tokens whose inputs are kept, [T] bool.
    """

    sample_ids: Tensor
    probe: Tensor


class StatisticsAccumulator:
    """Gathers a LayerStatistics batch by batch; the result does not depend on how tokens are batched."""

    def __init__(self, weights: GLUWeights, sample_domains: Tensor) -> None:
        """Start empty.

        Args:
            weights: The layer's FFN.
            sample_domains: Number of each sample's domain, [N].
        """
        neurons, num_samples = weights.num_neurons, len(sample_domains)
        self.sample_domains, self.hidden_size = sample_domains, weights.gate.shape[1]
        self.down_norm_squared = weights.down.double().square().sum(dim=0)
        self.gate_act_abs = torch.zeros(num_samples, neurons, device=weights.gate.device)
        self.gate_act_signed = torch.zeros_like(self.gate_act_abs)
        self.tokens_per_sample = torch.zeros(num_samples, dtype=torch.int64)
        self.neuron_act_sum = torch.zeros_like(self.down_norm_squared)
        self.neuron_act_squared = torch.zeros_like(self.down_norm_squared)
        self.probes: list[Tensor] = []
        self.probe_domains: list[Tensor] = []

    def add(self, tokens: TokenBatch, x: Tensor, gate_act: Tensor, neuron_act: Tensor) -> None:
        """Add a batch.

        Args:
            tokens: Where the T tokens belong.
            x: FFN inputs of valid tokens, [T, H].
            gate_act: [T, F].
            neuron_act: [T, F].
        """
        gate, samples = gate_act.float(), tokens.sample_ids.to(gate_act.device)
        self.gate_act_abs.index_add_(0, samples, gate.abs())
        self.gate_act_signed.index_add_(0, samples, gate)
        self.tokens_per_sample += torch.bincount(tokens.sample_ids, minlength=len(self.tokens_per_sample))
        self.neuron_act_sum += neuron_act.float().sum(dim=0, dtype=torch.float64)
        self.neuron_act_squared += neuron_act.float().square().sum(dim=0, dtype=torch.float64)
        self.probes.append(x[tokens.probe].float().cpu())
        self.probe_domains.append(self.sample_domains[tokens.sample_ids[tokens.probe]])

    def finish(self, where: str, group: Group = ALONE) -> LayerStatistics:
        """The statistics of all processes' tokens; the probes are at the leader only.

        A sample lies in one process, so its sums are those of one process to the last bit; only the float64 sums over
        all tokens are added up in another order.

        Raises:
            CalibrationError: A sample without tokens, or values that are not finite.
        """
        sums = (self.gate_act_abs, self.gate_act_signed, self.tokens_per_sample)
        for part in (*sums, self.neuron_act_sum, self.neuron_act_squared):
            group.sum(part)
        if int(self.tokens_per_sample.min()) == 0:
            raise CalibrationError(Problem(where, "tokens of every sample", "a sample without any", "Report this."))
        contribution = self.neuron_act_squared * self.down_norm_squared
        if not bool(torch.isfinite(contribution).all() and torch.isfinite(self.gate_act_abs).all()):
            fix = "Use calibration.compute_dtype=float32, and check the model's weights."
            raise CalibrationError(Problem(where, "finite activations", "NaN or infinite ones", fix))
        return LayerStatistics(
            self.gate_act_abs.cpu(),
            self.gate_act_signed.cpu(),
            self.tokens_per_sample,
            contribution.cpu(),
            self.neuron_act_sum.cpu(),
            self.neuron_act_squared.cpu(),
            group.rows(torch.cat([torch.empty(0, self.hidden_size), *self.probes])),
            group.rows(torch.cat([self.sample_domains[:0], *self.probe_domains])),
        )


class StatisticsFolder(Sequence[LayerStatistics]):
    """The statistics of all layers on disk, one file a layer; reading an item loads that layer only."""

    def __init__(self, folder: Path, num_layers: int) -> None:
        self.folder = folder
        self.num_layers = num_layers

    def __len__(self) -> int:
        return self.num_layers

    def __getitem__(self, layer: int) -> LayerStatistics:  # type: ignore[override]
        if not 0 <= layer < self.num_layers:
            raise IndexError(layer)
        return LayerStatistics(**load_file(self._file(layer)))

    def has(self, layer: int) -> bool:
        """Whether a layer's statistics are complete."""
        return self._file(layer).exists()

    def save(self, layer: int, statistics: LayerStatistics) -> None:
        """Write one layer's statistics beside and rename, so that a file that exists is complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._file(layer).with_suffix(".partial")
        tensors = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
        save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(self._file(layer))

    def _file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.safetensors"
