"""What the package ships: a small dense model, calibration text and held-out text, each with its licence."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def shipped_model() -> Path:
    """A 7M-parameter Llama trained on six domains of text."""
    return FOLDER / "models" / "mix7m"


def shipped_calibration() -> Path:
    """Calibration text of four domains, one file each."""
    return FOLDER / "calibration"


def shipped_heldout() -> Path:
    """Evaluation text of the same domains that the model never saw, disjoint from the calibration text."""
    return FOLDER / "heldout.jsonl"
