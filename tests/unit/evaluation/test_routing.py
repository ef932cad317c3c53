"""Expert shares against a direct top-k on the routers' inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import NUM_EXPERTS, NUM_EXPERTS_PER_TOK, model_of, save, token_ids, words, write_text
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

from expertweaver.errors import ArchitectureError
from expertweaver.evaluation.params import NUM_EXPERTS_FIELD
from expertweaver.evaluation.quality import evaluate
from expertweaver.evaluation.routing import tally_routing

DOCUMENTS = [("a", words(21, 1)), ("b", words(40, 3)), ("a", words(9, 2))]


def biased_model() -> PreTrainedModel:
    """A selection bias, so that the top of the scores is not the choice, and layers that differ."""
    model = model_of("glm4_moe", seed=3)
    for layer, router in enumerate(m for m in model.modules() if isinstance(m, Glm4MoeTopkRouter)):
        router.e_score_correction_bias.copy_(torch.tensor([0.3, 0.0, -0.3, 0.1, -0.1]).roll(layer))
    return model


def direct_counts(model: PreTrainedModel, documents: list[str]) -> list[list[int]]:
    """Tokens per expert and layer: sigmoid(x W^T) + b, the K largest."""
    routers = [m for m in model.modules() if isinstance(m, Glm4MoeTopkRouter)]
    inputs: dict[int, list[Tensor]] = {id(router): [] for router in routers}

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs[id(module)].append(arguments[0].reshape(-1, 32))

    hooks = [router.register_forward_pre_hook(keep) for router in routers]
    with torch.inference_mode():
        for document in documents:
            model(input_ids=torch.tensor([token_ids(document)]))
    for hook in hooks:
        hook.remove()
    counts = []
    for router in routers:
        scores = (torch.cat(inputs[id(router)]) @ router.weight.T).sigmoid() + router.e_score_correction_bias
        chosen = scores.topk(NUM_EXPERTS_PER_TOK).indices.flatten().tolist()
        counts.append([chosen.count(expert) for expert in range(NUM_EXPERTS)])
    return counts


def test_shares_are_those_of_a_direct_top_k(tmp_path: Path) -> None:
    folder = save(tmp_path / "sparse", biased_model())
    usage = evaluate([folder], text=[write_text(tmp_path / "t.jsonl", DOCUMENTS)]).models[0].routing
    assert usage is not None
    assert usage.num_experts_per_tok == NUM_EXPERTS_PER_TOK
    assert list(usage.share) == ["a", "b", "all"]
    for domain, share in usage.share.items():
        documents = [text for name, text in DOCUMENTS if domain in (name, "all")]
        counts = direct_counts(biased_model(), documents)
        num_tokens = sum(len(document.split()) for document in documents)
        assert len({tuple(row) for row in counts}) == 2, "layers must differ, or their order would go unchecked"
        assert max(counts[0]) > 1.2 * min(counts[0]), "experts must differ, or a mixed-up order would go unchecked"
        assert share == [[pytest.approx(count / num_tokens) for count in row] for row in counts]


def test_dense_models_have_no_routing(tmp_path: Path) -> None:
    folder = save(tmp_path / "dense", model_of())
    assert evaluate([folder], text=[write_text(tmp_path / "t.jsonl", DOCUMENTS)]).models[0].routing is None


@pytest.mark.parametrize("model_type", NUM_EXPERTS_FIELD)
def test_every_known_type_is_seen(model_type: str) -> None:
    model = model_of(model_type)
    num_sparse = sum(type(m).__name__.endswith("Experts") for m in model.modules())
    with tally_routing(model) as tally, torch.inference_mode():
        assert tally is not None
        tally.domain = "d"
        model(input_ids=torch.arange(20)[None])
    share = tally.usage().share["d"]
    assert len(share) == num_sparse > 0
    assert all(len(row) == NUM_EXPERTS for row in share)
    assert [sum(row) for row in share] == [pytest.approx(NUM_EXPERTS_PER_TOK)] * num_sparse


def test_hooks_go_with_the_block() -> None:
    model = model_of("glm4_moe")
    with tally_routing(model) as tally:
        assert tally is not None
        assert any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_router_with_another_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Glm4MoeTopkRouter.forward
    monkeypatch.setattr(Glm4MoeTopkRouter, "forward", lambda self, x: (*forward(self, x)[:2], x))
    model = model_of("glm4_moe")
    message = r"router Glm4MoeTopkRouter: expected .*expert_ids \[tokens, 2\].*found expert_ids of shape"
    with pytest.raises(ArchitectureError, match=message), tally_routing(model), torch.inference_mode():
        model(input_ids=torch.arange(20)[None])


def test_a_sparse_model_without_routers_is_refused() -> None:
    model = model_of("glm4_moe", first_k_dense_replace=2)
    with pytest.raises(ArchitectureError, match=r"\.\.\.TopkRouter, found none"), tally_routing(model):
        pass
