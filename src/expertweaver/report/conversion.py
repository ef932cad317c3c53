"""The part of a manifest that a report shows, checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expertweaver.errors import CheckpointError, Problem

NUM_CV_QUANTILES = 21
NUM_FREQUENCY_QUANTILES = 101

_CvQuantiles = Annotated[tuple[float, ...], Field(min_length=NUM_CV_QUANTILES, max_length=NUM_CV_QUANTILES)]
_FrequencyQuantiles = Annotated[
    tuple[float, ...], Field(min_length=NUM_FREQUENCY_QUANTILES, max_length=NUM_FREQUENCY_QUANTILES)
]


class _Part(BaseModel):
    """A frozen part of a manifest; keys that a report does not show are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Source(_Part):
    """The dense model that was converted."""

    model: str
    revision: str | None = None
    family: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int


class Budget(_Part):
    """What runs per token, and out of how much."""

    mlp_sparsity: float
    num_slices: int
    slice_width: int
    active_slices: int
    num_params: int
    num_active_params: int
    dense_num_params: int


class Stored(_Part):
    """The budget as the target format writes it: `num_experts` counts routed experts only; a list goes by layer."""

    num_experts: int | tuple[int, ...]
    num_experts_per_tok: int | tuple[int, ...]
    n_shared_experts: int | float | tuple[int | float, ...]
    moe_intermediate_size: int | tuple[int | tuple[int, ...], ...]


class CalibrationDomain(_Part):
    """How much text of one domain was used."""

    num_samples: int
    num_tokens: int


class Calibration(_Part):
    """The text whose activations decided."""

    domains: dict[str, CalibrationDomain]
    num_tokens: int
    fingerprint: str | None = None
    shipped: bool | None = None


class CvSpread(_Part):
    """Coefficient of variation of the neurons of one layer: quantiles at 0, 0.05, ..., 1."""

    tau: float
    quantiles: _CvQuantiles
    mean: float | None = None


class LayerPlan(_Part):
    """How one layer's slices were divided, and the statistics that decided it."""

    layer: int
    num_shared: int | float
    num_routed: int | float
    num_active_routed: int | float
    alpha: float | None = None
    r: float | None = None
    clip: str | None = None
    cv: CvSpread | None = None
    activation_frequency: _FrequencyQuantiles | None = None
    router_scale_log2: float | None = None
    max_abs_router_logit: float | None = None

    @property
    def num_skipped(self) -> float:
        """Slices that do not run for a token."""
        return self.num_routed - self.num_active_routed

    @property
    def num_slices(self) -> float:
        """All slices of the layer."""
        return self.num_shared + self.num_routed


class Conversion(_Part):
    """One converted checkpoint, as its manifest describes it."""

    recipe: dict[str, Any]
    source: Source
    method: str
    format: str
    budget: Budget
    stored: Stored
    layers: Annotated[tuple[LayerPlan, ...], Field(min_length=1)]
    calibration: Calibration | None = None
    warnings: tuple[str, ...] = ()
    name: str | None = None


def read_conversions(manifests: Sequence[dict[str, Any]]) -> tuple[Conversion, ...]:
    """Check manifests and keep what a report shows.

    Raises:
        CheckpointError: A required key is missing or holds something else; lists all such places.
    """
    conversions: list[Conversion] = []
    problems: list[Problem] = []
    for index, manifest in enumerate(manifests):
        try:
            conversions.append(Conversion.model_validate(manifest))
        except ValidationError as error:
            problems += _problems(index, error)
    if problems:
        raise CheckpointError(*problems)
    return tuple(conversions)


def _problems(index: int, error: ValidationError) -> list[Problem]:
    fix = "Write the report from the manifest.json of a checkpoint that `expertweaver convert` wrote."
    problems = []
    for detail in error.errors(include_url=False):
        where = ".".join((f"conversions[{index}]", *map(str, detail["loc"])))
        missing = detail["type"] == "missing"
        found = "nothing" if missing else repr(detail["input"])[:80]
        problems.append(Problem(where, "a value" if missing else detail["msg"], found, fix))
    return problems


def conversion_labels(conversions: Sequence[Conversion]) -> tuple[str, ...]:
    """Name every conversion: its own name if it has one, else its budget; numbered where two would be alike."""
    labels: list[str] = []
    for conversion in conversions:
        label = conversion.name or f"mlp_sparsity {conversion.budget.mlp_sparsity * 100:g}\u00a0%"
        same = sum(known == label or known.startswith(f"{label} #") for known in labels)
        labels.append(f"{label} #{same + 1}" if same else label)
    return tuple(labels)
