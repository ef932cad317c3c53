"""What of the tiny models in what format llama.cpp can get, and what it cannot."""

from __future__ import annotations

from support.families import ACCEPTED

from expertweaver.registry import module_names

FACTORS = {"llama-3-rope", "phi3-longrope"}
"""Variants whose rotary frequencies have factors."""

DYNAMIC = {"internlm3"}

REFUSED = {
    "glm4_moe": FACTORS | DYNAMIC,
    "granitemoeshared": DYNAMIC | {"gemma"},
    "mixtral": DYNAMIC | {"mistral-window", "phi3-window"},
    "qwen2_moe": FACTORS | DYNAMIC | {"llama-wide-heads", "seed_oss"},
    "qwen3_moe": set[str](),
}
"""Variants that a format holds and its architecture in llama.cpp does not."""

PAIRS = sorted(
    (variant, name)
    for variant, formats in ACCEPTED.items()
    for name in formats & set(module_names("gguf/architectures"))
)
"""Every variant with every format that holds it and that has an architecture."""

EXPORTED = [(variant, name) for variant, name in PAIRS if variant not in REFUSED[name]]
