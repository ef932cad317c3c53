"""The stock transformers modules of a model without weights, and what each is given besides hidden states."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.dense.family import layer_type, sliding_window


class StockModules:
    """A causal language model's own modules, to be given weights and run one at a time."""

    def __init__(self, config: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Build the modules on the meta device.

        Args:
            config: The values of a config.json with every default filled in.
            device: Where layers will be run, and rotary frequencies lie.
        """
        self.config = config
        self.skeleton = _meta_model(config)
        rotary = self.skeleton.model.rotary_emb
        self.rotary: nn.Module = type(rotary)(config=rotary.config).to(device)
        self.needs_additive_mask = self.skeleton.config._attn_implementation == "eager"

    def layer(self, index: int) -> Any:
        """A decoder layer of its own, without weights."""
        return copy.deepcopy(self.skeleton.model.layers[index])

    def norm(self, weight: Tensor) -> nn.Module:
        """The final norm with this weight."""
        module = copy.deepcopy(self.skeleton.model.norm)
        module.load_state_dict({"weight": weight}, assign=True)
        return module

    def logits(self, hidden: Tensor, norm: nn.Module, head: Tensor, *, divisor: float = 1.0) -> Tensor:
        """Logits [..., V] of what the last layer put out, from the output head [V, H]."""
        logits = norm(hidden) @ head.T / divisor
        cap = self.config.get("final_logit_softcapping")
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def run_layer(self, module: Any, hidden: Tensor, sample_ids: Tensor, *, with_graph: bool = False) -> Tensor:
        """Run a decoder layer on hidden states [B, T, H]; attention stays inside a sample.

        Args:
            module: What `layer` gave, with weights.
            hidden: Hidden states entering the layer.
            sample_ids: Sample of each token [B, T]; -1 is padding, which sees only itself.
            with_graph: Let the result be differentiated.
        """
        index = module.self_attn.layer_idx
        mask = attention_mask(sample_ids, window=sliding_window(self.config, index))
        if self.needs_additive_mask:
            none = torch.zeros(mask.shape, dtype=hidden.dtype, device=mask.device)
            mask = none.masked_fill(~mask, torch.finfo(hidden.dtype).min)
        positions = positions_in_samples(sample_ids)
        kinds = getattr(self.rotary, "layer_types", None)
        cos_sin = self.rotary(hidden, positions, *([] if kinds is None else [layer_type(self.config, index)]))
        with torch.inference_mode(not with_graph):
            return module(hidden, attention_mask=mask, position_embeddings=cos_sin)


def scaled(hidden: Tensor, scale: float) -> Tensor:
    """Multiply by a constant that is rounded to the tensor's type first, as stock classes do; nothing for one."""
    return hidden if scale == 1 else hidden * torch.tensor(scale, dtype=hidden.dtype)


def attention_mask(sample_ids: Tensor, *, window: int | None = None) -> Tensor:
    """Causal mask inside samples: [B, 1, T, T] bool, True where a query may look; padding looks at itself."""
    length = sample_ids.shape[1]
    near = torch.ones(length, length, dtype=torch.bool, device=sample_ids.device).tril()
    if window is not None:
        near = near.triu(1 - window)
    same = sample_ids[:, :, None] == sample_ids[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=sample_ids.device)
    real = (sample_ids >= 0)[:, :, None]
    return ((same & near & real) | itself)[:, None]


def positions_in_samples(sample_ids: Tensor) -> Tensor:
    """Position of each token inside its own sample, [B, T]: samples are contiguous runs of one id."""
    steps = torch.arange(sample_ids.shape[1], device=sample_ids.device)
    starts = torch.ones_like(sample_ids, dtype=torch.bool)
    starts[:, 1:] = sample_ids[:, 1:] != sample_ids[:, :-1]
    last_start = torch.where(starts, steps, 0).cummax(dim=1).values
    return steps - last_start


def _meta_model(config: Mapping[str, Any]) -> Any:
    """A stock causal language model without weights; eager attention where the class has no other."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    stock = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(stock)
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    return model
