"""The tokenizer of a model folder, with clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expertweaver.calibration.documents import RenderMessages
from expertweaver.errors import CheckpointError, Problem

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
EXPECTED = "a tokenizer (tokenizer.json, tokenizer.model or vocab.json)"
FIX = "Copy the tokenizer files of the model into the folder."


def require_tokenizer(folder: Path) -> None:
    """Check that a folder holds a tokenizer, without loading it.

    Raises:
        CheckpointError: It does not.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise CheckpointError(Problem(str(folder), EXPECTED, "none", FIX))


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load a model's tokenizer; of trusted code, only the tokenizer's own is run.

    Raises:
        CheckpointError: The folder has no tokenizer, or the files cannot be read.
    """
    require_tokenizer(folder)
    from transformers import AutoConfig, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        if trust_remote_code:  # it would look for the configuration by itself, and run that one's code
            options["config"] = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # foreign files, many error classes
        raise CheckpointError(Problem(str(folder), EXPECTED, f"{type(error).__name__}: {error}", FIX)) from error


def message_renderer(tokenizer: Any) -> RenderMessages | None:
    """Turn chat turns into text with the tokenizer's template; None where it has none.

    A begin-of-sequence token that the template writes and the tokenizer adds as well is kept once.
    """
    if not tokenizer.chat_template:
        return None
    bos = str(tokenizer.bos_token) if _adds_bos(tokenizer) else ""

    def render(messages: list[dict[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False)).removeprefix(bos)

    return render


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
