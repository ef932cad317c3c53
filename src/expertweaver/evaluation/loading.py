"""Models as any user of transformers loads them: stock classes, no ExpertWeaver code, and no tensor made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from expertweaver.dense.runner import CPU
from expertweaver.dense.source import find_model
from expertweaver.errors import CheckpointError, Problem
from expertweaver.serving.registration import register

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_ITEMS = 5
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate whose config and tokenizer were read, and whose weights were not."""

    name: str
    path: str
    folder: Path
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


def abbreviate(items: Sequence[str]) -> str:
    """Join the first few items for a message, with dots where some are left out."""
    return "; ".join([*items[:MAX_ITEMS], *(["..."] if len(items) > MAX_ITEMS else [])])


def open_candidates(
    models: Sequence[str | Path], *, trust_remote_code: bool, stock_class: bool = False
) -> list[Candidate]:
    """Find several models, each once, and read their configs and tokenizers.

    A model is named by the last part of its path, or by its hub id; models that would share a name get their paths.

    Args:
        models: Folders or hub ids.
        trust_remote_code: Allow Python code of their own.
        stock_class: Allow it to tokenizers only.

    Raises:
        CheckpointError: A model is missing, or has no readable config or tokenizer.
    """
    register()
    opened = {str(model): _open(model, trust_remote_code, stock_class) for model in models}
    names = [_short_name(path) for path in opened]
    return [
        Candidate(name if names.count(name) == 1 else path, path, *parts)
        for name, (path, parts) in zip(names, opened.items(), strict=True)
    ]


def _short_name(path: str) -> str:
    folder = Path(path).expanduser()
    return folder.resolve().name if folder.is_dir() else path


def _open(
    model: str | Path, trust_remote_code: bool, stock_class: bool
) -> tuple[Path, PreTrainedConfig, PreTrainedTokenizerBase]:
    if isinstance(model, Path) and not model.expanduser().exists():
        raise CheckpointError(Problem(str(model), "a model folder", "nothing at this path", "Check the path."))
    folder = find_model(str(model)).path
    if not (folder / "config.json").is_file():
        fix = "Give the folder that holds config.json, the weights and the tokenizer."
        raise CheckpointError(Problem(str(model), "a model folder with config.json", "a folder without it", fix))
    trust = trust_remote_code and not stock_class
    read_config = partial(AutoConfig.from_pretrained, folder, trust_remote_code=trust, local_files_only=True)
    config = _load(model, "a readable config.json", read_config)
    options: dict[str, Any] = {"config": config} if stock_class else {}
    options |= {"trust_remote_code": trust_remote_code, "local_files_only": True}
    fix = "Save the tokenizer beside the weights (tokenizer.json, tokenizer_config.json)."
    tokenizer = _load(model, "a tokenizer", lambda: AutoTokenizer.from_pretrained(folder, **options), fix)
    return folder, config, tokenizer


def load_model(
    candidate: Candidate, *, dtype: str, trust_remote_code: bool, device: torch.device = CPU
) -> PreTrainedModel:
    """Load the weights with `AutoModelForCausalLM.from_pretrained`, in evaluation mode.

    Args:
        candidate: The model.
        dtype: A key of DTYPES.
        trust_remote_code: Allow the model's own Python code.
        device: Where the model is put.

    Raises:
        CheckpointError: The weights cannot be read, or lack tensors, which transformers would fill with random
            numbers after a mere warning.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    options |= {"dtype": DTYPES[dtype], "output_loading_info": True}
    from_pretrained: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    expected = "weights that transformers loads"
    model, info = _load(candidate.path, expected, partial(from_pretrained, candidate.folder, **options))
    missing = sorted(info["missing_keys"])
    if missing:
        found = f"{len(missing)} missing: {abbreviate(missing)}"
        fix = "Write the checkpoint again; transformers would fill these tensors with random numbers."
        raise CheckpointError(Problem(candidate.path, "every tensor of its architecture", found, fix))
    return model.eval().to(device)


def _load(model: str | Path, expected: str, load: Callable[[], Loaded], fix: str = "") -> Loaded:
    try:
        return load()
    except Exception as error:  # transformers raises many unrelated classes for unreadable files
        found = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
        fix = fix or "Check that transformers can load it; a model with its own code needs trust_remote_code."
        raise CheckpointError(Problem(str(model), expected, found, fix)) from error
