"""A tiny model of a family, converted, with a tokenizer that llama.cpp could read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.families import SYMBOLS, save_text, save_variant
from support.tokenizers import byte_level, save

from expertweaver import convert, make_recipe
from expertweaver.formats.base import load_format

SETTINGS = {
    "num_slices": 8,
    "mlp_sparsity": 0.5,
    "calibration.sequence_length": 32,
    "calibration.num_samples": 24,
    "method": "expertweaver",
    "method.alpha_max": 0.3,
}


def settings_for(stored_format: str) -> dict[str, Any]:
    """A method that suits a format."""
    if load_format(stored_format).capabilities.selection_bias:
        return {**SETTINGS, "format": stored_format}
    plain = {key: value for key, value in SETTINGS.items() if not key.startswith("method")}
    num_shared = 0 if load_format(stored_format).capabilities.shared_expert == "none" else 2
    return {**plain, "method": "random", "method.num_shared_slices": num_shared, "format": stored_format}


def convert_variant(
    variant: str, folder: Path, *, stored_format: str = "glm4_moe", tokenizer: bool = True, **more: Any
) -> Path:
    """Convert a variant and, unless told otherwise, give it a byte-level tokenizer with one merge; 96 tokens."""
    source = save_variant(variant, folder / "dense")
    text = save_text(folder / "text.jsonl")
    settings = {**settings_for(stored_format), "calibration": [str(text)], **more}
    recipe = make_recipe(source, settings=settings)
    done = convert(recipe, folder / "sparse")
    if tokenizer:
        save(byte_level(symbols=SYMBOLS[:-1], merges=[("t", "h")]), done.path)
    return done.path
