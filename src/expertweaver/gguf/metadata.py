"""What the file says of itself: name, licence, where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expertweaver.checkpoint.card import inherited_metadata
from expertweaver.gguf.architectures.base import KeyValues, Value
from expertweaver.gguf.encoding import FILE_TYPES, Quantization

QUANTIZATION_VERSION = 2
"""Of llama.cpp's block layouts."""


def metadata(folder: Path, manifest: Mapping[str, Any], wanted: Quantization, kept: Sequence[str]) -> KeyValues:
    """The keys under `general.` and `expertweaver.`.

    Args:
        folder: The converted model; its card says the licence.
        manifest: The conversion's record.
        wanted: The type of the weight matrices.
        kept: Names of matrices that stayed float16 because Q8_0's blocks do not fit.
    """
    card, source = inherited_metadata(folder), manifest["source"]
    keys: dict[str, Value] = {
        "general.type": "model",
        "general.name": folder.resolve().name,
        "general.file_type": FILE_TYPES[wanted],
        **({"general.quantization_version": QUANTIZATION_VERSION} if wanted is Quantization.Q8_0 else {}),
        **{f"general.{key.replace('_', '.')}": str(card[key]) for key in _LICENCE if card.get(key)},
        "general.base_model.count": 1,
        "general.base_model.0.name": Path(str(source["model"]).split("@")[0]).name,
    }
    if source["revision"] is not None:
        model = str(source["model"]).split("@")[0]
        keys["general.base_model.0.repo_url"] = f"https://huggingface.co/{model}"
        keys["general.base_model.0.version"] = str(source["revision"])
    keys |= {
        "expertweaver.version": manifest["versions"]["expertweaver"],
        "expertweaver.method": manifest["method"],
        "expertweaver.mlp_sparsity": float(manifest["budget"]["mlp_sparsity"]),
        "expertweaver.source": Path(str(source["model"])).name if source["revision"] is None else str(source["model"]),
        "expertweaver.kept_f16": list(kept),
    }
    return keys


_LICENCE = ("license", "license_name", "license_link")
