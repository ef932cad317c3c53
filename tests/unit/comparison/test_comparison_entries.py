from __future__ import annotations

from typing import Any

import pytest

from expertweaver.comparison.entries import parse_entries
from expertweaver.errors import Problem, RecipeError


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as raised:
        parse_entries(text)
    return raised.value.problems


def test_controls_are_added_behind_what_was_asked_for() -> None:
    entries = parse_entries("weave, random")
    assert [(entry.label, entry.is_added) for entry in entries] == [
        ("weave", False),
        ("random", False),
        ("static", True),
    ]


def test_a_repaired_static_is_no_control() -> None:
    assert [entry.label for entry in parse_entries("static+repair,random")] == ["static+repair", "random", "static"]


def test_options_reach_the_method_and_the_label_is_what_was_typed() -> None:
    first, second = parse_entries(["static+repair", "expertweaver:tau=auto;profile=signed;seed=7"])[:2]
    assert first.label == "static+repair"
    assert first.method.repair is True
    values: Any = second.method
    assert (values.name, values.tau, values.profile, values.seed) == ("expertweaver", "auto", "signed", 7)
    assert second.label == "expertweaver:tau=auto;profile=signed;seed=7"


def test_seeds_are_drawn_where_the_method_has_one_that_is_free() -> None:
    random, static, fixed = parse_entries(["random", "static", "random:seed=5"])
    assert [(seed, getattr(m, "seed")) for seed, m in random.runs(3)] == [(0, 0), (1, 1), (2, 2)]  # noqa: B009
    assert [seed for seed, _ in static.runs(3)] == [None]
    assert [(seed, getattr(m, "seed")) for seed, m in fixed.runs(3)] == [(None, 5)]  # noqa: B009


def test_every_mistake_is_named_at_once() -> None:
    problems = problems_of("weeve,static:tauu=1,random:num_shared_slices=-1,static+fix,random:x,random:x")
    assert [problem.where for problem in problems] == [
        "--methods",
        "--methods weeve: method.name",
        "--methods static:tauu=1: method.tauu",
        "--methods random:num_shared_slices=-1: method.num_shared_slices",
        "--methods static+fix",
        "--methods random:x",
    ]
    assert problems[1].fix == "Did you mean 'weave'?"
    assert all((p.expected and p.found and p.fix) for p in problems)


def test_no_method_is_a_mistake() -> None:
    [problem] = problems_of(" , ")
    assert problem.found == "none"
