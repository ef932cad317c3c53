"""Running a dense model one stock decoder layer at a time, with an FFN that can be watched or replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.model import DenseModel
from expertweaver.dense.stock import StockModules, scaled

FFN = Callable[[Tensor], Tensor]
CPU = torch.device("cpu")


class FFNSlot(nn.Module):
    """Stands in a decoder layer where its FFN was and calls whatever was put into it."""

    def __init__(self, ffn: FFN) -> None:
        super().__init__()
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        """Map FFN inputs [B, T, H] to outputs [B, T, H]."""
        return self.ffn(x)


class LayerRunner:
    """Runs a dense model's own transformers layers; only one layer's weights are in memory at a time."""

    def __init__(
        self,
        dense: DenseModel,
        dtype: torch.dtype,
        stored_dtype: torch.dtype | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Prepare the layers.

        Args:
            dense: The model.
            dtype: Arithmetic of the forward pass.
            stored_dtype: Round weights to this type first, to compare with a checkpoint that was written in it.
            device: Where a layer lies and is computed; hidden states come and go.
        """
        self.dense = dense
        self.dtype = dtype
        self.stored_dtype = stored_dtype
        self.device = device
        self.stock = StockModules(dense.config, device)

    def embedder(self) -> FFN:
        """What turns token ids [B, T] into the hidden states entering the first layer, [B, T, H]."""
        table, scale = self.dense.read("model.embed_tokens.weight"), self.dense.traits.scales.embedding
        return lambda token_ids: scaled(self._cast(nn.functional.embedding(token_ids, table)), scale)

    def norm(self) -> nn.Module:
        """The final norm, with its weight as the source's own class has it."""
        weight = self.dense.reader.read(self.dense.origins["model.norm.weight"].source)
        return self.stock.norm(self._cast(weight))

    def head(self) -> Tensor:
        """The output head's weight, [V, H]."""
        return self._cast(self.dense.read("lm_head.weight"))

    def logits(self, hidden: Tensor, norm: nn.Module, head: Tensor) -> Tensor:
        """Logits [..., V] of what the last layer put out."""
        return self.stock.logits(hidden, norm, head, divisor=self.dense.traits.scales.logits)

    @contextlib.contextmanager
    def layer(self, index: int) -> Iterator[Any]:
        """A decoder layer with its attention and norm weights; its FFN is an empty slot (see `run`)."""
        module = self.stock.layer(index)
        module.mlp = FFNSlot(_empty_slot)
        prefix = layer_prefix(index)
        sources = {o.source for name, o in self.dense.origins.items() if name.startswith(prefix)}
        weights = {
            source.removeprefix(prefix): self._cast(self.dense.reader.read(source)).to(self.device)
            for source in sources
            if not source.startswith(prefix + "mlp.")
        }
        module.load_state_dict(weights, strict=True, assign=True)
        yield module.eval()

    def run(self, module: Any, hidden: Tensor, sample_ids: Tensor, ffn: FFN, *, with_graph: bool = False) -> Tensor:
        """Run one layer on hidden states [B, T, H]; attention stays inside a sample.

        Args:
            module: What `layer` gave.
            hidden: Hidden states entering the layer; the result lies where they do.
            sample_ids: Sample of each token [B, T]; -1 is padding, which sees only itself.
            ffn: Called with the normalised FFN inputs [B, T, H], on the runner's device.
            with_graph: Let the result be differentiated.
        """
        module.mlp.ffn = ffn
        there = hidden.to(self.device), sample_ids.to(self.device)
        try:
            return self.stock.run_layer(module, *there, with_graph=with_graph).to(hidden.device)
        finally:
            module.mlp.ffn = _empty_slot  # what an FFN holds on to may be large

    def stop_at_ffn(self, module: Any, hidden: Tensor, sample_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Run one layer up to its FFN.

        Args:
            module: What `layer` gave.
            hidden: Hidden states entering the layer, [B, T, H].
            sample_ids: As in `run`.

        Returns:
            FFN inputs, and the residual stream that `add_ffn` adds the FFN's output to, [B, T, H] each.
        """
        seen: list[Tensor] = []

        def nothing(x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros_like(x)

        residual = self.run(module, hidden, sample_ids, nothing)
        return seen[0].to(hidden.device), residual

    def add_ffn(self, module: Any, residual: Tensor, output: Tensor) -> Tensor:
        """Add an FFN's output [..., H] to the residual stream as the layer does, through its norm where it has one.

        The result lies where the residual stream does.
        """
        name = self.dense.family.output_norm
        with torch.inference_mode():
            output = output.to(self.device)
            output = output if name is None else getattr(module, name)(output)
            return residual + scaled(output, self.dense.traits.scales.residual).to(residual.device)

    def _cast(self, tensor: Tensor) -> Tensor:
        return (tensor if self.stored_dtype is None else tensor.to(self.stored_dtype)).to(self.dtype)


def _empty_slot(x: Tensor) -> Tensor:
    raise RuntimeError("this layer has no FFN yet: run it through LayerRunner.run")
