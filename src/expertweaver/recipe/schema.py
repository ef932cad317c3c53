"""The recipe: everything that decides what a conversion computes, as frozen validated sections.

Host matters (where the output goes, whether it may replace something, the device, progress) are arguments of the verbs,
not part of the recipe. The same recipe gives the same bytes on the same machine with as many threads; elsewhere sums
are rounded otherwise, and the result differs within the tolerance of docs/determinism.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from expertweaver.modeling.values import Need
from expertweaver.registry import load_module, module_names, require_known

if TYPE_CHECKING:
    from expertweaver.partition.budget import SliceBudget


class Section(BaseModel):
    """A frozen part of a recipe that knows no key but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Small enough that a generator takes it, also after a layer's number was mixed in."""


class SourceSection(Section):
    """The dense model."""

    model: str = Field(min_length=1, description="Local folder, or hub id with an optional @revision.")
    trust_remote_code: bool = Field(
        default=False,
        description="Allow the tokenizer's own code to run while calibrating. Model code is never run.",
    )


class CalibrationSection(Section):
    """The text whose activations decide."""

    paths: tuple[str, ...] = Field(
        default=(), description="Files, folders or hub data sets; empty: the text that ships with the package."
    )
    num_samples: int = Field(default=240, ge=2, description="Samples in all, shared evenly by the domains.")
    sequence_length: int = Field(
        default=512, ge=8, description="Tokens a sample has at most; a longer document gives several."
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Arithmetic of the calibration pass; bfloat16 is faster where the processor has it.",
    )
    seed: Seed = Field(default=0, description="Which samples are drawn where there are more than num_samples.")


class MethodSection(Section):
    """What every method's own section derives from: `name` chooses the method, the rest are its options."""

    name: str
    repair: bool = Field(default=False, description="Repair down_proj by least squares, layer after layer.")

    @property
    def num_probes(self) -> int:
        """Calibration tokens whose FFN inputs are kept for `design`; a method that fits on them asks for more."""
        return 2048

    @property
    def reads_traffic(self) -> bool:
        """Whether `design` is given a sample of its layer's traffic in the model converted so far, not statistics."""
        return False

    def num_cluster_tokens(self, intermediate_size: int) -> int:
        """Tokens of its layer's traffic that `design` is given, at most; unused unless `reads_traffic`."""
        return 8192

    @property
    def is_sequential(self) -> bool:
        """Whether layers are converted one after the other, each on what the earlier ones now put out."""
        return self.reads_traffic or self.repair

    @property
    def gradient_tokens(self) -> int:
        """Calibration tokens that gradients are taken on, at most; unused unless `needs_gradients`."""
        return 16384

    @property
    def needs_gradients(self) -> bool:
        """Whether the statistics need gradients of the loss on the calibration text."""
        return False

    @property
    def is_oracle(self) -> bool:
        """Whether the method looks at what it would have to skip: a bound for others, not a way to convert."""
        return False

    @property
    def needs(self) -> tuple[Need, ...]:
        """What of the design no stock format can hold; a format says which of it it holds."""
        return ()

    @property
    def beyond_stock(self) -> str | None:
        """The needs in words; None for a design that stock formats hold."""
        return " and ".join(self.needs) or None

    @property
    def stock_settings(self) -> str:
        """What to set instead where a format cannot hold the design."""
        return "method.name=weave"

    @property
    def needs_selection_bias(self) -> bool:
        """Whether the router scores experts with a bias, which some formats cannot hold."""
        return False

    @property
    def bias_setting(self) -> str | None:
        """What to set for a router without a bias; None where nothing gives one."""
        return None

    def fixed_share(self, budget: SliceBudget) -> int | None:
        """Shared slices of every layer where the options fix them; None where layers may share unlike."""
        return None

    @property
    def share_setting(self) -> str | None:
        """The key that fixes the shared slices; None where none does."""
        return None

    def extra_memory(self, *, hidden_size: int, intermediate_size: int, num_tokens: int) -> int:
        """Bytes that designing a layer needs beyond its weights and statistics."""
        return 0

    def design_products(self, *, hidden_size: int, intermediate_size: int, num_slices: int, num_tokens: int) -> int:
        """Multiplications in float32 that designing a layer takes, beyond what all methods do; for the plan's time."""
        return 0


class BudgetSection(Section):
    """How much of the FFN runs per token, and in which portions."""

    mlp_sparsity: float = Field(default=0.25, ge=0, lt=1, description="Share of FFN neurons not run per token.")
    num_slices: Annotated[int, Field(ge=2)] | Literal["auto"] = Field(
        default="auto",
        description="Equal slices an FFN is divided into; auto: near 64, of widths that engines' kernels are made for.",
    )


DEFAULT_METHOD = "weave"


AUTO_FORMAT = "auto"


def _known_format(name: str) -> str:
    require_known("output.format", name, [AUTO_FORMAT, *module_names("formats")])
    return name


class OutputSection(Section):
    """The form of the converted checkpoint."""

    format: Annotated[str, AfterValidator(_known_format)] = Field(
        default="glm4_moe",
        description="Target architecture; see `expertweaver ls formats`. auto: one that holds the pair exactly.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type of the written weights; auto keeps the source's."
    )


class EvaluateSection(Section):
    """Text to measure the result on, right after the conversion."""

    text: tuple[str, ...] = Field(default=(), description="Files, folders or hub data sets; empty: no evaluation.")
    max_tokens_per_document: int | None = Field(default=None, ge=8, description="Cut longer documents to this.")
    context: int | None = Field(default=None, ge=8, description="Window length; none: 2048 or the model's own limit.")


def _method_section(value: Any) -> Any:
    if isinstance(value, MethodSection):
        return value
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict):
        raise ValueError("a method is a name or a mapping with the key 'name'")
    options = {"name": DEFAULT_METHOD, **options}
    require_known("method.name", str(options["name"]), module_names("methods"))
    return method_options(str(options["name"])).model_validate(options)


def method_options(name: str) -> type[MethodSection]:
    """The section class of one method."""
    return load_module("methods", name).Options


class Recipe(Section):
    """A complete request; see docs/recipe.md for every key."""

    source: SourceSection
    calibration: CalibrationSection = CalibrationSection()
    method: Annotated[SerializeAsAny[MethodSection], BeforeValidator(_method_section)] = Field(
        default_factory=lambda: _method_section({})
    )
    budget: BudgetSection = BudgetSection()
    output: OutputSection = OutputSection()
    evaluate: EvaluateSection = EvaluateSection()

    def to_values(self) -> dict[str, Any]:
        """The recipe as JSON values, every default written out."""
        return self.model_dump(mode="json")
