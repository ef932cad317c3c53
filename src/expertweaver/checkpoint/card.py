"""The model card: what a person who finds the converted model needs to know."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from expertweaver.formats.base import load_format

MAX_CARD_BYTES = 1 << 20
"""The header stands at the beginning of a card; a longer card is not read to its end."""

OWN_CODE = ", trust_remote_code=True"
OWN_CODE_WORDS = (
    "That runs the Python file of this folder; read it first. With ExpertWeaver installed, call "
    "`expertweaver.register()` and leave `trust_remote_code` out: the installed copy of the file is used then."
)
STOCK_WORDS = "Load it as bfloat16 or float32; in float16 the router's small weights underflow."


def model_card(manifest: Mapping[str, Any], source_folder: Path, quality: str | None) -> str:
    """Write the README.md of a converted model.

    Args:
        manifest: The conversion's record.
        source_folder: The dense model's folder; its card's licence is inherited.
        quality: A Markdown table of the measured quality, if it was measured.
    """
    budget, stored, source = manifest["budget"], manifest["stored"], manifest["source"]
    own_code = bool(load_format(manifest["format"]).capabilities.side_files)
    sizes = {name: value if isinstance(value, int) else "differs by layer" for name, value in stored.items()}
    sparsity = f"{100 * budget['mlp_sparsity']:g} %"
    parts = [
        f"---\n{yaml.safe_dump(card_metadata(manifest, source_folder), sort_keys=False, allow_unicode=True)}---",
        f"# {html.escape(Path(source['model']).name)} as a sparse Mixture-of-Experts",
        f"Converted from `{source['model']}` by [ExpertWeaver] {manifest['versions']['expertweaver']} with the method "
        f"`{manifest['method']}`, without training. Each token skips {sparsity} of every FFN (`mlp_sparsity` "
        f"{budget['mlp_sparsity']:g}); attention is untouched.",
        *_repaired(manifest),
        _table(
            {
                "`num_params`": f"{budget['num_params']:,} (dense: {budget['dense_num_params']:,})",
                "`num_active_params`": f"{budget['num_active_params']:,}",
                "routed experts / chosen per token": f"{sizes['num_experts']} / {sizes['num_experts_per_tok']}",
                "shared experts": f"{sizes['n_shared_experts']}",
                "expert width": f"{sizes['moe_intermediate_size']} neurons",
                "calibration tokens": f"{manifest['calibration']['num_tokens']:,} from "
                + ", ".join(manifest["calibration"]["domains"]),
            }
        ),
        "The token embeddings and the output head are stored separately, so `num_params` counts both.",
        "## Use",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto"{OWN_CODE if own_code else ""})\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n```',
        OWN_CODE_WORDS if own_code else STOCK_WORDS,
        "## Quality",
        quality or "Not measured. Run `expertweaver evaluate` on text of your own before you rely on it.",
        "## Record",
        "The folder `expertweaver/` holds the recipe, the manifest (with hashes of all files), the neurons of every "
        "expert and a report.",
    ]
    return "\n\n".join(parts) + "\n"


def _repaired(manifest: Mapping[str, Any]) -> list[str]:
    """What was done to the weights beyond sorting them, if anything."""
    changes = [layer["measures"].get("down_change") for layer in manifest.get("layers", ())]
    moved = [change for change in changes if change]
    if not moved:
        return []
    return [
        f"The `down_proj` of {len(moved)} of {len(changes)} layers was refitted by least squares on the calibration "
        f"text, so that the experts that run absorb what the others would have added; it moved by {min(moved):.0%} to "
        f"{max(moved):.0%} of its norm. All other weights are the source's."
    ]


def card_metadata(manifest: Mapping[str, Any], source_folder: Path) -> dict[str, Any]:
    """The card's YAML header in the hub's terms."""
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    metadata["tags"] = ["mixture-of-experts", "expertweaver", manifest["format"]]
    model = str(manifest["source"]["model"]).split("@")[0]
    on_hub = manifest["source"]["revision"] is not None
    metadata["base_model"] = model if on_hub else Path(model).name
    inherited = inherited_metadata(source_folder)
    metadata |= {key: inherited[key] for key in ("license", "license_name", "license_link") if key in inherited}
    return metadata


def inherited_metadata(source_folder: Path) -> dict[str, Any]:
    """The YAML header of the source's own card; empty where there is none."""
    card = source_folder / "README.md"
    if not card.is_file():
        return {}
    with card.open("rb") as stream:
        text = stream.read(MAX_CARD_BYTES).decode("utf-8", errors="replace").replace("\r\n", "\n")
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        header = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}  # a broken header of a foreign card inherits nothing; the card then says no licence
    return header if isinstance(header, dict) else {}


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
