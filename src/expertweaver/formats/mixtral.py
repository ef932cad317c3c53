"""MixtralForCausalLM: routed experts only, softmax over the chosen; can have a sliding window in every layer.

Each chosen expert is weighed by nearly 1/K, and `down_proj` is multiplied by K. Routers have no bias.
"""

from __future__ import annotations

from typing import Any

from expertweaver.dense.model import DenseModel
from expertweaver.formats.base import Capabilities, Layout
from expertweaver.formats.parts.fit import DYNAMIC, WINDOW
from expertweaver.formats.parts.layer import Names
from expertweaver.formats.parts.softmax import SoftmaxFormat


def own_config(dense: DenseModel, layout: Layout) -> dict[str, Any]:
    """Keys beside those that all formats have."""
    return {
        "intermediate_size": layout.slice_width,
        "num_local_experts": layout.num_experts,
        "num_experts_per_tok": layout.num_experts_per_tok,
        "sliding_window": dense.traits.sliding_window,
        "output_router_logits": False,
        "router_jitter_noise": 0.0,
    }


FORMAT = SoftmaxFormat(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    capabilities=Capabilities(
        engines=("transformers", "vLLM", "llama.cpp"),
        not_served={DYNAMIC: ("llama.cpp",), WINDOW: ("llama.cpp",)},
        sliding_window=True,
    ),
    own_config=own_config,
    over_chosen=True,
    names=Names("block_sparse_moe.experts.", "block_sparse_moe.gate.weight", parts=("w1", "w3", "w2")),
)
