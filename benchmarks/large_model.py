"""Convert a checkpoint of a large model's shape with little memory, and set the peak beside its bound.

    python benchmarks/large_model.py 7B --num-samples 4 --sequence-length 256 --num-slices 64

makes random bfloat16 weights shard by shard, converts them by weave in a process of its own, and prints the largest
resident memory of that process, the plan's estimate, and the bound: two decoder layers in float32, three streams of
hidden states, two F x F matrices in float64, and what the process holds after converting a toy. Ends with 1 if the peak
is above the bound. It needs four bytes of disk a parameter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from memory import library_bytes, weave_bound
from shapes import SHAPES, save_random, save_words


def main() -> None:
    args = _parse()
    if args.folder is not None:
        print(json.dumps(_convert(args)))
        return
    shape = replace(SHAPES[args.shape], num_hidden_layers=args.num_layers or SHAPES[args.shape].num_hidden_layers)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        save_random(Path(folder) / "dense", shape)
        words = {"num_samples": args.num_samples, "sequence_length": args.sequence_length}
        save_words(Path(folder) / "text.jsonl", **words)
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    bound = found["libraries"] + weave_bound(shape, args.num_samples * args.sequence_length)
    for title, size in (("peak", found["peak"]), ("planned", found["planned"]), ("bound", bound)):
        print(f"{title:<10}{size / 1e9:8.2f} GB")
    print(f"of it libraries {found['libraries'] / 1e9:.2f} GB; {found['seconds']}")
    for note in found["notes"]:
        print(f"note: {note}")
    sys.exit(int(found["peak"] > bound))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--num-layers", type=int)
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--num-slices", default="auto")
    parser.add_argument("--scratch", type=Path, help="Where the checkpoints go for the time being.")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _convert(args: argparse.Namespace) -> dict[str, object]:
    import torch  # noqa: F401 (loaded before memory is looked at)
    from transformers import AutoTokenizer, Glm4MoeForCausalLM, LlamaForCausalLM  # noqa: F401

    from expertweaver import convert, make_recipe, plan
    from expertweaver.machine import peak_memory
    from expertweaver.progress import Progress

    notes: list[str] = []

    class Listening(Progress):
        def note(self, message: str) -> None:
            notes.append(message)

    settings = {
        "num_slices": args.num_slices if args.num_slices == "auto" else int(args.num_slices),
        "calibration": [str(args.folder / "text.jsonl")],
        "calibration.num_samples": args.num_samples,
        "calibration.sequence_length": args.sequence_length,
    }
    recipe = make_recipe(args.folder / "dense", settings=settings)
    libraries = library_bytes(args.folder, {})
    planned = plan(recipe, estimate_time=False).memory_bytes
    done = convert(recipe, args.folder / "sparse", progress=Listening())
    return {
        "peak": peak_memory(), "planned": planned, "libraries": libraries, "seconds": done.seconds, "notes": notes,
    }  # fmt: skip


if __name__ == "__main__":
    main()
