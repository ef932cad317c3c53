"""An experts function for transformers on CPU: a loop over the chosen experts that copies no weights.

Three things decide the speed of narrow experts on a CPU (docs/speed.md has the measurements):

* One token: chosen experts that lie side by side are one matrix-vector product on a view. The down projection [H, I] of
  an expert has rows of only I numbers, which matrix-vector kernels read slowly; stored by columns it reads better. So
  `use_index_loop` changes the strides of `down_proj`, not its shape or values.
* Few tokens for each expert: Python costs more than the arithmetic, and the engine's own kernel is taken.
* Many tokens: one product for each expert, added into the output in place; the engine's kernel writes, permutes and
  sums K outputs a token instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.integrations.moe import grouped_mm_experts_forward as grouped_mm

from expertweaver.errors import ArchitectureError, Problem
from expertweaver.partition.budget import GROUPED_BLOCK
from expertweaver.serving import INDEX_LOOP

MIN_ROWS = 32
"""Tokens an expert from which the loop in Python is the faster one."""


def use_index_loop(model: PreTrainedModel) -> PreTrainedModel:
    """Let a loaded sparse model run its experts by this file's function, and store `down_proj` by columns.

    Shapes, values and what `save_pretrained` writes stay as they are. For inference on CPU.

    Args:
        model: A converted model in a stock format, loaded by transformers; it is changed in place.

    Returns:
        The same model.

    Raises:
        ArchitectureError: The model has no experts of the kind that transformers lets be replaced.
    """
    modules = [module for module in model.modules() if _is_replaceable(module)]
    if not modules:
        expected = "stock experts with gate_up_proj [E, 2I, H] and down_proj [E, H, I], without biases"
        fix = "Use it on a converted model in a stock format, loaded by transformers."
        raise ArchitectureError(Problem(type(model).__name__, expected, "none", fix))
    ALL_EXPERTS_FUNCTIONS.register(INDEX_LOOP, index_loop)
    model.set_experts_implementation(INDEX_LOOP)
    for module in modules:
        store_by_columns(module)
    return model


def leave_index_loop(model: PreTrainedModel, implementation: str) -> None:
    """Go back to another implementation, and to `down_proj` stored by rows."""
    model.set_experts_implementation(implementation)
    for module in model.modules():
        if _is_replaceable(module):
            store_by_rows(module)


def _is_replaceable(module: nn.Module) -> bool:
    plain = not any(getattr(module, name, False) for name in ("has_bias", "is_transposed", "has_post_expert_norm"))
    return plain and getattr(module, "has_gate", False) and isinstance(getattr(module, "down_proj", None), Tensor)


def store_by_columns(experts: Any) -> None:
    """Reorder the memory of `down_proj` [E, H, I] so that it reads along H; a layer's copy is needed meanwhile."""
    down = experts.down_proj
    down.data = down.data.transpose(1, 2).contiguous().transpose(1, 2)


def store_by_rows(experts: Any) -> None:
    """Undo `store_by_columns`."""
    experts.down_proj.data = experts.down_proj.data.contiguous()


def index_loop(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Sum the chosen experts' outputs.

    Args:
        experts: A stock experts module: `gate_up_proj` [E, 2I, H], `down_proj` [E, H, I], `_apply_gate`.
        hidden_states: [T, H].
        top_k_index: Expert ids [T, K].
        top_k_weights: Weight of each [T, K].
    """
    num_tokens, num_chosen = top_k_index.shape
    if num_tokens == 1:
        return _one_token(experts, hidden_states[0], top_k_index[0], top_k_weights[0])[None]
    fits = experts.down_proj.shape[2] % GROUPED_BLOCK == 0
    if fits and num_tokens * num_chosen < MIN_ROWS * experts.num_experts:
        return grouped_mm(experts, hidden_states, top_k_index, top_k_weights)
    return _many_tokens(experts, hidden_states, top_k_index, top_k_weights)


def _one_token(experts: Any, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    chosen, order = expert_ids.sort()
    neighbours = _runs(chosen.tolist())
    gate_up, down = experts.gate_up_proj, experts.down_proj.transpose(1, 2)
    parts = torch.cat([torch.mv(gate_up[first:last].flatten(0, 1), x) for first, last in neighbours])
    active = experts._apply_gate(parts.view(len(chosen), -1)) * weights[order, None]
    active = active.to(x.dtype).flatten()
    output, width, start = torch.zeros_like(x), down.shape[1], 0
    for first, last in neighbours:
        stop = start + (last - first) * width
        output.addmv_(down[first:last].flatten(0, 1).T, active[start:stop])
        start = stop
    return output


def _runs(ids: list[int]) -> list[tuple[int, int]]:
    """Sorted ids as ranges of neighbours: [1, 2, 5] gives (1, 3), (5, 6)."""
    starts = [i for i, expert in enumerate(ids) if i == 0 or expert != ids[i - 1] + 1]
    return [(ids[i], ids[i] + stop - i) for i, stop in zip(starts, [*starts[1:], len(ids)], strict=True)]


def _many_tokens(experts: Any, x: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    expert_ids = top_k_index.flatten()
    order = expert_ids.argsort(stable=True)
    tokens, weights = order // top_k_index.shape[1], top_k_weights.flatten()[order, None]
    output, start = torch.zeros_like(x), 0
    for expert, count in enumerate(torch.bincount(expert_ids, minlength=experts.num_experts).tolist()):
        if count == 0:
            continue
        part = slice(start, start + count)
        start += count
        active = experts._apply_gate(nn.functional.linear(x[tokens[part]], experts.gate_up_proj[expert]))
        active = (active * weights[part]).to(x.dtype)
        output.index_add_(0, tokens[part], nn.functional.linear(active, experts.down_proj[expert]))
    return output
