"""One row a method, budget, seed and domain, as comma separated values."""

from __future__ import annotations

import csv
import io

from expertweaver.comparison.results import Comparison
from expertweaver.comparison.summary import agreement, kl_per_token, nats_per_token, num_tokens, table_domains

COLUMNS = (
    "method",
    "mlp_sparsity",
    "seed",
    "domain",
    "num_documents",
    "num_tokens",
    "dense_nats_per_token",
    "nats_per_token",
    "over_dense",
    "kl_to_dense",
    "top1_agreement",
    "reached_mlp_sparsity",
    "seconds",
    "peak_memory",
    "is_oracle",
    "beyond_stock",
)


def comparison_csv(comparison: Comparison) -> str:
    """Write every cell in every domain of the table; what is not known is left empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    methods = {method.label: method for method in comparison.methods}
    for cell in comparison.cells:
        method = methods[cell.method]
        for domain, documents in table_domains(comparison).items():
            dense = nats_per_token(comparison.dense, documents)
            loss = nats_per_token(cell.documents, documents)
            measured = (kl_per_token(cell.documents, documents), agreement(cell.documents, documents))
            size = (len(documents), num_tokens(comparison.dense, documents))
            head = (cell.method, cell.mlp_sparsity, cell.seed, domain, *size, dense, loss, loss - dense, *measured)
            writer.writerow(
                (
                    *head,
                    cell.reached_mlp_sparsity,
                    cell.seconds,
                    cell.peak_memory,
                    method.is_oracle,
                    method.beyond_stock,
                )
            )
    return stream.getvalue()
