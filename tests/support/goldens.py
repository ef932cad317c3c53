"""Goldens: a small conversion of every model in the repository, and how far others of the same recipe may be from it.

PYTHONPATH=tests python -m support.goldens write      # write tests/golden/*.json anew; say in the commit why
PYTHONPATH=tests python -m support.goldens measure    # how far threads and the processor's instructions take it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from expertweaver import convert, make_recipe
from expertweaver.assets import shipped_heldout, shipped_model
from expertweaver.cli.output import quiet_libraries
from expertweaver.conversion import Conversion
from expertweaver.inspection import inspect

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "golden"

TOLERANCES = {"static": (0.01, 0.01), "weave": (0.3, 0.05)}
"""By method, the loss over dense and a layer's measures: by what share of the golden's they may differ.

Which neurons `static` keeps hangs on sums alone, which another rounding hardly moves. `weave` decides anew where two
choices are nearly even; what was measured is in docs/determinism.md.
"""

FLOOR = 0.001
"""A measure, a share of one, that is smaller than this is compared as if it were this large."""

BOUND = 0.8
"""`weave` must lose less than this share of what `static` loses, with the same repair, whatever the rounding."""

MEASURES = ("captured_energy", "error_before", "error")
DOCUMENTS = 40
SETTINGS: dict[str, Any] = {
    "mlp_sparsity": 0.5,
    "calibration.num_samples": 32,
    "calibration.sequence_length": 128,
    "method.repair": True,
    "evaluate.max_tokens_per_document": 64,
}
METHODS: dict[str, dict[str, Any]] = {"static": {}, "weave": {"method.rounds": 1, "method.router_steps": 30}}
VARIANTS: dict[str, dict[str, str]] = {
    "again": {},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "no vector instructions": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}


def models() -> dict[str, Path]:
    """Every model that lies in the repository, by its name."""
    folders = [*shipped_model().parent.iterdir(), *(ROOT / "benchmarks" / "models").iterdir()]
    return {folder.name: folder for folder in sorted(folders) if (folder / "config.json").exists()}


def golden_file(name: str) -> Path:
    """Where a model's golden lies."""
    return GOLDENS / f"{name}.json"


def converted(name: str, method: str, folder: Path) -> Conversion:
    """Convert a model by a method as its golden was, into `folder/name-method`."""
    source, text = models()[name], folder / "heldout.jsonl"
    lines = shipped_heldout().read_text("utf-8").splitlines(keepends=True)
    text.write_text("".join(lines[:: len(lines) // DOCUMENTS][:DOCUMENTS]), encoding="utf-8")
    width = inspect(str(source))["intermediate_size"]
    num_slices = next(count for count in range(16, width, 2) if width % count == 0)
    request = {"method": method, "num_slices": num_slices, "evaluate.text": [str(text)]}
    recipe = make_recipe(source, settings=request | SETTINGS | METHODS[method])
    return convert(recipe, folder / f"{name}-{method}")


def facts(done: Path) -> dict[str, Any]:
    """What a golden holds of a conversion."""
    record = done / "expertweaver"
    manifest, quality = (
        json.loads((record / f"{part}.json").read_text("utf-8")) for part in ("manifest", "evaluation")
    )
    dense, sparse = (model["domains"][-1]["nats_per_token"] for model in quality["models"])
    return {
        "dense_nats_per_token": dense,
        "loss_over_dense": sparse - dense,
        "layers": [
            {key: layer["measures"][key] for key in MEASURES if layer["measures"].get(key) is not None}
            for layer in manifest["layers"]
        ],
    }


def differences(golden: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[float, float]:
    """By what share of the golden's two conversions differ: the loss over dense, and the worst of the measures."""
    layers = zip(golden["layers"], found["layers"], strict=True)
    measures = [abs(a[key] - b[key]) / max(a[key], FLOOR) for a, b in layers for key in a]
    return abs(golden["loss_over_dense"] - found["loss_over_dense"]) / golden["loss_over_dense"], max(measures)


def main(verb: str, *arguments: str) -> None:
    """Run a verb; `run FOLDER` converts all models."""
    if verb == "run":
        quiet_libraries()
        for name, method in product(models(), METHODS):
            converted(name, method, Path(arguments[0]))
        return
    with tempfile.TemporaryDirectory() as place:
        base = _run(Path(place) / "base", {})
        if verb == "write":
            for name in models():
                golden = {method: facts(base / f"{name}-{method}") for method in METHODS}
                golden_file(name).write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")
            return
        for variant in arguments or VARIANTS:
            environment = VARIANTS[variant]
            for line in _lines(variant, base, _run(Path(place) / variant.replace(" ", "-"), environment)):
                print(line, flush=True)


def _run(folder: Path, environment: Mapping[str, str]) -> Path:
    """Convert every model in a process of this environment."""
    folder.mkdir()
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment)
    subprocess.run([sys.executable, "-m", "support.goldens", "run", str(folder)], env=variables, check=True)
    return folder


def _lines(variant: str, base: Path, other: Path) -> Iterator[str]:
    for name, method in product(models(), METHODS):
        place = f"{name}-{method}"
        loss, measure = differences(facts(base / place), facts(other / place))
        before, after = _tensors(base / place), _tensors(other / place)
        same = sum(bool((before[key] == after[key]).all()) for key in before)
        owners = [load_file(folder / place / "expertweaver" / "partition.safetensors") for folder in (base, other)]
        moved = sum(int((owners[0][key] != owners[1][key]).sum()) for key in owners[0])
        neurons = sum(owner.numel() for owner in owners[0].values())
        yield (
            f"{variant}, {name}, {method}: {same} of {len(before)} tensors are the same bytes, {moved} of {neurons} "
            f"neurons stand elsewhere, loss over dense differs by {loss:.1%} of itself, a layer's measures by "
            f"{measure:.2%} of themselves at most"
        )


def _tensors(folder: Path) -> dict[str, Any]:
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
