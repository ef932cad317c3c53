"""Llama checkpoints of any size, written shard by shard: hollow ones for plans, random ones for conversions."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 1000
"""Words `w0` ... of the tokenizer; the model may have more."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int


SHAPES = {
    "0.5B": Shape(896, 4864, 24, 14, 2, 151936),
    "7B": Shape(3584, 18944, 28, 28, 4, 152064),
    "70B": Shape(8192, 28672, 80, 64, 8, 128256),
    "405B": Shape(16384, 53248, 126, 128, 8, 128256),
}
"""Of Qwen2.5-0.5B and 7B (without their biases) and Llama-3.1-70B and 405B."""


def save_hollow(folder: Path, shape: Shape) -> None:
    """Save a checkpoint whose weights are holes in files: their full length, but no block of them is written."""
    shards = _save_around(folder, shape)
    for file, shapes in shards.items():
        header, end = {}, 0
        for name, sizes in shapes.items():
            start, end = end, end + 2 * sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + end)


def save_random(folder: Path, shape: Shape, *, seed: int = 0) -> None:
    """Save a bfloat16 checkpoint of random weights with at most one shard in memory."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    for file, shapes in _save_around(folder, shape).items():
        tensors = {}
        for name, sizes in shapes.items():
            if len(sizes) == 1:
                tensors[name] = torch.ones(sizes, dtype=torch.bfloat16)
            else:
                tensors[name] = torch.empty(sizes, dtype=torch.bfloat16)
                tensors[name].normal_(std=sizes[1] ** -0.5, generator=generator)
        save_file(tensors, folder / file, metadata={"format": "pt"})


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer of made-up words, since conversions and engines want one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def save_words(file: Path, *, num_samples: int, sequence_length: int, seed: int = 0) -> None:
    """Save calibration text: samples of random words of the tokenizer."""
    import random

    draw = random.Random(seed)
    with file.open("w", encoding="utf-8") as stream:
        for sample in range(num_samples):
            text = " ".join(f"w{draw.randrange(VOCABULARY)}" for _ in range(sequence_length))
            stream.write(json.dumps({"text": text, "domain": f"d{sample % 4}"}) + "\n")


def _save_around(folder: Path, shape: Shape) -> dict[str, dict[str, list[int]]]:
    """Save configuration, tokenizer and index; returns the shards: one a layer and one for the rest."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = asdict(shape)
    config = LlamaConfig(**sizes, max_position_embeddings=4096, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).state_dict()
    config.save_pretrained(folder)
    save_tokenizer(folder)
    shards: dict[str, dict[str, list[int]]] = {}
    for name, tensor in tensors.items():
        place = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shards.setdefault(f"model-{place}.safetensors", {})[name] = list(tensor.shape)
    weight_map = {name: file for file, shapes in shards.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return shards
