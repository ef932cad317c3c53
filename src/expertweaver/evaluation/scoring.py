"""Next-token losses and distances of several models on the same documents, one window in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor
from transformers import PreTrainedModel

from expertweaver.errors import CheckpointError, Problem
from expertweaver.evaluation.results import RoutingUsage
from expertweaver.evaluation.routing import RoutingTally, tally_routing
from expertweaver.evaluation.tokens import TokenizedDocument
from expertweaver.progress import SILENT, Progress

CHUNK_ELEMENTS = 2**22  # of one fp64 log-softmax: 32 MiB


@dataclass(frozen=True)
class Score:
    """Sums over predicted tokens, in nats; the last two are None without a dense model to compare with."""

    num_tokens: int
    nats: float
    kl_to_dense: float | None
    num_agreed: int | None

    def __add__(self, other: Score) -> Score:
        """Sum of both."""
        return Score(
            self.num_tokens + other.num_tokens,
            self.nats + other.nats,
            None if self.kl_to_dense is None or other.kl_to_dense is None else self.kl_to_dense + other.kl_to_dense,
            None if self.num_agreed is None or other.num_agreed is None else self.num_agreed + other.num_agreed,
        )


@dataclass(frozen=True)
class ModelScores:
    """One score for each document, in order, and the routing of the same forward passes."""

    documents: list[Score]
    routing: RoutingUsage | None


def score_logits(logits: Tensor, target_ids: Tensor, dense_logits: Tensor | None) -> Score:
    """Compare the logits of a window with the tokens that follow and with the dense model's logits.

    The log-softmax is taken in fp64, over a few rows at a time.

    Args:
        logits: Float [tokens, vocabulary], finite.
        target_ids: Int [tokens], the token that follows each row.
        dense_logits: Float [tokens, vocabulary], or None.
    """
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    total = Score(0, 0.0, None if dense_logits is None else 0.0, None if dense_logits is None else 0)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        total += _score_rows(logits[part], target_ids[part], None if dense_logits is None else dense_logits[part])
    return total


def _score_rows(logits: Tensor, target_ids: Tensor, dense_logits: Tensor | None) -> Score:
    log_probs = logits.log_softmax(dim=-1, dtype=torch.float64)
    nats = -log_probs.gather(-1, target_ids[:, None]).sum().item()
    if dense_logits is None:
        return Score(len(logits), nats, None, None)
    dense_log_probs = dense_logits.log_softmax(dim=-1, dtype=torch.float64)
    kl = (dense_log_probs.exp() * (dense_log_probs - log_probs)).sum().item()
    return Score(len(logits), nats, kl, int((logits.argmax(-1) == dense_logits.argmax(-1)).sum()))


@torch.inference_mode()
def score_documents(
    models: dict[str, PreTrainedModel],
    documents: Sequence[TokenizedDocument],
    *,
    first_is_dense: bool,
    progress: Progress = SILENT,
) -> list[ModelScores]:
    """Run the models side by side over the documents, so that only one window of logits each is ever held.

    Args:
        models: By name, in evaluation mode; all with the vocabulary of the documents.
        documents: What to score.
        first_is_dense: Compare every model, the first included, with the first.
        progress: Hears of the documents done.

    Raises:
        CheckpointError: Logits that are not finite.
    """
    scores: list[list[Score]] = [[] for _ in models]
    with ExitStack() as stack:
        step = stack.enter_context(progress.stage(_title(list(models)), len(documents)))
        tallies = [stack.enter_context(tally_routing(model)) for model in models.values()]
        for document in documents:
            _set_domain(tallies, document.domain)
            windows = [_score_window(models, document, window, first_is_dense) for window in document.windows]
            for column, parts in zip(scores, zip(*windows, strict=True), strict=True):
                column.append(reduce(add, parts))
            step()
    return [ModelScores(column, t and t.usage()) for column, t in zip(scores, tallies, strict=True)]


def _title(names: list[str]) -> str:
    others = names[1:] or names
    return f"scoring {others[0] if len(others) == 1 else f'{len(others)} models'}"


def _set_domain(tallies: Sequence[RoutingTally | None], domain: str) -> None:
    for tally in tallies:
        if tally is not None:
            tally.domain = domain


def _score_window(
    models: dict[str, PreTrainedModel], document: TokenizedDocument, window: Sequence[int], first_is_dense: bool
) -> list[Score]:
    dense_logits: Tensor | None = None
    scores = []
    for name, model in models.items():
        ids = torch.tensor(window, device=model.device)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        _require_finite(logits, name, document.label)
        if first_is_dense and dense_logits is None:
            dense_logits = logits
        scores.append(score_logits(logits, ids[1:], dense_logits))
    return scores


def _require_finite(logits: Tensor, model: str, label: str) -> None:
    if not torch.isfinite(logits).all():
        num_bad = int((~torch.isfinite(logits)).sum())
        found = f"{num_bad} of {logits.numel()} logits NaN or infinite"
        fix = "Evaluate in float32; if that fails too, the weights are damaged: write the checkpoint again."
        raise CheckpointError(Problem(f"{model} on {label}", "finite logits", found, fix))
