"""A trusted tokenizer may run its own code, and nothing else of the folder does."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models import edit_config, edit_json, tiny_llama
from transformers import PreTrainedTokenizerBase

from expertweaver.calibration.tokenizer import load_tokenizer

TOKENIZER = (
    "from transformers import PreTrainedTokenizerFast\n\n\nclass Own(PreTrainedTokenizerFast):\n    is_own = True\n"
)
BROKEN = "raise RuntimeError('code of the configuration was run')\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose tokenizer and configuration both name code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tiny_llama(tmp_path / "model")
    (model / "own_tokenizer.py").write_text(TOKENIZER, encoding="utf-8")
    (model / "own_config.py").write_text(BROKEN, encoding="utf-8")
    edit_config(model, auto_map={"AutoConfig": "own_config.Config"})
    edit_json(model / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own_tokenizer.Own"]})
    return model


@pytest.mark.parametrize("trusted", [True, False])
def test_only_the_code_of_a_trusted_tokenizer_runs(folder: Path, trusted: bool) -> None:
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder, trust_remote_code=trusted)
    assert getattr(tokenizer, "is_own", False) == trusted
    assert tokenizer("a")["input_ids"]
