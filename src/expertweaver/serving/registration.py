"""Makes our own model class known to transformers and to vLLM, so that no code from a model folder is needed."""

from __future__ import annotations

import importlib


def register() -> None:
    """Register `expertweaver_moe` with transformers' AutoConfig, AutoModel and AutoModelForCausalLM.

    After it, these load our own class from the installed package, without `trust_remote_code`. A model that is saved
    takes the class's source file along. Calling it again changes nothing.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from expertweaver.serving import modeling_expertweaver_moe as ours

    AutoConfig.register(ours.ExpertWeaverMoeConfig.model_type, ours.ExpertWeaverMoeConfig, exist_ok=True)
    AutoModel.register(ours.ExpertWeaverMoeConfig, ours.ExpertWeaverMoeModel, exist_ok=True)
    AutoModelForCausalLM.register(ours.ExpertWeaverMoeConfig, ours.ExpertWeaverMoeForCausalLM, exist_ok=True)


ARCHITECTURE = "ExpertWeaverMoeForCausalLM"
VLLM_BACKEND = "vllm.model_executor.models.transformers:TransformersForCausalLM"


def vllm_plugin() -> None:
    """Register our own class in a vLLM process: the entry point of the group `vllm.general_plugins`.

    vLLM runs it in every process. It serves the class by its Transformers backend: attention is vLLM's, and the sparse
    FFN is our own module as it is, because vLLM's expert kernels know neither unequal layers nor a plain sum.
    """
    register()
    importlib.import_module("vllm").ModelRegistry.register_model(ARCHITECTURE, VLLM_BACKEND)
