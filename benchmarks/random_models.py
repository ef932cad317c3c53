"""Make a dense model and its sparse forms with random weights, to time engines at sizes that do not ship.

    python benchmarks/random_models.py OUT --hidden-size 896 --intermediate-size 4864 --num-layers 6 \
        --vocab-size 8000 --num-slices 19,38,76 --mlp-sparsity 0.25,0.5,0.75

writes OUT/dense (a Llama) and OUT/sparse-SLICES-PERCENT (glm4_moe, with the config that a conversion writes). Speed
does not depend on the values of weights, only on the routing, and a random router chooses every expert about equally
often. One slice is shared. A tokenizer of made-up words lies beside each, since engines want one. Weights are bfloat16.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from shapes import Shape, save_random, save_tokenizer
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

from expertweaver.dense.model import open_dense
from expertweaver.formats.base import Layout, load_format
from expertweaver.partition.budget import slice_budget

SHARED_SLICES = 1


def main() -> None:
    args = _parse()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    save_random(args.out / "dense", _shape(args))
    print(args.out / "dense")
    for num_slices in _numbers(args.num_slices, int):
        for sparsity in _numbers(args.mlp_sparsity, float):
            folder = args.out / f"sparse-{num_slices}-{100 * sparsity:g}"
            _sparse(args, num_slices, sparsity).save_pretrained(folder)
            save_tokenizer(folder)
            print(folder)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden-size", type=int, default=896)
    parser.add_argument("--intermediate-size", type=int, default=4864)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--num-heads", type=int, default=14)
    parser.add_argument("--num-key-value-heads", type=int, default=2)
    parser.add_argument("--num-slices", default="19,38,76,152")
    parser.add_argument("--mlp-sparsity", default="0.5")
    return parser.parse_args()


def _numbers(text: str, kind: Any) -> list[Any]:
    return [kind(part) for part in text.split(",")]


def _shape(args: argparse.Namespace) -> Shape:
    return Shape(
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=args.num_heads,
        num_key_value_heads=args.num_key_value_heads,
        vocab_size=args.vocab_size,
    )


def _sparse(args: argparse.Namespace, num_slices: int, sparsity: float) -> Glm4MoeForCausalLM:
    """A model of the converted shape; the nearest sparsity that is a whole number of slices."""
    nearest = round(sparsity * num_slices) / num_slices
    budget = slice_budget(args.intermediate_size, mlp_sparsity=nearest, num_slices=num_slices)
    layout = Layout(num_slices - SHARED_SLICES, budget.active_slices - SHARED_SLICES, SHARED_SLICES, budget.slice_width)
    values = load_format("glm4_moe").config(open_dense(str(args.out / "dense")), layout, torch.bfloat16)
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**copy.deepcopy(values)))
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):  # the class starts with zeros, which choose the same experts for all
            torch.nn.init.normal_(parameter, std=2.0**-10)
    return model


if __name__ == "__main__":
    main()
