"""Comparisons made up from a few numbers, and requests on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.families import save_text, save_variant

from expertweaver.comparison.results import Calibration, Cell, ComparedMethod, Comparison
from expertweaver.evaluation.scoring import Score

NUM_SLICES = 8
SETTINGS = {"calibration.sequence_length": 16, "calibration.num_samples": 16}
DENSE_NATS = 2.0


@dataclass(frozen=True)
class Ground:
    """A tiny dense model with text to fit on and other text to judge on."""

    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "dense"

    @property
    def fitted(self) -> str:
        return str(self.folder / "fitted.jsonl")

    @property
    def judged(self) -> str:
        return str(self.folder / "judged.jsonl")

    @property
    def out(self) -> Path:
        return self.folder / "table"

    def request(self, **changes: Any) -> dict[str, Any]:
        """Arguments of `compare` that work."""
        arguments: dict[str, Any] = {
            "methods": "expertweaver,static",
            "mlp_sparsities": [0.25, 0.5],
            "num_slices": NUM_SLICES,
            "seeds": 2,
            "calibration": [self.fitted],
            "text": [self.judged],
            "out": self.out,
            "settings": SETTINGS,
        }
        return arguments | changes


def make_ground(folder: Path) -> Ground:
    """Save the model and both texts."""
    save_variant("llama", folder / "dense")
    save_text(folder / "fitted.jsonl", seed=0)
    save_text(folder / "judged.jsonl", seed=1, documents=24)
    return Ground(folder)


def method(label: str, **changes: Any) -> ComparedMethod:
    """A method of a made-up comparison."""
    values: dict[str, Any] = {"options": {}, "is_added": False, "is_oracle": False, "beyond_stock": None}
    return ComparedMethod(label=label, name=label.partition(":")[0], **(values | changes))


def scores(losses: Sequence[float], num_tokens: int = 10) -> tuple[Score, ...]:
    """Scores of documents with these losses in nats per token."""
    return tuple(Score(num_tokens, loss * num_tokens, 0.5 * num_tokens, num_tokens // 2) for loss in losses)


def cell(label: str, mlp_sparsity: float, losses: Sequence[float], seed: int | None = None) -> Cell:
    """A cell with these losses."""
    return Cell(label, mlp_sparsity, seed, mlp_sparsity, 1.5, 2_000_000, scores(losses))


def comparison(
    methods: Sequence[ComparedMethod], cells: Sequence[Cell], domains: Sequence[str], **changes: Any
) -> Comparison:
    """A comparison whose dense model loses 2 nats on every token."""
    values: dict[str, Any] = {
        "source": "models/tiny",
        "methods": tuple(methods),
        "mlp_sparsities": tuple(sorted({c.mlp_sparsity for c in cells})),
        "num_slices": NUM_SLICES,
        "calibration": Calibration(("fit.jsonl",), {"a": {"num_samples": 3, "num_tokens": 90}}, 90, "f00d", 2.5),
        "text": ("judge.jsonl",),
        "domains": tuple(domains),
        "dense": scores([DENSE_NATS] * len(domains)),
        "cells": tuple(cells),
        "num_dropped": 0,
        "context": 128,
        "max_tokens_per_document": None,
        "dtype": "float32",
        "device": "cpu",
        "versions": {"expertweaver": "0"},
        "notes": (),
    }
    return Comparison(**(values | changes))
