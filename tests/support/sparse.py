"""A tiny model of a family, converted, with a tokenizer that llama.cpp could read."""

from __future__ import annotations

from pathlib import Path

from support.families import SYMBOLS, save_text, save_variant
from support.tokenizers import byte_level, save

from expertweaver import convert, make_recipe

SETTINGS = {
    "num_slices": 8,
    "mlp_sparsity": 0.5,
    "calibration.sequence_length": 32,
    "calibration.num_samples": 24,
    "method": "expertweaver",
    "method.alpha_max": 0.3,
}


def convert_variant(variant: str, folder: Path, *, tokenizer: bool = True) -> Path:
    """Convert a variant and, unless told otherwise, give it a byte-level tokenizer with one merge; 96 tokens."""
    source = save_variant(variant, folder / "dense")
    text = save_text(folder / "text.jsonl")
    recipe = make_recipe(source, settings={**SETTINGS, "calibration": [str(text)]})
    done = convert(recipe, folder / "sparse")
    if tokenizer:
        save(byte_level(symbols=SYMBOLS[:-1], merges=[("t", "h")]), done.path)
    return done.path
