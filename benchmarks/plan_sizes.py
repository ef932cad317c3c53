"""What a conversion of models of 0.5B to 405B would need on this machine, from their shapes alone.

    python benchmarks/plan_sizes.py

plans for hollow checkpoints, of which `plan` reads the headers. Time is extrapolated from products measured just now.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from shapes import SHAPES, save_hollow

from expertweaver import make_recipe, plan


def main() -> None:
    print(f"{'model':<8}{'memory':>10}{'weights':>10}{'scratch':>10}{'time':>12}   of it")
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            save_hollow(Path(folder), shape)
            found = plan(make_recipe(folder, settings={"mlp_sparsity": 0.25, "num_slices": 64}))
        assert found.seconds is not None
        sizes = (found.memory_bytes, found.output_bytes, found.scratch_bytes)
        gigabytes = "".join(f"{size / 1e9:>7.1f} GB" for size in sizes)
        parts = ", ".join(f"{part} {spent / 3600:.2f} h" for part, spent in found.seconds.items())
        print(f"{name:<8}{gigabytes}{sum(found.seconds.values()) / 3600:>10.2f} h   {parts}")


if __name__ == "__main__":
    main()
