"""What `--methods` says: `weave,static+repair,flap:scope=global;bias=false` becomes one validated section an entry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from expertweaver.errors import ExpertWeaverError, Problem, RecipeError
from expertweaver.recipe.loading import parse_setting, validate_recipe
from expertweaver.recipe.schema import MethodSection

CONTROLS = ("static", "random")
"""Methods that every table carries."""

_FORM = "NAME, NAME+repair or NAME:KEY=VALUE;KEY=VALUE"


@dataclass(frozen=True)
class Entry:
    """One method of a comparison.

    Attributes:
        label: The text as given; names the method everywhere.
        method: Its options.
        is_added: A control that was not asked for.
    """

    label: str
    method: MethodSection
    is_added: bool = False

    @property
    def seed_is_free(self) -> bool:
        """Whether the method draws random numbers and no seed was given for it."""
        return "seed" in type(self.method).model_fields and "seed" not in self.method.model_fields_set

    def runs(self, num_seeds: int) -> Iterator[tuple[int | None, MethodSection]]:
        """Seeds 0 to num_seeds - 1 with their options; one run without a seed where it is fixed or there is none."""
        if not self.seed_is_free:
            yield None, self.method
            return
        for seed in range(num_seeds):
            yield seed, self.method.model_copy(update={"seed": seed})


def parse_entries(methods: str | Sequence[str]) -> tuple[Entry, ...]:
    """Read the methods of a comparison, and add the controls that are not among them.

    Args:
        methods: Entries, separated by commas in a string.

    Raises:
        RecipeError: An unknown name (with a suggestion) or option, a wrong value, an entry given twice, or none.
    """
    texts = [text.strip() for text in (methods.split(",") if isinstance(methods, str) else methods)]
    texts = [text for text in texts if text]
    problems: list[Problem] = []
    if not texts:
        problems.append(Problem("--methods", "at least one method", "none", "See `expertweaver ls methods`."))
    for text in dict.fromkeys(text for text in texts if texts.count(text) > 1):
        problems.append(Problem("--methods", "every entry once", f"'{text}' {texts.count(text)} times", "Remove one."))
    entries = []
    for text in dict.fromkeys(texts):
        try:
            entries.append(Entry(text, _method(text)))
        except ExpertWeaverError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*problems)
    given = {entry.label for entry in entries}
    added = [Entry(name, _method(name), is_added=True) for name in CONTROLS if name not in given]
    return (*entries, *added)


def _method(text: str) -> MethodSection:
    head, colon, options = text.partition(":")
    name, *switches = head.split("+")
    values: dict[str, Any] = {"name": name}
    for switch in switches:
        if switch != "repair":
            fix = "Other options stand behind a colon."
            raise RecipeError(Problem(f"--methods {text}", _FORM, f"'+{switch}'", fix))
        values["repair"] = True
    for part in options.split(";") if colon else []:
        if re.fullmatch(r"[^=]+=.*", part) is None:
            fix = "Write for instance expertweaver:tau=0.5;profile=signed."
            raise RecipeError(Problem(f"--methods {text}", _FORM, f"'{part}'", fix))
        key, value = parse_setting(part)
        values[key.strip()] = value
    try:
        return validate_recipe({"source": {"model": "-"}, "method": values}).method
    except RecipeError as error:
        raise RecipeError(*(_named(problem, text) for problem in error.problems)) from None


def _named(problem: Problem, text: str) -> Problem:
    return Problem(f"--methods {text}: {problem.where}", problem.expected, problem.found, problem.fix)
