"""ExpertWeaverMoeForCausalLM, our own class: any layer, any expert, the source's own attention and norms.

It keeps the source's decoder layers and replaces their FFN alone, so it holds every family: norms after the FFN, GeGLU,
sliding windows. Layers keep the shared width and the K that the method gave them; nothing is folded, and experts are
weighed with one. It needs the package, or `trust_remote_code`: a copy of its source file is written beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expertweaver.dense.accounting import layer_prefix
from expertweaver.dense.model import DenseModel
from expertweaver.errors import Problem
from expertweaver.formats.base import Capabilities, Layout, ServedRouting, StoredLayer, alike
from expertweaver.formats.parts.layer import PLAIN, glu_tensors
from expertweaver.modeling.values import GLUWeights, LayerDesign, Need, Router
from expertweaver.partition.budget import GROUPED_BLOCK
from expertweaver.registry import PACKAGE_FOLDER
from expertweaver.serving.registration import register

register()

MODELING_FILE = PACKAGE_FOLDER / "serving" / "modeling_expertweaver_moe.py"

REPLACED = {"architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "auto_map"}
GENERIC = {"id2label", "label2id", "problem_type", "return_dict", "output_hidden_states", "output_attentions"}
GENERIC |= {"chunk_size_feed_forward", "is_encoder_decoder"}
"""Keys of a complete dense configuration that are not the dense model's any more, and that say nothing of a model."""

FFN_BIASES = ("mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias")


@dataclass(frozen=True)
class OwnClass:
    """Our own class; see the top of this file."""

    capabilities: Capabilities

    def check(self, dense: DenseModel, dtype: torch.dtype) -> list[Problem]:
        """Find what of a model our own class cannot hold."""
        if biases := [name for name in FFN_BIASES if layer_prefix(0) + name in dense.origins]:
            fix = "Convert a model without them."
            return [Problem(dense.folder.name, "a model without biases on the FFN", ", ".join(biases), fix)]
        return []

    def config(self, dense: DenseModel, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
        """The config.json: the dense one with every default, and what its FFNs became."""
        import transformers

        from expertweaver.serving.modeling_expertweaver_moe import AUTO_MAP

        layers = layout.layers
        widths = {size for layer in layers if len(set(layer.experts)) == 1 for size in layer.experts}
        return {
            "architectures": ["ExpertWeaverMoeForCausalLM"],
            "model_type": "expertweaver_moe",
            "auto_map": AUTO_MAP,
            "dtype": str(dtype).removeprefix("torch."),
            "transformers_version": transformers.__version__,
            **{key: value for key, value in dense.config.items() if key not in REPLACED | GENERIC},
            "dense_model_type": dense.family.model_type,
            "tie_word_embeddings": False,
            "num_routed_experts": alike([len(layer.experts) for layer in layers]),
            "num_experts_per_tok": alike([layer.num_experts_per_tok for layer in layers]),
            "moe_intermediate_size": _widths([alike(layer.experts) for layer in layers]),
            "shared_expert_intermediate_size": alike([layer.shared for layer in layers]),
            "router_bias": True,
            "mlp_output_bias": any(layer.has_output_bias for layer in layers),
            "moe_hidden_act": dense.dims.hidden_act,
            **({} if all(width % GROUPED_BLOCK == 0 for width in widths) else {"experts_implementation": "eager"}),
        }

    def store_layer(self, design: LayerDesign, layout: Layout, probe_inputs: Tensor) -> StoredLayer:
        """Keep the design as it is; the router stays in float32.

        Args:
            design: The layer's partition and router.
            layout: Unused: layers need not be alike.
            probe_inputs: FFN inputs that the largest score is looked up on, [P, H].
        """
        partition, router = design.partition, design.router
        assert isinstance(router, Router), "planning refuses other routers"
        owned = torch.cat(list(partition.expert_neurons))
        assert router.num_experts_per_tok <= 1 or len(owned) == len(owned.unique()), "a neuron would run twice"
        weight = router.weight.float()
        return StoredLayer(
            shared_neurons=partition.shared_neurons,
            expert_neurons=tuple(partition.expert_neurons),
            router_weight=weight,
            selection_bias=router.bias.float(),
            scale_log2=0,
            max_abs_logit=float((probe_inputs.float() @ weight.T).abs().max()),
            routing_kept=1.0,
            down=design.down,
            output_bias=design.bias,
            num_experts_per_tok=router.num_experts_per_tok,
        )

    def layer_tensors(
        self, layer: int, stored: StoredLayer, weights: GLUWeights, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Slice the FFN into shared and routed experts under their names in our own class."""
        served = stored.written(weights, dtype)
        tensors = {"router.weight": stored.router_weight, "router.bias": stored.selection_bias}
        if len(stored.shared_neurons):
            tensors |= glu_tensors("shared_expert.", served.slice(stored.shared_neurons), PLAIN)
        experts = [served.slice(neurons) for neurons in stored.expert_neurons]
        gate_up = [torch.cat([expert.gate, expert.up]) for expert in experts]
        if len({expert.num_neurons for expert in experts}) == 1:
            tensors["experts.gate_up_proj"] = torch.stack(gate_up)
            tensors["experts.down_proj"] = torch.stack([expert.down for expert in experts])
        else:
            tensors["experts.gate_up_rows"] = torch.cat(gate_up)
            tensors["experts.down_rows"] = torch.cat([expert.down.T for expert in experts])
        if stored.output_bias is not None:
            tensors["output_bias"] = stored.output_bias.to(dtype)
        return {f"{layer_prefix(layer)}mlp.{name}": tensor for name, tensor in tensors.items()}

    def stock_ffn(self, layer: nn.Module) -> nn.Module:
        """The FFN of a decoder layer, by the source's own name."""
        return layer.get_submodule("mlp")

    def set_all_experts_on(self, mlp: nn.Module) -> None:
        """Choose every expert."""
        router: Any = mlp.router
        router.top_k = router.num_experts

    def load_layer(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Load a decoder layer; on disk and in memory tensors are the same."""
        module.load_state_dict(tensors, strict=True, assign=True)

    def reference_routing(self, x: Tensor, stored: StoredLayer, layout: Layout) -> ServedRouting:
        """The choice by affine scores, in our own arithmetic, and weights of one."""
        scores = torch.nn.functional.linear(x.float(), stored.router_weight, stored.selection_bias)
        num_chosen = stored.sizes(layout).num_experts_per_tok
        ordered = scores.sort(dim=-1, descending=True, stable=True)
        padded = torch.nn.functional.pad(ordered.values, (1, 1), value=-torch.inf)
        tied = (padded[:, num_chosen] == padded[:, num_chosen + 1]) & (num_chosen > 0)
        return ServedRouting(ordered.indices[:, :num_chosen], torch.ones_like(scores), tied)


def _widths(widths: list[Any]) -> Any:
    """One number where all experts of all layers are alike, else an entry for each layer."""
    same = alike(widths)
    return same if isinstance(same, int) else widths


FORMAT = OwnClass(
    Capabilities(
        engines=(),
        selection_bias=True,
        layer_adaptive_share=True,
        shared_expert="optional",
        needs=frozenset({Need.OUTPUT_BIAS, Need.UNEQUAL_LAYERS, Need.OVERLAPPING_EXPERTS}),
        source_layout=True,
        side_files=(Path(MODELING_FILE),),
    )
)
