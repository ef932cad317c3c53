"""What a run needs to know of a model on disk: from a config without weights, or from a GGUF file's tensor list."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expertweaver.bench.ideal import Shape, Size
from expertweaver.errors import ArchitectureError, CheckpointError, Problem, RecipeError, listed

GGUF_CACHE_WIDTH = 2
"""Bytes of a number in llama.cpp's KV cache, which is float16 unless asked otherwise."""


SIZES = (
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "vocab_size",
    "n_shared_experts",
)


@dataclass(frozen=True)
class ModelFacts:
    """A model's shape, the limits on a prompt, and its sizes for the record."""

    shape: Shape
    vocab_size: int
    max_length: int | None
    sizes: dict[str, int]


def folder_facts(folder: Path, *, width: int) -> ModelFacts:
    """Read a model folder's facts from its config: no weight is loaded.

    Args:
        folder: With a config.json.
        width: Bytes of a number, in weights and cache.

    Raises:
        CheckpointError: The config cannot be read.
        ArchitectureError: A sparse model of a type that cannot be counted.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        found = (str(error).strip().splitlines() or ["no message"])[0]
        fix = "Give a folder that stock transformers loads."
        raise CheckpointError(Problem(str(folder), "a readable config.json", found, fix)) from error
    text = config.get_text_config()
    sizes = {name: value for name in SIZES if isinstance(value := getattr(text, name, None), int)}
    return ModelFacts(_folder_shape(model, width), text.vocab_size, text.max_position_embeddings, sizes)


def _folder_shape(model: Any, width: int) -> Shape:
    from expertweaver.evaluation.params import EXPERT_WEIGHT, routed_experts

    experts, text = routed_experts(model.config), model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    params = {name: p.numel() for name, p in model.named_parameters() if p is not embedding and p is not head}
    routed = sum(number for name, number in params.items() if experts and EXPERT_WEIGHT.search(name))
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        *(Size(number, number * width) for number in (sum(params.values()) - routed, head.numel(), routed)),
        num_experts=_same_in_all(experts.num_experts) if experts else 0,
        num_experts_per_tok=_same_in_all(experts.num_experts_per_tok) if experts else 0,
        num_layers=text.num_hidden_layers,
        query_size=text.num_attention_heads * head_dim,
        cache_bytes=2 * text.num_key_value_heads * head_dim * text.num_hidden_layers * width,
    )


def _same_in_all(numbers: int | tuple[int, ...]) -> int:
    """The number of a model whose layers have the same.

    Raises:
        ArchitectureError: Layers that differ, for which the ideal is not counted.
    """
    different = {numbers} if isinstance(numbers, int) else set(numbers)
    if len(different) > 1:
        found, fix = f"{listed(map(str, sorted(different)))} in different layers", "Time a model with equal layers."
        raise ArchitectureError(Problem("bench", "as many experts in every layer", found, fix))
    return different.pop()


def gguf_facts(file: Path) -> ModelFacts:
    """Read a GGUF file's facts, with the bytes that quantisation leaves.

    Raises:
        CheckpointError: Not a GGUF file of a language model.
        RecipeError: The package gguf is not installed.
    """
    try:
        reader_class = importlib.import_module("gguf").GGUFReader
    except ImportError as error:
        fix = "Install it with: pip install 'expertweaver[gguf]'"
        raise RecipeError(Problem("engine llamacpp", "the package gguf", str(error), fix)) from error
    try:
        reader = reader_class(file)
        name = str(reader.fields["general.architecture"].contents())
        fields = {key.removeprefix(f"{name}."): field for key, field in reader.fields.items()}
        values = {key: field.contents() for key, field in fields.items() if not key.startswith("tokenizer.")}
        parts = {tensor.name: Size(int(tensor.n_elements), int(tensor.n_bytes)) for tensor in reader.tensors}
        shape = gguf_shape(values, parts)
        vocab_size = parts["token_embd.weight"].params // int(values["embedding_length"])
        sizes = {key: value for key, value in values.items() if isinstance(value, int) and "." not in key}
        return ModelFacts(shape, vocab_size, values.get("context_length"), sizes)
    except (OSError, ValueError, KeyError) as error:
        found = f"{type(error).__name__}: {error}"
        raise CheckpointError(Problem(str(file), "a GGUF language model", found, "Export it again.")) from error


def gguf_shape(values: dict[str, Any], parts: dict[str, Size]) -> Shape:
    """The shape that a GGUF file's metadata (without the architecture's prefix) and tensors describe."""
    head = "output.weight" if "output.weight" in parts else "token_embd.weight"
    heads, layers = values["attention.head_count"], values["block_count"]
    head_size = values.get("attention.key_length", values["embedding_length"] // heads)
    rest = {name: size for name, size in parts.items() if name not in (head, "token_embd.weight")}
    return Shape(
        fixed=_total(size for name, size in rest.items() if "_exps." not in name),
        head=parts[head],
        routed=_total(size for name, size in rest.items() if "_exps." in name),
        num_experts=values.get("expert_count", 0),
        num_experts_per_tok=values.get("expert_used_count", 0),
        num_layers=layers,
        query_size=heads * head_size,
        cache_bytes=2 * values.get("attention.head_count_kv", heads) * head_size * layers * GGUF_CACHE_WIDTH,
    )


def _total(sizes: Iterable[Size]) -> Size:
    return sum(sizes, Size(0, 0))
