"""What a conversion costs: its time over one dense forward pass of the same calibration tokens, and its peak memory.

    python benchmarks/conversion_cost.py --hidden-size 896 --intermediate-size 4864 --num-layers 24

makes a Llama of these sizes with random weights, times a dense forward pass of its decoder layers over the calibration
tokens by stock transformers (batches of whole sequences, no head), then a whole `convert`, then the dense pass again,
each in a process of its own. All use the same threads and the same arithmetic; ratios are to the mean of both passes.
`--passes 1` leaves the second dense pass out.
Random weights cost what trained ones do: no step depends on their values except the number of clustering rounds, which
is capped. For a method that works layer by layer the time of the layers is divided into its parts, and the peak memory
is set beside its bound: two decoder layers, hidden states, two F x F matrices in float64, and the libraries, which are
what the process holds after it has converted a toy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import library_bytes, weave_bound
from shapes import Shape, save_random, save_words

VOCAB_SIZE = 4096
STEPS = ("dense", "convert")


def main() -> None:
    args = _parse()
    if args.step is not None:
        print(json.dumps(_STEPS[args.step](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        _make_model(args)
        steps = ("dense", "convert", "dense")[: args.passes + 1]
        first, conversion, *again = (_run_apart(step, args) for step in steps)
    _print_table(args, [first, *again], conversion)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=896)
    parser.add_argument("--intermediate-size", type=int, default=4864)
    parser.add_argument("--num-layers", type=int, default=24)
    parser.add_argument("--num-slices", type=int, default=76)
    parser.add_argument("--mlp-sparsity", type=float, default=0.25)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--method", default="weave")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--passes", type=int, choices=(1, 2), default=2, help="Dense passes to compare with.")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_apart(step: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one step in a fresh process, so that its peak memory is its own."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in vars(args).items() if name != "step"]
    command = [sys.executable, __file__, *options, f"--step={step}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _shape(args: argparse.Namespace) -> Shape:
    return Shape(
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=max(1, args.hidden_size // 448),
        vocab_size=VOCAB_SIZE,
    )


def _make_model(args: argparse.Namespace) -> None:
    save_random(args.folder / "dense", _shape(args))
    save_words(args.folder / "text.jsonl", num_samples=args.num_samples, sequence_length=args.sequence_length)


def _dense_step(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import LlamaForCausalLM

    from expertweaver import machine

    dtype = getattr(torch, args.compute_dtype)
    loaded: Any = LlamaForCausalLM.from_pretrained(args.folder / "dense", dtype=dtype).eval().to(args.device)
    model = loaded.model
    rows = [json.loads(line)["text"] for line in (args.folder / "text.jsonl").read_text().splitlines()]
    tokens = torch.tensor([[int(word[1:]) for word in row.split()] for row in rows])
    step = max(1, 4096 // args.sequence_length)
    with torch.inference_mode():
        last = model(tokens[:1].to(args.device), use_cache=False)[0].cpu()
        start = time.perf_counter()
        for batch in tokens.split(step):
            last = model(batch.to(args.device), use_cache=False)[0]
        last[0, 0].cpu()  # waits for a GPU
    return {"seconds": {"dense forward": time.perf_counter() - start}, "peak_bytes": machine.peak_memory()}


def _convert_step(args: argparse.Namespace) -> dict[str, Any]:
    import torch  # noqa: F401 (imports are not part of the conversion's time)
    from transformers import AutoTokenizer, Glm4MoeForCausalLM, LlamaForCausalLM  # noqa: F401

    from expertweaver import convert, machine, make_recipe

    settings = {
        "method": args.method,
        "mlp_sparsity": args.mlp_sparsity,
        "num_slices": args.num_slices,
        "calibration": [str(args.folder / "text.jsonl")],
        "calibration.num_samples": args.num_samples,
        "calibration.sequence_length": args.sequence_length,
        "calibration.compute_dtype": args.compute_dtype,
    }
    libraries = library_bytes(args.folder, settings, device=args.device)
    parts, before_verifying = _time_the_parts(args.device), _peak_before_verifying()
    recipe = make_recipe(args.folder / "dense", settings=settings)
    seconds = convert(recipe, args.folder / "sparse", device=args.device).seconds
    return {
        "seconds": seconds,
        "parts": parts,
        "library_bytes": libraries,
        "peak_bytes": before_verifying[0],
        "verifying_bytes": machine.peak_memory(),
    }


def _peak_before_verifying() -> list[int | None]:
    """Note the peak memory when verification begins, and forget it; it is in what is returned."""
    from expertweaver import conversion, machine

    peaks: list[int | None] = []
    verify = conversion._verify

    def noted(*args: Any) -> Any:
        peaks.append(machine.peak_memory())
        machine.forget_peak_memory()
        return verify(*args)

    conversion._verify = noted
    return peaks


def _time_the_parts(device: str) -> dict[str, float]:
    """Put a stopwatch around the parts of a layer; the seconds add up in what is returned."""
    import torch

    from expertweaver import weaving
    from expertweaver.calibration.traffic import Streams
    from expertweaver.methods import weave
    from expertweaver.repair import least_squares

    watched: tuple[tuple[str, Any, str], ...] = (
        ("both streams to the FFN, dense FFN", Streams, "enter"),
        ("partition and router", weave, "design"),
        ("repair", weaving, "repair_down"),
        ("  its Gram matrix, activations", least_squares, "_neuron_system"),
        ("converted FFN", Streams, "leave"),
    )

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    seconds = {title: 0.0 for title, _, _ in watched}
    for title, owner, name in watched:
        setattr(owner, name, _stopwatch(getattr(owner, name), title, seconds, now))
    return seconds


def _stopwatch(function: Any, title: str, seconds: dict[str, float], now: Callable[[], float]) -> Any:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = now()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[title] += now() - start

    return timed


_STEPS = {"dense": _dense_step, "convert": _convert_step}


def _print_table(args: argparse.Namespace, passes: list[dict[str, Any]], conversion: dict[str, Any]) -> None:
    import torch

    seconds = [run["seconds"]["dense forward"] for run in passes]
    dense, both = sum(seconds) / len(seconds), " and ".join(f"{each:.1f}" for each in seconds)
    tokens = args.num_samples * args.sequence_length
    size = f"H {args.hidden_size} F {args.intermediate_size} L {args.num_layers}"
    where = torch.cuda.get_device_name(args.device) if args.device != "cpu" else f"{torch.get_num_threads()} threads"
    print(f"{size}, {tokens} tokens, {args.compute_dtype}, method {args.method}, {where}")
    print(f"{'dense forward':<36}{dense:8.1f} s   ({both})")
    for name, spent in conversion["seconds"].items():
        if spent < 0.05:
            continue
        print(f"{name:<36}{spent:8.1f} s   {spent / dense:5.2f} x")
        if name == "layers":
            for part, spent_there in conversion["parts"].items():
                if spent_there:
                    print(f"  {part:<34}{spent_there:8.1f} s   {spent_there / dense:5.2f} x")
    total = sum(conversion["seconds"].values())
    print(f"{'conversion':<36}{total:8.1f} s   {total / dense:5.2f} x")
    peak, libraries = conversion["peak_bytes"], conversion["library_bytes"]
    print(f"peak memory of the conversion {peak / 1e6:.0f} MB, of which libraries {libraries / 1e6:.0f} MB")
    bound = weave_bound(_shape(args), tokens, hidden_bytes=4 if args.compute_dtype == "float32" else 2)
    print(f"two layers, hidden states, two F x F, libraries {(bound + libraries) / 1e6:.0f} MB")
    verifying = conversion["verifying_bytes"]
    print(f"peak memory of verification {verifying / 1e6:.0f} MB")
    print(f"peak memory of the dense pass {max(run['peak_bytes'] for run in passes) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
