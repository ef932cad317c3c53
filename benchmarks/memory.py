"""What a conversion's memory is set beside: the mark for weave, and what torch and transformers hold by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shapes import Shape, save_random, save_words

TOY = Shape(64, 256, 1, 1, 1, 4096)
TOY_TEXT = {"num_samples": 8, "sequence_length": 512}


def weave_bound(shape: Shape, num_tokens: int, *, hidden_bytes: int = 4) -> int:
    """The mark we set: two decoder layers in float32, three streams of hidden states, two F x F matrices in float64."""
    hidden, wide = shape.hidden_size, shape.intermediate_size
    attention = 2 * hidden**2 + 2 * hidden * hidden * shape.num_key_value_heads // shape.num_attention_heads
    return 2 * 4 * (3 * hidden * wide + attention) + 3 * hidden_bytes * num_tokens * hidden + 2 * 8 * wide**2


def library_bytes(folder: Path, settings: Mapping[str, Any], *, device: str = "cpu") -> int:
    """What this process holds once it has converted a toy into `folder` as the command line does; forgets the peak."""
    from expertweaver import convert, machine, make_recipe

    machine.hold_little_freed_memory()
    save_random(folder / "toy", TOY)
    save_words(folder / "toy.jsonl", **TOY_TEXT)
    sizes = {"mlp_sparsity": 0.25, "num_slices": 16, "calibration": [str(folder / "toy.jsonl")]}
    lengths = {f"calibration.{name}": value for name, value in TOY_TEXT.items()}
    recipe = make_recipe(folder / "toy", settings={**settings, **sizes, **lengths})
    convert(recipe, folder / "sparse-toy", device=device)
    machine.return_freed_memory()
    held = machine.peak_memory() if machine.forget_peak_memory() else None
    if held is None:
        raise SystemExit("this system does not tell a process its peak memory, or does not forget it: Linux does")
    return held
