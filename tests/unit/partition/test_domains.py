from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertweaver.partition.domains import domain_experts


def test_common_neurons_are_shared_and_the_rest_of_each_top_is_an_expert() -> None:
    strength = torch.tensor([[5.0, 4.0, 3.0, 1.0, 0.0], [5.0, 0.0, 3.0, 4.0, 1.0], [5.0, 0.0, 1.0, 4.0, 3.0]])
    found = domain_experts(strength, 3)
    assert found.shared_neurons.tolist() == [0]
    assert [neurons.tolist() for neurons in found.expert_neurons] == [[1, 2], [2, 3], [3, 4]]


@settings(max_examples=30, deadline=None)
@given(domains=st.integers(1, 5), active=st.integers(0, 12), seed=st.integers(0, 99))
def test_every_domain_runs_as_many_neurons(domains: int, active: int, seed: int) -> None:
    strength = torch.randint(4, (domains, 12), generator=torch.Generator().manual_seed(seed))  # many ties
    found = domain_experts(strength, active)
    for score, neurons in zip(strength, found.expert_neurons, strict=True):
        together = torch.cat([found.shared_neurons, neurons])
        assert len(together.unique()) == len(together) == active
        assert torch.equal(score[together].sort().values, score.sort().values[12 - active :])
