"""Running a dense model one stock decoder layer at a time, with an FFN that can be watched or replaced."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.model import DenseModel

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
        self.skeleton = meta_model(dense.config)
        self.device = device
        self.rotary = rotary_of(self.skeleton).to(device)

    def embedding_table(self) -> Tensor:
        """The token embeddings as stored, [V, H]."""
        return self.dense.read("model.embed_tokens.weight")

    def embed(self, token_ids: Tensor) -> Tensor:
        """Look up the embeddings of token ids [B, T]: [B, T, H]."""
        return self._cast(nn.functional.embedding(token_ids, self.embedding_table()))

    def norm(self) -> nn.Module:
        """The final norm, with its weight."""
        module = copy.deepcopy(self.skeleton.model.norm)
        module.load_state_dict({"weight": self._cast(self.dense.read("model.norm.weight"))}, assign=True)
        return module

    @contextlib.contextmanager
    def layer(self, index: int) -> Iterator[Any]:
        """A decoder layer with its attention and norm weights; its FFN is an empty slot (see `run`)."""
        module = copy.deepcopy(self.skeleton.model.layers[index])
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
        return run_layer(module, self.rotary, *there, with_graph=with_graph).to(hidden.device)

    def stop_at_ffn(self, module: Any, hidden: Tensor, sample_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Run one layer up to its FFN.

        Args:
            module: What `layer` gave.
            hidden: Hidden states entering the layer, [B, T, H].
            sample_ids: As in `run`.

        Returns:
            FFN inputs, and the residual stream that the FFN's output is to be added to, [B, T, H] each.
        """
        seen: list[Tensor] = []

        def nothing(x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros_like(x)

        residual = self.run(module, hidden, sample_ids, nothing)
        return seen[0].to(hidden.device), residual

    def _cast(self, tensor: Tensor) -> Tensor:
        return (tensor if self.stored_dtype is None else tensor.to(self.stored_dtype)).to(self.dtype)


def meta_model(config: Mapping[str, Any]) -> Any:
    """A stock causal language model without weights, from a configuration's values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    stock = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(stock, attn_implementation="sdpa")


def rotary_of(skeleton: Any) -> nn.Module:
    """The rotary embedding of a model without weights, with its frequencies computed."""
    rotary = skeleton.model.rotary_emb
    return type(rotary)(config=rotary.config)


def run_layer(
    module: nn.Module, rotary: nn.Module, hidden: Tensor, sample_ids: Tensor, *, with_graph: bool = False
) -> Tensor:
    """Run a stock decoder layer on hidden states [B, T, H]; attention stays inside a sample [B, T]."""
    cos_sin = rotary(hidden, positions_in_samples(sample_ids))
    with torch.inference_mode(not with_graph):
        return module(hidden, attention_mask=attention_mask(sample_ids), position_embeddings=cos_sin)


def attention_mask(sample_ids: Tensor) -> Tensor:
    """Causal mask inside samples: [B, 1, T, T] bool, True where a query may look; padding looks at itself."""
    length = sample_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=sample_ids.device).tril()
    same = sample_ids[:, :, None] == sample_ids[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=sample_ids.device)
    real = (sample_ids >= 0)[:, :, None]
    return ((same & causal & real) | itself)[:, None]


def positions_in_samples(sample_ids: Tensor) -> Tensor:
    """Position of each token inside its own sample, [B, T]: samples are contiguous runs of one id."""
    steps = torch.arange(sample_ids.shape[1], device=sample_ids.device)
    starts = torch.ones_like(sample_ids, dtype=torch.bool)
    starts[:, 1:] = sample_ids[:, 1:] != sample_ids[:, :-1]
    last_start = torch.where(starts, steps, 0).cummax(dim=1).values
    return steps - last_start


def _empty_slot(x: Tensor) -> Tensor:
    raise RuntimeError("this layer has no FFN yet: run it through LayerRunner.run")
