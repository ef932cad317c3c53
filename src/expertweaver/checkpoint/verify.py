"""Does the written checkpoint compute what it must? Checked from the files, by stock transformers modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.calibration.samples import PADDING, CalibrationSet
from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.model import DenseModel
from expertweaver.dense.reader import TensorReader
from expertweaver.dense.runner import LayerRunner
from expertweaver.dense.stock import StockModules, scaled
from expertweaver.errors import Problem, VerificationError, listed
from expertweaver.formats.base import Format, Layout, StoredLayer, all_experts_ffn
from expertweaver.modeling.reference import activation, sparse_ffn
from expertweaver.modeling.values import GLUWeights

MAX_LAYER_ERROR = 2e-5
"""Largest |difference| of an FFN's output, relative to the largest |output|: float32 re-association only."""

MAX_LOGIT_ERROR = 1e-3
"""Largest |difference| of the logits with all experts on, relative to the largest |logit|."""

MAX_TIED_SHARE = 0.05
"""Tokens on which two experts' scores coincide in float32; more means that the router's scale lost its order."""

NUM_SEQUENCES = 2
SEQUENCE_TOKENS = 64

LOADING_COPIES = 3
"""Memory that loading takes, over the checkpoint's size in float32: the result, its files, and experts being joined."""


@dataclass(frozen=True)
class Verification:
    """What was checked and the largest errors, relative to the largest value each.

    Attributes:
        whole_model: Whether transformers loaded all weights at once and ran them; otherwise one stock layer at a time.
        num_tensors: Tensors of the checkpoint, every one accounted for.
        num_test_tokens: Tokens the forward checks ran on.
        repaired: Whether down_proj was repaired; "dense" below then means the dense model with these down_proj. It
            also has the output bias and each neuron as often as it is stored, where a design goes that far.
        identity_error: All experts on, against the dense FFN; the worst layer.
        reference_error: K experts, against our reference forward with the stored router; the worst layer.
        logit_error: Logits with all experts on, against the dense model.
        tied_share: Share of tokens left out of `reference_error`, because two experts scored equal at the border
            between chosen and not; the worst layer.
    """

    whole_model: bool
    num_tensors: int
    num_test_tokens: int
    repaired: bool
    identity_error: float
    reference_error: float
    logit_error: float
    tied_share: float


def check_tensors(
    folder: Path,
    dense: DenseModel,
    form: Format,
    stored: Sequence[StoredLayer],
    dtype: torch.dtype,
    *,
    is_partition: bool = True,
) -> int:
    """Compare every tensor on disk with the source, bit for bit, and account for all of them.

    `is_partition` says that every neuron of the dense FFN must be stored once.

    Returns:
        How many tensors the checkpoint has.

    Raises:
        VerificationError: A tensor is missing, unknown, or differs from its origin.
    """
    reader = TensorReader.open(folder)
    unseen = set(reader.tensors)
    problems: list[str] = []

    def compare(expected: dict[str, Tensor]) -> None:
        for name, tensor in expected.items():
            if name not in reader.tensors:
                problems.append(f"{name} is missing")
                continue
            unseen.discard(name)
            written = reader.read(name)
            if written.dtype != tensor.dtype or not torch.equal(written, tensor):
                problems.append(f"{name} differs from its origin")

    compare(outer_tensors(dense, form, dtype))
    for layer, design in enumerate(stored):
        compare(copied_tensors(dense, form, layer, dtype))
        compare(form.layer_tensors(layer, design, dense.read_ffn(layer), dtype))
        owned = torch.cat([design.shared_neurons, *design.expert_neurons]).sort().values
        if is_partition and not torch.equal(owned, torch.arange(dense.dims.intermediate_size)):
            problems.append(f"layer {layer}: the neurons are not a permutation of the dense FFN's")
    problems += [f"{name} has no origin" for name in sorted(unseen)]
    if problems:
        expected = "every tensor equal to its origin in the source"
        raise VerificationError(Problem(str(folder), expected, listed(problems), "This is a bug; please report it."))
    return len(reader.tensors)


def outer_tensors(dense: DenseModel, form: Format, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors outside the decoder layers as they are written."""
    if form.capabilities.source_layout:  # as the source's own class has them, without the constants of our words
        return {name: dense.reader.read(dense.origins[name].source).to(dtype) for name in dense.names()}
    return {name: dense.read(name).to(dtype) for name in dense.names()}


def copied_tensors(dense: DenseModel, form: Format, layer: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a layer that are not its FFN, as they are written."""
    names = [name for name in dense.names(layer) if not name.startswith(layer_prefix(layer) + "mlp.")]
    if form.capabilities.source_layout:
        sources = {dense.origins[name].source: None for name in names}
        return {source: dense.reader.read(source).to(dtype) for source in sources}
    return {name: dense.read(name).to(dtype) for name in names}


def verify(
    folder: Path,
    dense: DenseModel,
    form: Format,
    stored: Sequence[StoredLayer],
    layout: Layout,
    calibration: CalibrationSet,
    *,
    dtype: torch.dtype,
    memory_budget: int,
    is_partition: bool = True,
) -> Verification:
    """Check a written checkpoint: tensors, reload, and the two identities, in float32 on a few tokens.

    Stock transformers loads the folder as a user would, and must have nothing to say. Where that takes more than
    `memory_budget` bytes, it loads without holding values, and its decoder layers are given theirs one at a time.

    Raises:
        VerificationError: Anything differs by more than float32 re-association explains.
    """
    num_tensors = check_tensors(folder, dense, form, stored, dtype, is_partition=is_partition)
    fits = LOADING_COPIES * _float32_bytes(folder) <= memory_budget
    loaded = _reload(folder, device=None if fits else "meta")
    tokens = _test_tokens(calibration)
    checker = _Checker(folder, dense, form, layout, dtype, loaded if fits else None)
    dense_stream, sparse_stream = checker.runner.embedder()(tokens), checker.embed(tokens)
    identity, reference = 0.0, 0.0
    for layer, design in enumerate(stored):
        errors, dense_stream, sparse_stream = checker.layer(layer, design, dense_stream, sparse_stream)
        identity, reference = max(identity, errors[0]), max(reference, errors[1])
    logit_error = checker.logits(dense_stream, tokens, sparse_stream)
    _require(folder, "relative error of the FFN output with all experts on", identity, MAX_LAYER_ERROR)
    _require(folder, "relative error of the FFN output with K experts", reference, MAX_LAYER_ERROR)
    _require(folder, "relative error of the logits with all experts on", logit_error, MAX_LOGIT_ERROR)
    tied = max(checker.tied)
    _require(folder, "share of tokens whose choice of experts is a tie", tied, MAX_TIED_SHARE)
    return Verification(
        whole_model=fits,
        num_tensors=num_tensors,
        num_test_tokens=tokens.numel(),
        repaired=checker.repaired,
        identity_error=identity,
        reference_error=reference,
        logit_error=logit_error,
        tied_share=tied,
    )


class _Checker:
    """Runs stock layers of the checkpoint beside the dense ones on the same hidden states."""

    def __init__(
        self, folder: Path, dense: DenseModel, form: Format, layout: Layout, dtype: torch.dtype, whole: Any
    ) -> None:
        self.reader = TensorReader.open(folder)
        self.runner = LayerRunner(dense, torch.float32, stored_dtype=dtype)
        self.stock = StockModules(_config_values(folder))
        self.dense, self.form, self.layout, self.dtype, self.whole = dense, form, layout, dtype, whole
        self.act = activation(dense.dims.hidden_act)
        self.tied: list[float] = []
        self.repaired = False

    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden states of token ids [B, T] from the checkpoint's own embeddings."""
        rows = nn.functional.embedding(tokens, self.reader.read("model.embed_tokens.weight")).float()
        return scaled(rows, self.dense.traits.scales.embedding)

    def layer(
        self, index: int, design: StoredLayer, dense_in: Tensor, sparse_in: Tensor
    ) -> tuple[tuple[float, float], Tensor, Tensor]:
        """Check one layer; returns the two errors and the dense and the all-experts hidden states after it."""
        self.repaired |= design.down is not None
        weights = design.read_back(self.dense.read_ffn(index), self.dtype)
        module = self._stock_layer(index)
        stock_ffn = self.form.stock_ffn(module)
        seen: list[Tensor] = []

        def watch(x: Tensor) -> Tensor:
            seen.append(x)
            return all_experts_ffn(x, weights, design, self.dtype, self.act)

        sample_ids = torch.arange(len(dense_in))[:, None].expand(dense_in.shape[:2])
        with torch.inference_mode():
            with self.runner.layer(index) as dense_layer:
                dense_out = self.runner.run(dense_layer, dense_in, sample_ids, watch)
            x = seen[0]
            reference_error = self._reference_error(stock_ffn, x, design, weights)
            self.form.set_all_experts_on(stock_ffn)
            identity_error = _relative(stock_ffn(x), all_experts_ffn(x, weights, design, self.dtype, self.act))
            sparse_out = self.stock.run_layer(module, sparse_in, sample_ids)
        return (identity_error, reference_error), dense_out, sparse_out

    def logits(self, dense_hidden: Tensor, tokens: Tensor, sparse_hidden: Tensor) -> float:
        """Relative error of the logits with all experts on."""
        with torch.inference_mode():
            expected = self.runner.logits(dense_hidden, self.runner.norm(), self.runner.head())
            if self.whole is not None:
                return _relative(self.whole(input_ids=tokens).logits, expected)
            norm = self.stock.norm(self.reader.read("model.norm.weight").float())
            head, divisor = self.reader.read("lm_head.weight").float(), self.dense.traits.scales.logits
            return _relative(self.stock.logits(sparse_hidden, norm, head, divisor=divisor), expected)

    def _stock_layer(self, index: int) -> nn.Module:
        if self.whole is not None:
            return self.whole.model.layers[index]
        module = self.stock.layer(index)
        prefix = layer_prefix(index)
        names = [name for name in self.reader.tensors if name.startswith(prefix)]
        self.form.load_layer(module, {name.removeprefix(prefix): self.reader.read(name).float() for name in names})
        return module.eval()

    def _reference_error(self, stock_ffn: nn.Module, x: Tensor, design: StoredLayer, weights: GLUWeights) -> float:
        """K experts against our own forward, on the tokens whose choice does not hang on a tie."""
        tokens = x.flatten(0, 1)
        routing = self.form.reference_routing(tokens, design, self.layout)
        shared = weights.slice(design.shared_neurons)
        experts = [weights.slice(neurons) for neurons in design.expert_neurons]
        expected = sparse_ffn(tokens, shared, experts, routing.chosen, self.act, routing.weights)
        if design.output_bias is not None:
            expected = expected + design.output_bias.to(self.dtype).float()
        self.tied.append(float(routing.tied.double().mean()))
        decided = ~routing.tied
        return _relative(stock_ffn(x).flatten(0, 1)[decided], expected[decided])


def _reload(folder: Path, device: str | None) -> Any:
    """The model as stock transformers loads it; on the meta device it checks names and shapes and keeps no values."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        device_map=device,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told like the other remarks
        local_files_only=True,
        trust_remote_code=False,
    )
    model, info = loaded
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        found = "; ".join(f"{kind}: {listed(names)}" for kind, names in wrong.items())
        fix = "This is a bug; please report it."
        raise VerificationError(
            Problem(str(folder), "a checkpoint that transformers loads without remarks", found, fix)
        )
    return model.eval()


def _config_values(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()


def _float32_bytes(folder: Path) -> int:
    return 4 * sum(info.num_elements for info in TensorReader.open(folder).tensors.values())


def _test_tokens(calibration: CalibrationSet) -> Tensor:
    """The first tokens of the longest samples, [B, T], without padding."""
    lengths = torch.bincount(calibration.sample_ids[calibration.sample_ids != PADDING])
    longest = torch.sort(lengths, descending=True, stable=True).indices[:NUM_SEQUENCES]
    length = min(SEQUENCE_TOKENS, int(lengths[longest].min()))
    return torch.stack([calibration.token_ids[calibration.sample_ids == sample][:length] for sample in longest])


def _relative(found: Tensor, expected: Tensor) -> float:
    if expected.numel() == 0:  # every token's choice is a tie, which has a limit of its own
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _require(folder: Path, what: str, error: float, limit: float) -> None:
    if not error <= limit:
        fix = "Nothing was published. Check the source with `expertweaver inspect`; if it is sound, report this."
        raise VerificationError(Problem(f"{folder}: {what}", f"at most {limit:g}", f"{error:.3g}", fix))
