"""What a run found, as values and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any, Literal


@dataclass(frozen=True)
class Spread:
    """A median over rounds, with the first and third quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise the values of all rounds."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)


@dataclass(frozen=True)
class Measurement:
    """One case on one model.

    Attributes:
        case: Decoding or reading a prompt.
        batch: Sequences side by side.
        length: Tokens of the prompt.
        model: Its name.
        experts: How the experts were run, where the engine has several ways; None for a dense model.
        seconds: A decoding step of the whole batch, or the whole prompt.
        tokens_per_second: From the median, over all sequences.
        ratio: Time over the dense model's in the same round.
        ideal_ratio: What the ratio would be if time followed bytes (decoding) or operations (prompts).
        share_of_ideal: `ideal_ratio` over the measured one; 1 is all that skipping can give.
        distinct_experts: Routed experts that a layer touches in a decoding step; None for prompts and dense models.
        distinct_from: Whether that was measured, or is expected under uniform routing.
    """

    case: Literal["decode", "prefill"]
    batch: int
    length: int
    model: str
    experts: str | None
    seconds: Spread
    tokens_per_second: float
    ratio: Spread
    ideal_ratio: float
    share_of_ideal: float
    distinct_experts: float | None
    distinct_from: Literal["measured", "uniform"] | None


@dataclass(frozen=True)
class Benchmark:
    """All measurements of a run, and the whole set-up that they depend on.

    Attributes:
        setup: Engine, versions, threads, type, processor, lengths, and the sizes of both models.
        measurements: Case by case, the dense model's first.
    """

    setup: dict[str, Any]
    measurements: tuple[Measurement, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {"setup": self.setup, "measurements": [asdict(measured) for measured in self.measurements]}

    def of(self, case: str, *, batch: int = 1, length: int | None = None) -> list[Measurement]:
        """The measurements of one case, the dense model's first."""
        return [
            m
            for m in self.measurements
            if m.case == case and m.batch == batch and (length is None or m.length == length)
        ]
