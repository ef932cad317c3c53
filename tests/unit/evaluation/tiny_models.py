"""Random models of a few thousand parameters, with a tokenizer that splits at spaces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from expertweaver.evaluation.params import NUM_EXPERTS_FIELD

VOCAB_SIZE = 64
BOS_ID = 1
NUM_EXPERTS = 5  # not 2 K: chosen and idle experts must not be mistaken for one another
NUM_EXPERTS_PER_TOK = 2
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": BOS_ID,
    "eos_token_id": 2,
    "pad_token_id": None,
}
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": NUM_EXPERTS_PER_TOK}
GROUPS = {"n_group": 1, "topk_group": 1}
OF_TYPE: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        **GROUPS,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "dots1": {**GROUPS, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "ernie4_5_moe": {"moe_layer_start_index": 1},
    "glm4_moe": {**GROUPS, "first_k_dense_replace": 0, "n_shared_experts": 1, "num_nextn_predict_layers": 0},
    "qwen2_moe": {"shared_expert_intermediate_size": 16},
    "solar_open": GROUPS,
}


def config_of(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """A tiny config of any dense or known sparse type."""
    values = dict(COMMON)
    if model_type in NUM_EXPERTS_FIELD:
        values |= MOE | {NUM_EXPERTS_FIELD[model_type]: NUM_EXPERTS}
    if model_type == "ernie4_5_moe":
        values["moe_k"] = values.pop("num_experts_per_tok")
    return AutoConfig.for_model(model_type, **{**values, **OF_TYPE.get(model_type, {}), **overrides})


def model_of(model_type: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model in evaluation mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_of(model_type, **overrides)).eval()


def tokenizer_of(*, adds_bos: bool = False, shift: int = 0, chat_template: str | None = None) -> Any:
    """Words w0, w1, ... as ids 3, 4, ...; `shift` gives the words other ids over the same vocabulary size."""
    specials = {"<unk>": 0, "<s>": BOS_ID, "</s>": 2}
    num_words = VOCAB_SIZE - len(specials)
    words = {f"w{(i + shift) % num_words}": i + len(specials) for i in range(num_words)}
    tokenizer = Tokenizer(models.WordLevel({**specials, **words}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    if adds_bos:
        bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
        tokenizer.post_processor = bos  # pyright: ignore[reportAttributeAccessIssue]
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    wrapped.chat_template = chat_template
    return wrapped


def save(folder: Path, model: PreTrainedModel, tokenizer: Any | None = None) -> str:
    """Write a checkpoint as transformers does."""
    model.save_pretrained(folder)
    (tokenizer or tokenizer_of()).save_pretrained(folder)
    return str(folder)


def words(length: int, seed: int = 0) -> str:
    """A document of so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(f"w{i}" for i in torch.randint(60, (length,), generator=generator).tolist())


def token_ids(document: str) -> list[int]:
    """The ids of a document of words, by the rule and not by the tokenizer."""
    return [int(word.removeprefix("w")) + 3 for word in document.split()]


def write_text(path: Path, documents: Sequence[tuple[str, str]]) -> str:
    """Write (domain, text) pairs as JSON lines."""
    rows = [json.dumps({"domain": domain, "text": text}) for domain, text in documents]
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)
