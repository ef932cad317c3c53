"""How fast a sparse model could be: the bytes that a decoding step reads, the arithmetic that a prompt takes.

Decoding reads every weight that is used once a step, so its time follows bytes; a prompt uses each weight for many
tokens, so its time follows multiplications. The whole model counts, output head and attention included.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A part of a model: its parameters, and the bytes that they take in memory."""

    params: int
    bytes: int

    def __add__(self, other: Size) -> Size:
        return Size(self.params + other.params, self.bytes + other.bytes)


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs to know of a model.

    Attributes:
        fixed: All that every token is multiplied with, over all layers: attention, norms, routers, shared experts or
            dense FFNs.
        head: The output head; a prompt needs it for the last position only.
        routed: All routed experts of all layers.
        num_experts: E, routed experts of a layer; 0 for a dense model.
        num_experts_per_tok: K.
        num_layers: L.
        query_size: Numbers in the queries of a token and layer.
        cache_bytes: What a token leaves in the KV cache, over all layers.
    """

    fixed: Size
    head: Size
    routed: Size
    num_experts: int
    num_experts_per_tok: int
    num_layers: int
    query_size: int
    cache_bytes: int

    @property
    def is_sparse(self) -> bool:
        """Whether there is something to choose from."""
        return self.num_experts > 0


def distinct_experts(num_experts: int, num_experts_per_tok: int, batch: int) -> float:
    """Experts that at least one of `batch` tokens chooses, as expected if all choices are equally likely."""
    return num_experts * (1 - (1 - num_experts_per_tok / num_experts) ** batch)


def decode_bytes(shape: Shape, *, batch: int, context: float, distinct: float | None = None) -> float:
    """Bytes that one step of a batch reads: weights once, and every sequence's cache.

    Args:
        shape: The model.
        batch: Sequences that step together.
        context: Tokens in the cache of a sequence.
        distinct: Experts a layer touches in a step, if measured; else as under uniform routing.
    """
    weights = float(shape.fixed.bytes + shape.head.bytes)
    if shape.is_sparse:
        uniform = distinct_experts(shape.num_experts, shape.num_experts_per_tok, batch)
        touched = uniform if distinct is None else distinct
        weights += shape.routed.bytes * touched / shape.num_experts
    return weights + batch * context * shape.cache_bytes


def prefill_flops(shape: Shape, *, length: int) -> float:
    """Operations for one prompt: two for each parameter and token, the head for one token, causal attention."""
    active = float(shape.fixed.params)
    if shape.is_sparse:
        active += shape.routed.params * shape.num_experts_per_tok / shape.num_experts
    attention = 2 * length**2 * shape.query_size * shape.num_layers
    return 2 * active * length + 2 * shape.head.params + attention
