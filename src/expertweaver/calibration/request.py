"""What a recipe asks of the calibration text, and what the model allows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expertweaver.assets import shipped_calibration
from expertweaver.calibration.documents import Document
from expertweaver.dense.model import DenseModel
from expertweaver.recipe.schema import CalibrationSection

if TYPE_CHECKING:
    from expertweaver.calibration.samples import CalibrationSet


@dataclass(frozen=True)
class CalibrationRequest:
    """The recipe's section beside the model that it is for."""

    section: CalibrationSection
    dense: DenseModel

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the text comes from: what was given, or the text that ships."""
        return self.section.paths or (str(shipped_calibration()),)

    @property
    def sequence_length(self) -> int:
        """Tokens that a sample has at most, after the model's own limit."""
        return min(self.section.sequence_length, self.dense.sequence_limit[1])

    @property
    def max_tokens(self) -> int:
        """Tokens in all at most; how many there are is known when the text is read."""
        return self.section.num_samples * self.sequence_length

    def notes(self) -> list[str]:
        """Where it is not what was asked for, or nothing was."""
        notes = []
        if not self.section.paths:
            notes.append("no calibration text given: using the small English text that ships with expertweaver")
        if self.sequence_length < self.section.sequence_length:
            name = self.dense.sequence_limit[0]
            notes.append(f"sequence_length lowered to the model's {name} {self.sequence_length}")
        return notes

    def build(self, documents: Sequence[Document], tokenizer: Any) -> CalibrationSet:
        """Tokenize documents and pack them into rows.

        Raises:
            CalibrationError: Text that is too short, or does not fit the model's vocabulary.
        """
        from expertweaver.calibration.samples import build_calibration_set

        return build_calibration_set(
            documents,
            lambda text: list(tokenizer(text, verbose=False)["input_ids"]),
            num_samples=self.section.num_samples,
            sequence_length=self.sequence_length,
            vocab_size=self.dense.dims.vocab_size,
            seed=self.section.seed,
        )
