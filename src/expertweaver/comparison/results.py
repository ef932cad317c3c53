"""What a comparison measured, as plain values that turn into JSON and back; everything else is computed from these."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from expertweaver.evaluation.scoring import Score

if TYPE_CHECKING:
    from expertweaver.comparison.summary import Standing


@dataclass(frozen=True)
class ComparedMethod:
    """One method of the table.

    Attributes:
        label: As given to `--methods`.
        name: The registered name.
        options: Every option with its value.
        is_added: A control that was not asked for.
        is_oracle: It looks at what it would have to skip: a bound, not a way to convert.
        beyond_stock: Why no stock checkpoint can hold it, in words; None if one can.
    """

    label: str
    name: str
    options: dict[str, Any]
    is_added: bool
    is_oracle: bool
    beyond_stock: str | None


@dataclass(frozen=True)
class Cell:
    """One method at one budget with one seed.

    Attributes:
        method: The label.
        mlp_sparsity: As asked for.
        seed: None where the method draws no random numbers, or was given a seed as an option.
        reached_mlp_sparsity: Share of neurons that did not run, over all layers and up to 512 calibration tokens.
        seconds: Time of the design (and repair) of all layers; the calibration pass, which all share, not counted.
        peak_memory: Largest resident memory of the whole process in bytes while the layers were designed, the loaded
            dense model included; None where the system does not tell.
        documents: Score of each document of the text, in order.
    """

    method: str
    mlp_sparsity: float
    seed: int | None
    reached_mlp_sparsity: float
    seconds: float
    peak_memory: int | None
    documents: tuple[Score, ...]

    @property
    def key(self) -> tuple[str, float, int | None]:
        """What tells cells apart."""
        return self.method, self.mlp_sparsity, self.seed


@dataclass(frozen=True)
class Calibration:
    """The tokens that every method was fitted on.

    Attributes:
        paths: Where the text came from; empty for the text that ships.
        domains: Samples and tokens of each domain.
        num_tokens: Valid tokens.
        fingerprint: SHA-256 over tokens, packing and domains.
        seconds: Time of the pass that all methods share; None if it was stopped in between.
    """

    paths: tuple[str, ...]
    domains: dict[str, dict[str, int]]
    num_tokens: int
    fingerprint: str
    seconds: float | None


@dataclass(frozen=True)
class Comparison:
    """Several methods on one dense model, at the same budgets, on the same text.

    Attributes:
        source: The dense model.
        methods: In the order of the table; the first is the reference that others are compared with.
        mlp_sparsities: The budgets, ascending.
        num_slices: Slices of an FFN.
        calibration: What the methods were fitted on.
        text: Paths of the evaluation text.
        domains: Domain of each document.
        dense: The dense model's score of each document.
        cells: One a method, budget and seed.
        num_dropped: Documents dropped since they share a span of words with the calibration text.
        context: Window length in tokens.
        max_tokens_per_document: Longer documents were cut to this; None for no cut.
        dtype: What the dense model was loaded as; replaced FFNs always compute in float32.
        device: Where passes, repairs and judging were computed: cpu or cuda.
        versions: Of the packages that compute.
        notes: What the reader should know.
    """

    source: str
    methods: tuple[ComparedMethod, ...]
    mlp_sparsities: tuple[float, ...]
    num_slices: int
    calibration: Calibration
    text: tuple[str, ...]
    domains: tuple[str, ...]
    dense: tuple[Score, ...]
    cells: tuple[Cell, ...]
    num_dropped: int
    context: int
    max_tokens_per_document: int | None
    dtype: str
    device: str
    versions: dict[str, str]
    notes: tuple[str, ...]

    @property
    def reference(self) -> str:
        """Label of the method that the others are compared with."""
        return self.methods[0].label

    def cells_of(self, method: str, mlp_sparsity: float) -> list[Cell]:
        """The seeds of one method at one budget."""
        return [cell for cell in self.cells if (cell.method, cell.mlp_sparsity) == (method, mlp_sparsity)]

    @cached_property
    def table(self) -> tuple[Standing, ...]:
        """Every row of the table; its bootstrap intervals take a while, and every reading of it wants them."""
        from expertweaver.comparison.summary import summarize

        return tuple(summarize(self))

    def to_json(self) -> dict[str, Any]:
        """The whole result as JSON values, the table and its intervals included."""
        return {**asdict(self), "table": [asdict(standing) for standing in self.table]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Comparison:
        """The result from the values of `to_json`; the table is computed again."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name != "table"
        }
        calibration: dict[str, Any] = values["calibration"] | {"paths": tuple(values["calibration"]["paths"])}
        fields["methods"] = tuple(ComparedMethod(**method) for method in values["methods"])
        fields["calibration"] = Calibration(**calibration)
        fields["dense"] = tuple(Score(**score) for score in values["dense"])
        fields["cells"] = tuple(cell_from_json(cell) for cell in values["cells"])
        return cls(**fields)


def cell_from_json(values: dict[str, Any]) -> Cell:
    """A cell from the values of `asdict`."""
    fields: dict[str, Any] = values | {"documents": tuple(Score(**score) for score in values["documents"])}
    return Cell(**fields)
