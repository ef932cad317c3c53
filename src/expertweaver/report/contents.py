"""What a report is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from expertweaver.evaluation.results import Evaluation


@dataclass(frozen=True)
class Report:
    """Everything one report shows; a part that is missing is left out of the page.

    `conversions` are the manifests of the converted checkpoints, as read from JSON. `speed` maps a model's name
    to `decode_tokens_per_second`, `prefill_tokens_per_second`, times over the dense model's
    (`decode_ratio`, `prefill_ratio`), the `ideal_ratio` that the skipped arithmetic allows, and the `setup` it was
    measured in.
    """

    title: str
    conversions: tuple[dict[str, Any], ...] = ()
    evaluation: Evaluation | None = None
    speed: dict[str, dict[str, Any]] | None = None
    notes: tuple[str, ...] = ()
