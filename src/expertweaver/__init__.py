"""ExpertWeaver turns a pretrained dense GLU language model into a sparse Mixture-of-Experts.

from expertweaver import convert, evaluate, make_recipe

convert(make_recipe("path/to/model", settings={"mlp_sparsity": 0.25}), "path/to/output")
evaluate(["path/to/output"], against="path/to/model", text=["held_out.jsonl"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expertweaver.bench.request import BenchOptions
    from expertweaver.bench.results import Benchmark
    from expertweaver.bench.run import benchmark
    from expertweaver.bench.speed import measure_speed
    from expertweaver.comparison.results import Comparison
    from expertweaver.comparison.run import compare
    from expertweaver.conversion import Conversion, convert
    from expertweaver.demonstration import demo
    from expertweaver.errors import ExpertWeaverError
    from expertweaver.evaluation.quality import evaluate
    from expertweaver.evaluation.results import Evaluation
    from expertweaver.gguf.run import Export, export
    from expertweaver.inspection import inspect
    from expertweaver.planning import Plan, plan
    from expertweaver.publishing import Upload, push
    from expertweaver.recipe.loading import make_recipe
    from expertweaver.recipe.schema import Recipe
    from expertweaver.report.contents import Report
    from expertweaver.report.page import write_report
    from expertweaver.serving.index_loop import use_index_loop
    from expertweaver.serving.registration import register

__version__ = "0.1.0"

_HOMES = {
    "convert": "expertweaver.conversion",
    "Conversion": "expertweaver.conversion",
    "plan": "expertweaver.planning",
    "Plan": "expertweaver.planning",
    "push": "expertweaver.publishing",
    "Upload": "expertweaver.publishing",
    "evaluate": "expertweaver.evaluation.quality",
    "Evaluation": "expertweaver.evaluation.results",
    "compare": "expertweaver.comparison.run",
    "Comparison": "expertweaver.comparison.results",
    "export": "expertweaver.gguf.run",
    "Export": "expertweaver.gguf.run",
    "inspect": "expertweaver.inspection",
    "demo": "expertweaver.demonstration",
    "make_recipe": "expertweaver.recipe.loading",
    "Recipe": "expertweaver.recipe.schema",
    "benchmark": "expertweaver.bench.run",
    "Benchmark": "expertweaver.bench.results",
    "BenchOptions": "expertweaver.bench.request",
    "register": "expertweaver.serving.registration",
    "measure_speed": "expertweaver.bench.speed",
    "use_index_loop": "expertweaver.serving.index_loop",
    "Report": "expertweaver.report.contents",
    "write_report": "expertweaver.report.page",
    "ExpertWeaverError": "expertweaver.errors",
}
"""Public names and the modules they live in; imported on first use, so that importing the package is quick."""

__all__ = [
    "BenchOptions",
    "Benchmark",
    "Comparison",
    "Conversion",
    "Evaluation",
    "ExpertWeaverError",
    "Export",
    "Plan",
    "Recipe",
    "Report",
    "Upload",
    "__version__",
    "benchmark",
    "compare",
    "convert",
    "demo",
    "evaluate",
    "export",
    "inspect",
    "make_recipe",
    "measure_speed",
    "plan",
    "push",
    "register",
    "use_index_loop",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'expertweaver' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
