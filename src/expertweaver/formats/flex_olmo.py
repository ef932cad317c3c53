"""FlexOlmoForCausalLM: OLMo 2's layers, norms after attention and FFN; routed experts only, softmax over the chosen.

Norms on queries and keys are over the whole projection. Each chosen expert is weighed by nearly 1/K, and `down_proj` is
multiplied by K. Routers have no bias. The class can also leave the softmax over all experts as it is; over the chosen,
the factor K is the smaller one.
"""

from __future__ import annotations

from typing import Any

from expertweaver.dense.model import DenseModel
from expertweaver.formats.base import ATTENTION_BIASES, Capabilities, Layout
from expertweaver.formats.parts.softmax import SoftmaxFormat


def own_config(dense: DenseModel, layout: Layout) -> dict[str, Any]:
    """Keys beside those that all formats have."""
    return {
        "attention_bias": bool(dense.traits.biases),
        "intermediate_size": layout.slice_width,
        "num_experts": layout.num_experts,
        "num_experts_per_tok": layout.num_experts_per_tok,
        "norm_topk_prob": True,
        "output_router_logits": False,
    }


FORMAT = SoftmaxFormat(
    model_type="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    capabilities=Capabilities(
        engines=("transformers", "vLLM"),
        attention_biases=(ATTENTION_BIASES,),
        qk_norm="required",
        qk_norm_width="projection",
        norms="after",
    ),
    own_config=own_config,
    over_chosen=True,
)
