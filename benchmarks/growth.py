"""How the cost of weaving one layer grows with the FFN's width and with the calibration tokens.

    python benchmarks/growth.py --widths 1024,2048,4096,8192,16384 --tokens 16384
    python benchmarks/growth.py --widths 2048 --tokens 4096,8192,16384,32768,65536

weaves one layer of random weights on random inputs, and prints the seconds of its parts and, from one row to the next,
the power of the width (or of the tokens) that each part grew with. Nothing may grow faster than the cube of the width
or linearly in the tokens.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from expertweaver.calibration.traffic import LayerTraffic, judging_tokens
from expertweaver.methods import weave
from expertweaver.modeling.reference import activation
from expertweaver.modeling.values import GLUWeights
from expertweaver.partition.allocation import Allocation
from expertweaver.partition.budget import slice_budget
from expertweaver.repair import least_squares
from expertweaver.weaving import repaired

ROW = 256
NUM_SLICES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--widths", default="1024,2048,4096,8192,16384")
    parser.add_argument("--tokens", default="16384")
    args = parser.parse_args()
    widths, tokens = ([int(part) for part in text.split(",")] for text in (args.widths, args.tokens))
    parts = _watch()
    activation("silu")  # imports are not part of the time
    rows = [(width, count, _weave(args.hidden_size, width, count, parts)) for width in widths for count in tokens]
    print(f"{'width':>8}{'tokens':>8}" + "".join(f"{part:>26}" for part in rows[0][2]))
    for number, (width, count, seconds) in enumerate(rows):
        cells = []
        for part, spent in seconds.items():
            before = rows[number - 1] if number else None
            cells.append(f"{spent:14.2f} s {_power(before, part, width * count, spent):>9}")
        print(f"{width:>8}{count:>8}" + "".join(cells))


def _power(before: tuple[int, int, dict[str, float]] | None, part: str, size: int, spent: float) -> str:
    if before is None:
        return ""
    width, count, seconds = before
    return f"(^{math.log(spent / seconds[part]) / math.log(size / (width * count)):.1f})"


def _weave(hidden: int, width: int, num_tokens: int, parts: dict[str, float]) -> dict[str, float]:
    """Seconds of each part for one layer."""
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(width, hidden, generator=generator) / hidden**0.5 for _ in range(2))
    weights = GLUWeights(gate, up, torch.randn(hidden, width, generator=generator) / width**0.5, "silu")
    inputs = torch.randn(num_tokens // ROW, ROW, hidden, generator=generator)
    valid = torch.ones(inputs.shape[:2], dtype=torch.bool)
    traffic = LayerTraffic(inputs, torch.zeros_like(inputs), inputs, valid, judging_tokens(valid))
    budget = slice_budget(width, mlp_sparsity=0.25, num_slices=NUM_SLICES)
    parts.clear()
    start = time.perf_counter()
    options = weave.Options()
    evidence = traffic.sample(options.num_cluster_tokens(width))
    design = weave.design(options, 0, evidence, weights, Allocation(1), budget)
    middle = time.perf_counter()
    repaired(design, weights, traffic)
    end = time.perf_counter()
    rest = end - middle - sum(parts.values())
    return {"partition and router": middle - start, **parts, "judging": rest}


def _watch() -> dict[str, float]:
    """Put a stopwatch around the repair's matrix and its solutions."""
    seconds: dict[str, float] = {}

    def timed(title: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            found = function(*args, **options)
            seconds[title] = seconds.get(title, 0.0) + time.perf_counter() - start
            return found

        return call

    least_squares._neuron_system = timed("activations and matrix", least_squares._neuron_system)
    least_squares._token_system = timed("activations and matrix", least_squares._token_system)
    for system in (least_squares._NeuronSystem, least_squares._TokenSystem):
        system.solution = timed("solving", system.solution)  # type: ignore[method-assign]
    return seconds


if __name__ == "__main__":
    main()
