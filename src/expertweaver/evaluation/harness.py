"""Benchmarks of lm-evaluation-harness, through the optional extra `lm-eval`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expertweaver.errors import Problem, RecipeError

BOOTSTRAP_RESAMPLES = 1000  # the harness takes 100,000 in a pool of processes by default
TASK_EXPECTED = "the name of an lm-eval task, a task's .yaml file, or a folder of such files"


@dataclass(frozen=True)
class Harness:
    """Tasks that were found, ready to run on any number of models."""

    task_names: tuple[str, ...]
    manager: Any

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, Any]]:
        """Run the tasks on a loaded model; metrics by task, named as lm-eval names them (`acc,none`)."""
        wrapper = _require("lm_eval.models.huggingface").HFLM
        found = _require("lm_eval.evaluator").simple_evaluate(
            model=wrapper(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1),
            tasks=list(self.task_names),
            task_manager=self.manager,
            bootstrap_iters=BOOTSTRAP_RESAMPLES,
            log_samples=False,
        )
        return {task: _metrics(values) for task, values in found["results"].items()}


def _metrics(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("alias", "name")}


def find_tasks(tasks: Sequence[str]) -> Harness:
    """Look up tasks by name or path before any model is loaded.

    Args:
        tasks: Names of lm-eval tasks, paths of task files, or folders: all tasks in the files below them.

    Raises:
        RecipeError: The extra is not installed, or a task is not found.
    """
    _require("lm_eval.models.huggingface")
    names: list[str] = []
    folders: list[str] = []
    for task in tasks:
        path = Path(task).expanduser()
        folders += [str(path if path.is_dir() else path.parent)] if path.exists() else []
        names += _names_at(path) if path.exists() else [task]
    manager = _require("lm_eval.tasks").TaskManager(include_path=list(dict.fromkeys(folders)) or None)
    for name in names:
        _require_task(name, manager.all_tasks)
    return Harness(tuple(dict.fromkeys(names)), manager)


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        fix = "Install it with: pip install 'expertweaver[lm-eval]'"
        problem = Problem("tasks", "the package lm-eval", f"{type(error).__name__}: {error}", fix)
        raise RecipeError(problem) from error


def _names_at(path: Path) -> list[str]:
    """Names of the tasks below a folder, or of the task or group of one file."""
    if not path.is_dir():
        config = _read_task(path)
        name = config.get("group") or config.get("task")
        if not isinstance(name, str):
            raise RecipeError(Problem(str(path), "the key 'task'", "none", "Give the file of a task, not a template."))
        return [name]
    tasks = [_read_task(file).get("task") for file in sorted(path.glob("**/*.yaml"))]
    names = [task for task in tasks if isinstance(task, str)]
    if not names:
        raise RecipeError(Problem(str(path), TASK_EXPECTED, "a folder without task files", "Check the path."))
    return names


class _TaskLoader(yaml.SafeLoader):
    """Reads task files without running the functions they name (`!function module.name`)."""


_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _read_task(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())
        raise RecipeError(Problem(str(path), "a readable YAML file", found, "Mend or remove the file.")) from error
    if not isinstance(config, dict):
        raise RecipeError(Problem(str(path), "a YAML mapping", type(config).__name__, "Give a task's .yaml file."))
    return config


def _require_task(name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"Did you mean '{near[0]}'?" if near else "`lm-eval ls tasks` lists the names."
        raise RecipeError(Problem(f"tasks: {name}", TASK_EXPECTED, "neither", fix))
