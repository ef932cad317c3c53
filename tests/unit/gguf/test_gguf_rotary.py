"""Rotary positions: what key values and factors say, against transformers; rows of heads for pairs of neighbours."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.families import LLAMA3_ROPE, LONG_ROPE, SIZES, YARN_ROPE
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from expertweaver.gguf.architectures.base import PlannedTensor
from expertweaver.gguf.architectures.parts.layers import beside, paired
from expertweaver.gguf.architectures.parts.rotary import (
    PLAIN,
    WITH_FACTORS,
    check_rope,
    factor_tensors,
    rope_key_values,
    rope_remarks,
)

PUBLISHED = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Llama 3.2's."""


def config(head_dim: int = 8, **rope: Any) -> dict[str, Any]:
    return {**SIZES, "head_dim": head_dim, "rope_parameters": {"rope_theta": 10000.0, **rope}}


def scaling(**rope: Any) -> dict[str, Any]:
    keys = rope_key_values(config(**rope))
    return {key.removeprefix("rope.scaling."): v for key, v in keys.items() if key.startswith("rope.scaling.")}


def theirs(values: dict[str, Any], length: int | None = None) -> tuple[torch.Tensor, float]:
    """Frequencies and the factor of attention in transformers."""
    kind = values["rope_parameters"].get("rope_type", "default")
    return ROPE_INIT_FUNCTIONS[kind](LlamaConfig(**values), device=torch.device("cpu"), seq_len=length)


def made(tensor: PlannedTensor) -> torch.Tensor:
    """A tensor that is made of no source."""
    assert tensor.sources == ()
    return tensor.assemble([])


def plain_frequencies(values: dict[str, Any]) -> torch.Tensor:
    size = values["head_dim"]
    return values["rope_parameters"]["rope_theta"] ** (-torch.arange(0, size, 2).double() / size)


def test_rotary_positions_that_key_values_can_say() -> None:
    assert scaling() == {"type": "none"}
    assert scaling(rope_type="linear", factor=2.0) == {"type": "linear", "factor": 2.0}
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
    assert scaling(**YARN_ROPE) == yarn
    own = scaling(**YARN_ROPE, attention_factor=2.0)["attn_factor"]
    assert own * (0.1 * math.log(4.0) + 1) == pytest.approx(2.0)
    assert rope_key_values(config(partial_rotary_factor=0.5))["rope.dimension_count"] == 4
    assert factor_tensors(config(**YARN_ROPE)) == []
    assert rope_remarks(config(**YARN_ROPE)) == []


@pytest.mark.parametrize("rope", [LLAMA3_ROPE, {**PUBLISHED, "rope_type": "llama3", "rope_theta": 500000.0}])
@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_the_factors_of_llama_3_are_those_of_transformers(rope: dict[str, Any], head_dim: int) -> None:
    values = config(head_dim, **rope)
    [tensor] = factor_tensors(values)
    assert (tensor.name, tensor.shape, tensor.exact) == ("rope_freqs.weight", (head_dim // 2,), True)
    factors = made(tensor)
    assert factors.min() == 1
    assert factors.max() == rope["factor"]
    expected, attention = theirs(values)
    assert attention == 1.0
    torch.testing.assert_close((plain_frequencies(values) / factors.double()).float(), expected, rtol=1e-6, atol=0)
    assert scaling(**rope) == {"type": "none"}


def test_the_factors_of_longrope_are_those_of_transformers() -> None:
    values = config(**LONG_ROPE)
    for name, length in (("long", 33), ("short", 32)):
        found = {tensor.name: made(tensor) for tensor in factor_tensors(values)}
        frequencies = plain_frequencies(values) / found[f"rope_factors_{name}.weight"].double()
        expected, attention = theirs(values, length)
        torch.testing.assert_close(frequencies.float(), expected, rtol=1e-6, atol=0)
        assert scaling(**LONG_ROPE)["attn_factor"] == pytest.approx(attention)
    assert scaling(**LONG_ROPE)["type"] == "longrope"
    assert scaling(**LONG_ROPE)["original_context_length"] == 32
    assert scaling(**LONG_ROPE, attention_factor=1.5)["attn_factor"] == 1.5
    assert scaling(**{**LONG_ROPE, "original_max_position_embeddings": 128})["attn_factor"] == 1.0
    assert "more than 32 tokens" in rope_remarks(values)[0]


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (LLAMA3_ROPE, "'llama3'. llama.cpp would drop the factors of the frequencies. Serve this model"),
        (LONG_ROPE, "'longrope'"),
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic'"),
        ({**YARN_ROPE, "mscale": 1.0}, "mscale"),
        ({**YARN_ROPE, "beta_fast": 16.0}, "beta_fast"),
        ({**YARN_ROPE, "truncate": False}, "truncate"),
    ],
)
def test_rotary_positions_that_cannot_be_said_are_refused(rope: dict[str, Any], words: str) -> None:
    [problem] = check_rope(config(**rope), PLAIN)
    assert words in str(problem)
    assert bool(check_rope(config(**rope), WITH_FACTORS)) == (rope["rope_type"] not in ("llama3", "longrope"))


def test_a_parameter_that_is_not_written_is_refused() -> None:
    for rope in (LLAMA3_ROPE, LONG_ROPE):
        [problem] = check_rope(config(**rope, mscale=2.0), WITH_FACTORS)
        assert problem.found == "mscale"


def test_known_rotary_positions_pass() -> None:
    plain: dict[str, Any] = {"rope_type": "default"}
    for rope in (plain, {"rope_type": "linear", "factor": 2.0}, {**YARN_ROPE, "beta_fast": 32}):
        assert check_rope(config(**rope), PLAIN) == []


def turned(vector: torch.Tensor, angles: torch.Tensor, *, neighbours: bool) -> torch.Tensor:
    """Turn pairs of a head's values: neighbours, or one from each half; [D]."""
    first, second = (vector[0::2], vector[1::2]) if neighbours else vector.chunk(2)
    pairs = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag])


def scores(x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, *, neighbours: bool) -> list[float]:
    """Of four heads in two groups, a query at position 7 and a key at position 3."""
    frequencies = plain_frequencies(config())
    found = []
    for head in range(4):
        query = turned((q @ x[0]).view(4, 8)[head], 7 * frequencies, neighbours=neighbours)
        key = turned((k @ x[1]).view(2, 8)[head // 2], 3 * frequencies, neighbours=neighbours)
        found.append(float(query @ key))
    return found


def test_rows_for_pairs_of_neighbours_give_the_same_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    x, q, k = (torch.randn(shape, generator=generator).double() for shape in ((2, 32), (32, 32), (16, 32)))
    expected = scores(x, q, k, neighbours=False)
    assert scores(x, q, k, neighbours=True) != pytest.approx(expected)
    assert scores(x, beside(q, num_heads=4), beside(k, num_heads=2), neighbours=True) == pytest.approx(expected)


def test_only_queries_and_keys_and_their_biases_are_put_in_pairs() -> None:
    names = ["attn_q.weight", "attn_q.bias", "attn_k.weight", "attn_k.bias", "attn_v.weight", "attn_output.weight"]
    planned = [PlannedTensor(f"blk.0.{name}", (16,), ("x",)) for name in names]
    planned.append(PlannedTensor("token_embd.weight", (16,), ("x",)))
    values = torch.arange(16.0)
    found = [tensor.values(lambda _: values).tolist() for tensor in paired(planned, config())]
    of_queries = [4 * head + i for head in range(4) for i in (0, 2, 1, 3)]
    of_keys = [8 * head + i for head in range(2) for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    assert found == [of_queries, of_queries, of_keys, of_keys, *[values.tolist()] * 3]
