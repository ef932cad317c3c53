"""A stock class of transformers as a format: what it can say, and its own part of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from expertweaver.dense.model import DenseModel
from expertweaver.errors import Problem
from expertweaver.formats.base import Capabilities, Layout
from expertweaver.formats.parts.configuration import common_config, experts_implementation
from expertweaver.formats.parts.fit import block_problems


@dataclass(frozen=True)
class StockFormat:
    """What formats of stock classes have alike; how experts and router are stored is in those that derive from it.

    Attributes:
        model_type: Name of the class in transformers, and of the format.
        architecture: Its causal language model.
        capabilities: What it can say.
        own_config: The keys of config.json that not all formats have; what differs from a class default is set.
    """

    model_type: str
    architecture: str
    capabilities: Capabilities
    own_config: Callable[[DenseModel, Layout], dict[str, Any]]

    def check(self, dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
        """Find what of a model the class cannot hold."""
        return block_problems(self.model_type, self.capabilities, dense, dtype)

    def config(self, dense: DenseModel, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
        """The config.json; everything whose class default differs is set explicitly."""
        common = common_config(dense, dtype, self.architecture, self.model_type)
        return common | self.own_config(dense, layout) | experts_implementation(layout.slice_width)

    def stock_ffn(self, layer: nn.Module) -> nn.Module:
        """The FFN of a stock decoder layer, which calls it `mlp`."""
        return layer.get_submodule("mlp")
