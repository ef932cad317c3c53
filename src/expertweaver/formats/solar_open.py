"""SolarOpenForCausalLM: shared expert and DeepSeek-V3 router, for Llama and Qwen2 beside glm4_moe.

The router's arithmetic is in `parts/sigmoid.py`.
"""

from __future__ import annotations

from typing import Any

from expertweaver.dense.model import DenseModel
from expertweaver.formats.base import QKV_BIASES, Capabilities, Layout
from expertweaver.formats.parts.sigmoid import SigmoidFormat, router_config


def own_config(dense: DenseModel, layout: Layout) -> dict[str, Any]:
    """Keys beside those that all formats have."""
    return {
        "attention_bias": bool(dense.traits.biases),
        **router_config(layout),
    }


FORMAT = SigmoidFormat(
    model_type="solar_open",
    architecture="SolarOpenForCausalLM",
    capabilities=Capabilities(
        engines=("transformers",),
        selection_bias=True,
        layer_adaptive_share=True,
        shared_expert="advised",
        attention_biases=(QKV_BIASES,),
    ),
    own_config=own_config,
)
