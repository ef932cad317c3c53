"""Tiny random models, one or several of every family, saved by stock transformers with a tokenizer."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 96
LETTERS = string.ascii_letters + string.digits
SYMBOLS = [*LETTERS, *string.punctuation][: VOCAB_SIZE - 2]

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = ["sliding_attention", "full_attention"]
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 32,
}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "logits_scaling": 3.0,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 6.0}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

VARIANTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "internlm3": ("internlm3", lambda: transformers.InternLM3Config(**SIZES, head_dim=8, rope_parameters=DYNAMIC_ROPE)),
    "llama": ("llama", lambda: transformers.LlamaConfig(**SIZES)),
    "llama-tied": ("llama", lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama-3-rope": ("llama", lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE)),
    "llama-linear-rope": ("llama", lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LINEAR_ROPE)),
    "llama-wide-heads": ("llama", lambda: transformers.LlamaConfig(**SIZES, head_dim=16)),
    "mistral": ("mistral", lambda: transformers.MistralConfig(**SIZES, sliding_window=None)),
    "mistral-window": ("mistral", lambda: transformers.MistralConfig(**SIZES, sliding_window=10)),
    "qwen2": ("qwen2", lambda: transformers.Qwen2Config(**SIZES, use_sliding_window=False)),
    "qwen2-yarn": ("qwen2", lambda: transformers.Qwen2Config(**SIZES, rope_parameters=YARN_ROPE)),
    "qwen3": ("qwen3", lambda: transformers.Qwen3Config(**SIZES, head_dim=16)),
    "phi3": ("phi3", lambda: transformers.Phi3Config(**SIZES, sliding_window=None)),
    "phi3-window": ("phi3", lambda: transformers.Phi3Config(**SIZES, sliding_window=10)),
    "phi3-longrope": (
        "phi3",
        lambda: transformers.Phi3Config(
            **SIZES, sliding_window=None, original_max_position_embeddings=32, rope_parameters=LONG_ROPE
        ),
    ),
    "seed_oss": ("seed_oss", lambda: transformers.SeedOssConfig(**SIZES, head_dim=16)),
    "granite": ("granite", lambda: transformers.GraniteConfig(**SIZES, **GRANITE)),
    "granite-biased": ("granite", lambda: transformers.GraniteConfig(**SIZES, **GRANITE, attention_bias=True)),
    "gemma": ("gemma", lambda: transformers.GemmaConfig(**SIZES, head_dim=16)),
    "phi3-partial-rope": (
        "phi3",
        lambda: transformers.Phi3Config(**{**SIZES, "sliding_window": None, "partial_rotary_factor": 0.5}),
    ),
    "qwen2-window": (
        "qwen2",
        lambda: transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    ),
    "olmo2": ("olmo2", lambda: transformers.Olmo2Config(**SIZES)),
    "olmo2-biased": ("olmo2", lambda: transformers.Olmo2Config(**SIZES, attention_bias=True)),
    "gemma2": (
        "gemma2",
        lambda: transformers.Gemma2Config(
            **SIZES, head_dim=16, sliding_window=8, layer_types=KINDS, final_logit_softcapping=6.0
        ),
    ),
    "gemma3": (
        "gemma3",
        lambda: transformers.Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8, layer_types=KINDS),
    ),
}
"""Name of a variant, the family it belongs to, and its configuration."""

PLAIN = {"glm4_moe", "solar_open", "qwen2_moe", "mixtral", "granitemoeshared"}
STOCK_TARGETS: dict[str, set[str]] = {
    "qwen2-window": set(),
    "olmo2": {"flex_olmo"},
    "olmo2-biased": {"flex_olmo"},
    "gemma2": set(),
    "gemma3": set(),
    "gemma": {"granitemoeshared"},
    "granite": {"granitemoeshared"},
    "granite-biased": {"granitemoeshared"},
    "internlm3": PLAIN,
    "llama": PLAIN,
    "llama-3-rope": PLAIN,
    "llama-linear-rope": PLAIN,
    "llama-tied": PLAIN,
    "llama-wide-heads": PLAIN,
    "mistral": PLAIN,
    "mistral-window": {"mixtral"},
    "phi3": PLAIN,
    "phi3-longrope": PLAIN,
    "phi3-partial-rope": {"glm4_moe"},
    "phi3-window": {"mixtral"},
    "qwen2": {"glm4_moe", "qwen2_moe", "solar_open"},
    "qwen2-yarn": {"glm4_moe", "qwen2_moe", "solar_open"},
    "seed_oss": {"glm4_moe", "qwen2_moe", "solar_open"},
    "qwen3": {"dots1", "glm4_moe", "qwen3_moe"},
}
ACCEPTED = {variant: names | {"expertweaver_moe"} for variant, names in STOCK_TARGETS.items()}
"""Which formats hold which model exactly; the table of docs/formats.md says the same. Our own class holds all."""


def save_variant(variant: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Save a variant's random model and a tokenizer; biases and norms are random too, so that losing one shows."""
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(VARIANTS[variant][1]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim == 1:
                parameter.normal_(mean=1.0, std=0.2)
            else:
                parameter.normal_(std=0.2)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer whose tokens are single characters."""
    vocabulary = {"<s>": 0, "</s>": 1} | {symbol: i + 2 for i, symbol in enumerate(SYMBOLS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def save_text(file: Path, *, documents: int = 24, length: int = 40, seed: int = 0) -> Path:
    """Random letters in two domains of different letters, one JSON line a document."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for number in range(documents):
        half = len(LETTERS) // 2
        offset = half * (number % 2)
        ids = torch.randint(half, (length,), generator=generator) + offset
        text = "".join(LETTERS[i] for i in ids.tolist())
        lines.append(json.dumps({"text": text, "domain": ("even", "odd")[number % 2]}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
