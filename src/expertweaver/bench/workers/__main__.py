"""Time one model in one engine, as the process that started this one asks: JSON lines in, JSON lines out.

    python FOLDER on_vllm '{"model": "path", ...}'

This folder is run by the Python of the engine's own environment, where ExpertWeaver need not be installed: its files
import nothing of it, except `on_transformers`, which our own Python runs. What an engine prints goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main() -> None:
    """Open the model, say so, and then answer every line until there is none."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")

    try:
        engine: Any = importlib.import_module(sys.argv[1]).Engine(**json.loads(sys.argv[2]))
    except ImportError as error:
        answer({"missing": f"{type(error).__name__}: {error}"})
        return
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is told to the parent
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"setup": engine.setup})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(getattr(engine, request.pop("do"))(**request))
        except Exception as error:  # noqa: BLE001 - likewise
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
