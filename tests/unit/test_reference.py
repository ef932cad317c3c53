"""The reference forward: who owns which neurons, and tokens taken in parts."""

from __future__ import annotations

import torch

from expertweaver.modeling.reference import PART_TOKENS, activation, dense_ffn, membership, owned_neurons
from expertweaver.modeling.values import GLUWeights, Partition

CPU = torch.device("cpu")
NOBODY = torch.empty(0, dtype=torch.int64)


def test_membership_of_overlapping_empty_and_no_experts() -> None:
    found = membership([torch.tensor([1, 3]), NOBODY, torch.tensor([3])], 4, CPU)
    assert found.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert membership(torch.tensor([[2, 0], [1, 3]]), 4, CPU).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert membership([], 4, CPU).shape == (0, 4)


def test_shared_neurons_always_run_and_others_with_any_of_their_experts() -> None:
    partition = Partition(torch.tensor([0]), [torch.tensor([1, 2]), torch.tensor([2, 3])])
    chosen = torch.tensor([[True, False], [False, True], [False, False]])
    assert owned_neurons(chosen, partition, 4).int().tolist() == [[1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 0, 0]]


def test_an_ffn_in_parts_is_the_ffn_of_all_tokens_in_order() -> None:
    draw = torch.Generator().manual_seed(0)
    gate, up, down = (torch.randn(*shape, generator=draw) for shape in ((24, 8), (24, 8), (8, 24)))
    x = torch.randn(3, PART_TOKENS - 5, 8, generator=draw)
    found = dense_ffn(x, GLUWeights(gate, up, down), activation("silu"))
    expected = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    assert found.shape == x.shape
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert dense_ffn(x[:0], GLUWeights(gate, up, down), activation("silu")).shape == x[:0].shape
