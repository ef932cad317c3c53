"""What an evaluation measured, as plain values that turn into JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ALL = "all"  # the domain that stands for every document


@dataclass(frozen=True)
class DomainQuality:
    """Quality on the documents of one domain.

    Losses are nats per predicted token, and `num_tokens` counts those; the interval is the 95 % bootstrap interval
    over documents (None with fewer than ten documents: too few to resample). `kl_to_dense` is the mean over tokens
    of KL(dense || model) in nats, `top1_agreement` the share of tokens on which both models rank the same token
    first; both are None without a dense model to compare with.
    """

    domain: str
    num_documents: int
    num_tokens: int
    nats_per_token: float
    interval: tuple[float, float] | None
    perplexity: float
    kl_to_dense: float | None
    top1_agreement: float | None


@dataclass(frozen=True)
class RoutingUsage:
    """How often each routed expert was chosen, per domain: `share[domain][layer][expert]`, 0 to 1.

    A share is the fraction of the domain's tokens that the expert served, so a layer's shares add up to K; the
    domain 'all' holds every token. Layers are the sparse ones, in order; `num_experts_per_tok` is a list where each
    has its own.
    """

    num_experts_per_tok: int | list[int]
    share: dict[str, list[list[float]]]

    def chosen(self, layer: int) -> int:
        """K of a sparse layer."""
        return (
            self.num_experts_per_tok if isinstance(self.num_experts_per_tok, int) else self.num_experts_per_tok[layer]
        )


@dataclass(frozen=True)
class ModelQuality:
    """One model's row of the table. `domains` ends with the entry 'all', over all tokens."""

    name: str
    path: str
    num_params: int
    num_active_params: int
    domains: tuple[DomainQuality, ...]
    routing: RoutingUsage | None

    def quality(self, domain: str) -> DomainQuality:
        """Look up one domain's entry."""
        return next(entry for entry in self.domains if entry.domain == domain)


@dataclass(frozen=True)
class Evaluation:
    """Several models on the same text; the dense reference, where there is one, comes first.

    `context` is the window length in tokens: losses of different window lengths do not compare.
    """

    text: tuple[str, ...]
    models: tuple[ModelQuality, ...]
    has_dense: bool
    lm_eval: dict[str, Any] | None = None
    context: int | None = None
    max_tokens_per_document: int | None = None
    dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The whole result as JSON values."""
        return asdict(self)
