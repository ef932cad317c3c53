"""Where the time of a narrow expert goes: one FFN layer, dense beside sparse, by expert width and by operation.

    OMP_NUM_THREADS=1 python benchmarks/expert_width.py --hidden-size 896 --intermediate-size 4864 \
        --num-slices 19,38,76,152 --mlp-sparsity 0.5

Prints, for one token and for a prompt, the time of the stock FFN with every way to run its experts over the dense one,
and that of the parts of one token's work on their own: the chosen experts' gate and up, their down projection stored by
rows (as transformers loads it) and by columns (as `use_index_loop` stores it). Several layers take turns, so that no
weight is found in a cache. Times are those that the process computes (one thread), medians over rounds with everything
in turns; routing is uniform.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Glm4MoeConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMLP, Glm4MoeMoE

from expertweaver.serving import INDEX_LOOP
from expertweaver.serving.index_loop import index_loop, store_by_columns, store_by_rows

NUM_LAYERS = 3
SHARED_SLICES = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=896)
    parser.add_argument("--intermediate-size", type=int, default=4864)
    parser.add_argument("--num-slices", default="19,38,76,152")
    parser.add_argument("--mlp-sparsity", type=float, default=0.5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ALL_EXPERTS_FUNCTIONS.register(INDEX_LOOP, index_loop)
    with torch.inference_mode():
        for num_slices in map(int, args.num_slices.split(",")):
            _run(args, num_slices)


def _run(args: argparse.Namespace, num_slices: int) -> None:
    active = round((1 - args.mlp_sparsity) * num_slices)
    config = Glm4MoeConfig(
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        moe_intermediate_size=args.intermediate_size // num_slices,
        n_routed_experts=num_slices - SHARED_SLICES,
        num_experts_per_tok=active - SHARED_SLICES,
        n_shared_experts=SHARED_SLICES,
    )
    dense = [_filled(Glm4MoeMLP(config, args.intermediate_size)) for _ in range(NUM_LAYERS)]
    sparse = [_filled(Glm4MoeMoE(config)) for _ in range(NUM_LAYERS)]
    head = f"width {config.moe_intermediate_size}, {active} of {num_slices} slices (ideal {active / num_slices:.2f})"
    for tokens in (1, args.prompt):
        print(f"{head}, {tokens} tokens: {_whole(config, dense, sparse, tokens, args.rounds)}", flush=True)
    print(f"{head}, parts of one token: {_parts(config, dense, sparse, args.rounds)}", flush=True)


def _filled(module: nn.Module) -> Any:
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.normal_(std=0.02)
    if isinstance(module, Glm4MoeMoE):
        module.gate.e_score_correction_bias.zero_()
    return module.eval()


def _whole(config: Any, dense: list[Any], sparse: list[Any], tokens: int, rounds: int) -> str:
    x = torch.randn(1, tokens, config.hidden_size)

    def run(implementation: str) -> Callable[[], None]:
        def runs() -> None:
            config._experts_implementation = implementation
            for layer in sparse:
                layer(x)

        return runs

    stock = {name: run(name) for name in ("eager", "grouped_mm")}
    times = _in_turns({"dense": lambda: [layer(x) for layer in dense], **stock}, rounds)
    for layer in sparse:
        store_by_columns(layer.experts)
    ours = _in_turns({"dense": lambda: [layer(x) for layer in dense], INDEX_LOOP: run(INDEX_LOOP)}, rounds)
    for layer in sparse:
        store_by_rows(layer.experts)
    return f"dense {1e3 * median(times['dense']) / NUM_LAYERS:.2f} ms; {_over(times)}, {_over(ours)}"


def _over(times: dict[str, list[float]]) -> str:
    """Median over rounds of the ratio to the first, for all others."""
    first, *others = times
    ratios = {name: median(t / d for t, d in zip(times[name], times[first], strict=True)) for name in others}
    return ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())


def _parts(config: Any, dense: list[Any], sparse: list[Any], rounds: int) -> str:
    x, wide = torch.randn(config.hidden_size), torch.randn(config.intermediate_size)
    chosen = torch.randperm(config.n_routed_experts)[: config.num_experts_per_tok].sort().values.tolist()
    values = torch.randn(len(chosen), config.moe_intermediate_size)
    rows = [layer.experts.down_proj for layer in sparse]
    columns = [down.transpose(1, 2).contiguous().transpose(1, 2) for down in rows]

    def down(stacks: list[Tensor]) -> list[list[Tensor]]:
        return [[torch.mv(w[e], v) for e, v in zip(chosen, values, strict=True)] for w in stacks]

    wide_parts = _in_turns(
        {
            "dense": lambda: [(torch.mv(d.gate_proj.weight, x), torch.mv(d.up_proj.weight, x)) for d in dense],
            "gate and up": lambda: [[torch.mv(s.experts.gate_up_proj[e], x) for e in chosen] for s in sparse],
        },
        rounds,
    )
    narrow_parts = _in_turns(
        {
            "dense": lambda: [torch.mv(d.down_proj.weight, wide) for d in dense],
            "down by rows": lambda: down(rows),
            "down by columns": lambda: down(columns),
        },
        rounds,
    )
    share = len(chosen) / (config.n_routed_experts + SHARED_SLICES)
    return f"{_over(wide_parts)}, {_over(narrow_parts)} (of the dense FFN's, ideal {share:.2f})"


def _in_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: found[1:] for name, found in times.items()}


if __name__ == "__main__":
    main()
