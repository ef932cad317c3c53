"""Glm4MoeForCausalLM: shared expert and DeepSeek-V3 router; native in transformers, vLLM, SGLang and llama.cpp.

Its attention covers that of most Llama-like families. The router's arithmetic is in `parts/sigmoid.py`.
"""

from __future__ import annotations

from typing import Any

from expertweaver.dense.model import DenseModel
from expertweaver.formats.base import QKV_BIASES, Capabilities, Layout
from expertweaver.formats.parts.fit import DYNAMIC, FACTORS
from expertweaver.formats.parts.sigmoid import SigmoidFormat, router_config


def own_config(dense: DenseModel, layout: Layout) -> dict[str, Any]:
    """Keys beside those that all formats have."""
    rope = dict(dense.config["rope_parameters"])
    return {
        "partial_rotary_factor": rope.setdefault("partial_rotary_factor", 1.0),
        "rope_parameters": rope,
        "attention_bias": bool(dense.traits.biases),
        "use_qk_norm": dense.traits.qk_norm != "none",
        **router_config(layout),
        "first_k_dense_replace": 0,
        "num_nextn_predict_layers": 0,
    }


FORMAT = SigmoidFormat(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    capabilities=Capabilities(
        engines=("transformers", "vLLM", "SGLang", "llama.cpp"),
        not_served={DYNAMIC: ("llama.cpp",), FACTORS: ("llama.cpp",)},
        selection_bias=True,
        layer_adaptive_share=True,
        shared_expert="advised",
        attention_biases=(QKV_BIASES,),
        qk_norm="optional",
        partial_rotary=True,
    ),
    own_config=own_config,
)
