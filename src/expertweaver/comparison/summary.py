"""From cells to the table: every method at every budget in every domain, over dense and beside the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from expertweaver.comparison.paired import Difference, paired_difference
from expertweaver.comparison.results import Cell, Comparison
from expertweaver.evaluation.results import ALL
from expertweaver.evaluation.scoring import Score

IN_DOMAIN = "in-domain"
OUT_OF_DOMAIN = "out-of-domain"
SUMS = (ALL, IN_DOMAIN, OUT_OF_DOMAIN)
"""Domains of the table that stand for several domains of the text."""

MIN_SEEDS_FOR_STD = 3


@dataclass(frozen=True)
class Standing:
    """One method at one budget in one domain; losses are nats per predicted token, means are over seeds.

    Attributes:
        method: The label.
        mlp_sparsity: The budget.
        domain: A domain of the text, 'all', 'in-domain' or 'out-of-domain'.
        num_documents: Documents of the domain.
        num_tokens: Predicted tokens in them.
        num_seeds: Runs that the means are over.
        dense_nats_per_token: Loss of the dense model.
        nats_per_token: Loss of the method.
        over_dense: Their difference.
        over_dense_interval: Its 95 % interval over documents, paired; None with fewer than ten.
        lowest: Smallest difference to dense of any seed; None with one seed.
        highest: Largest; None likewise.
        std: Standard deviation of the difference over seeds; None with fewer than three.
        kl_to_dense: Mean KL(dense || method) in nats.
        top1_agreement: Share of tokens on which both rank the same token first.
        to_reference: Difference to the reference method; None for itself.
        to_reference_interval: Its 95 % interval over documents, paired; None for itself and with fewer than ten.
    """

    method: str
    mlp_sparsity: float
    domain: str
    num_documents: int
    num_tokens: int
    num_seeds: int
    dense_nats_per_token: float
    nats_per_token: float
    over_dense: float
    over_dense_interval: tuple[float, float] | None
    lowest: float | None
    highest: float | None
    std: float | None
    kl_to_dense: float | None
    top1_agreement: float | None
    to_reference: float | None
    to_reference_interval: tuple[float, float] | None


def table_domains(comparison: Comparison) -> dict[str, list[int]]:
    """Places of the documents of every domain of the table: the sums first, then the domains of the text.

    'in-domain' and 'out-of-domain' are there where the text has domains of both kinds. A domain is inside where the
    calibration tokens hold one of the same name.
    """
    names = list(dict.fromkeys(comparison.domains))
    inside = [name for name in names if name in comparison.calibration.domains]
    outside = [name for name in names if name not in inside]
    groups = {ALL: names}
    if inside and outside:
        groups |= {IN_DOMAIN: inside, OUT_OF_DOMAIN: outside}
    groups |= {name: [name] for name in names}
    return {
        group: [place for place, domain in enumerate(comparison.domains) if domain in members]
        for group, members in groups.items()
    }


def summarize(comparison: Comparison) -> list[Standing]:
    """Every row of the table: budgets, then methods, then domains; combinations without a cell are left out."""
    return [
        _standing(comparison, label, mlp_sparsity, domain, documents)
        for mlp_sparsity in comparison.mlp_sparsities
        for label in (method.label for method in comparison.methods)
        if comparison.cells_of(label, mlp_sparsity)
        for domain, documents in table_domains(comparison).items()
    ]


def nats_per_token(scores: Sequence[Score], documents: Sequence[int]) -> float:
    """Mean loss over the predicted tokens of some documents."""
    return sum(scores[d].nats for d in documents) / num_tokens(scores, documents)


def num_tokens(scores: Sequence[Score], documents: Sequence[int]) -> int:
    """Predicted tokens of some documents."""
    return sum(scores[d].num_tokens for d in documents)


def kl_per_token(scores: Sequence[Score], documents: Sequence[int]) -> float:
    """Mean distance to the dense model over the predicted tokens of some documents."""
    return sum(scores[d].kl_to_dense or 0.0 for d in documents) / num_tokens(scores, documents)


def agreement(scores: Sequence[Score], documents: Sequence[int]) -> float:
    """Share of the predicted tokens of some documents whose first choice is the dense model's."""
    return sum(scores[d].num_agreed or 0 for d in documents) / num_tokens(scores, documents)


def _standing(comparison: Comparison, label: str, mlp_sparsity: float, domain: str, documents: list[int]) -> Standing:
    cells = comparison.cells_of(label, mlp_sparsity)
    runs = [cell.documents for cell in cells]
    dense = nats_per_token(comparison.dense, documents)
    over_dense = paired_difference(runs, [comparison.dense], documents)
    each = [nats_per_token(run, documents) - dense for run in runs]
    to_reference = _to_reference(comparison, cells, documents)
    return Standing(
        method=label,
        mlp_sparsity=mlp_sparsity,
        domain=domain,
        num_documents=len(documents),
        num_tokens=num_tokens(comparison.dense, documents),
        num_seeds=len(runs),
        dense_nats_per_token=dense,
        nats_per_token=dense + over_dense.nats_per_token,
        over_dense=over_dense.nats_per_token,
        over_dense_interval=over_dense.interval,
        lowest=min(each) if len(each) > 1 else None,
        highest=max(each) if len(each) > 1 else None,
        std=stdev(each) if len(each) >= MIN_SEEDS_FOR_STD else None,
        kl_to_dense=sum(kl_per_token(run, documents) for run in runs) / len(runs),
        top1_agreement=sum(agreement(run, documents) for run in runs) / len(runs),
        to_reference=to_reference.nats_per_token if to_reference else None,
        to_reference_interval=to_reference.interval if to_reference else None,
    )


def _to_reference(comparison: Comparison, cells: Sequence[Cell], documents: list[int]) -> Difference | None:
    reference = comparison.cells_of(comparison.reference, cells[0].mlp_sparsity)
    if cells[0].method == comparison.reference or not reference:
        return None
    return paired_difference([cell.documents for cell in cells], [cell.documents for cell in reference], documents)
