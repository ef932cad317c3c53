"""Which format holds a model and a method exactly, decided before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from expertweaver.dense.model import DenseModel
from expertweaver.errors import ArchitectureError, Problem
from expertweaver.partition.budget import SliceBudget
from expertweaver.recipe.schema import AUTO_FORMAT, MethodSection, OutputSection
from expertweaver.registry import module_names

LLAMA_CPP = "llama.cpp"
"""Its name among a format's engines."""


@dataclass(frozen=True)
class Choice:
    """A format by name, and what to tell the user about how it was chosen."""

    name: str
    notes: tuple[str, ...] = ()


def choose_format(
    wanted: str, dense: DenseModel, dtype: str, method: MethodSection, budget: SliceBudget | None
) -> Choice:
    """Check the format asked for, or choose the first that is exact.

    Args:
        wanted: A format, or auto.
        dense: The source.
        dtype: Type of the written weights, by name.
        method: The method and its options.
        budget: The slices; None where the request for them is wrong, which somebody else reports.

    Raises:
        ArchitectureError: All that the format cannot hold, or for auto what each of the formats cannot.
    """
    if wanted != AUTO_FORMAT:
        problems = format_problems(wanted, dense, dtype, method, budget)
        if problems:
            raise ArchitectureError(*problems)
        return Choice(wanted, _notes(wanted, dense, dtype, method, budget))
    refused: dict[str, list[Problem]] = {}
    for name in by_preference():
        problems = format_problems(name, dense, dtype, method, budget)
        if not problems:
            return Choice(name, (_why(name, refused), *_notes(name, dense, dtype, method, budget)))
        refused[name] = problems
    raise ArchitectureError(*(_summary(name, problems) for name, problems in refused.items()))


def by_preference() -> list[str]:
    """All formats in the order in which auto tries them: the default, then those that more engines know."""
    from expertweaver.formats.base import load_format

    default = OutputSection.model_fields["format"].default
    return sorted(
        module_names("formats"),
        key=lambda name: (name != default, -len(load_format(name).capabilities.engines), name),
    )


def format_problems(
    name: str, dense: DenseModel, dtype: str, method: MethodSection, budget: SliceBudget | None
) -> list[Problem]:
    """What of a model and a method a format cannot hold exactly; empty if it fits."""
    return [*_model_problems(name, dense, dtype), *method_problems(name, method, budget)]


def _model_problems(name: str, dense: DenseModel, dtype: str) -> list[Problem]:
    import torch

    from expertweaver.formats.base import load_format

    return load_format(name).check(dense, getattr(torch, dtype))


def method_problems(name: str, method: MethodSection, budget: SliceBudget | None) -> list[Problem]:
    """What of a method a format cannot hold exactly; empty if it fits."""
    from expertweaver.formats.base import load_format

    can = load_format(name).capabilities
    where, expected = f"method {method.name}", f"what the format {name} can hold"
    if lacking := [need for need in method.needs if need not in can.needs]:
        fix = f"Compare it with `expertweaver compare`, or set {method.stock_settings}."
        if others := [other for other in module_names("formats") if _holds(other, method)]:
            fix = f"Pass --format {' or '.join(others)}. Or c{fix[1:]}"
        return [Problem(where, expected, " and ".join(lacking), fix)]
    problems = []
    if method.needs_selection_bias and not can.selection_bias:
        fix = f"Set {method.bias_setting}." if method.bias_setting else OTHER_METHOD
        problems.append(Problem(where, expected, "a router with a bias", fix))
    share = method.fixed_share(budget) if budget is not None else None
    found = _share_refused(share, can.shared_expert, may_differ=can.layer_adaptive_share)
    if budget is not None and found is not None:
        value = "0" if can.shared_expert == "none" else "a number"
        fix = f"Set {method.share_setting} to {value}." if method.share_setting else OTHER_METHOD
        problems.append(Problem(where, expected, found, fix))
    return problems


def _holds(name: str, method: MethodSection) -> bool:
    """Whether a format holds all that a method's designs need beyond the common."""
    from expertweaver.formats.base import load_format

    return set(method.needs) <= load_format(name).capabilities.needs


OTHER_METHOD = "Use another method, such as weave with method.router_bias=false and a fixed method.shared_share."


def _share_refused(share: int | None, shared_expert: str, *, may_differ: bool) -> str | None:
    """What of a share of slices is refused; `share` is None where layers may share unlike."""
    if share is None and not may_differ:
        return "a shared share that each layer chooses"
    if shared_expert == "none" and share != 0:
        return f"{share} shared slices in every layer, where the class has no shared expert"
    if shared_expert == "required" and share == 0:
        return "no shared slice, where the class always has a shared expert"
    return None


def least_asked(names: Iterable[str], method: MethodSection, budget: SliceBudget | None) -> tuple[str, str] | None:
    """Of some formats the one that asks least of a method, and what it asks, in sentences; None for no format."""
    can = [name for name in by_preference() if name in set(names) and _holds(name, method)]
    asked = {name: list(dict.fromkeys(p.fix for p in method_problems(name, method, budget))) for name in can}
    return min(((name, " ".join(fixes)) for name, fixes in asked.items()), key=lambda x: len(asked[x[0]]), default=None)


def _notes(
    name: str, dense: DenseModel, dtype: str, method: MethodSection, budget: SliceBudget | None
) -> tuple[str, ...]:
    """What engines leave out in this format, and for each of them a format in which it does not."""
    from expertweaver.formats.base import load_format
    from expertweaver.formats.parts.fit import engine_notes, unserved

    can = {other: load_format(other).capabilities for other in by_preference()}
    lost = {other: {e for engines in unserved(can[other], dense).values() for e in engines} for other in can}
    notes = engine_notes(name, can[name], dense)
    if LLAMA_CPP in can[name].engines and (many := _too_many(method, budget)):
        notes.append(many)
        lost[name].discard(LLAMA_CPP)  # in any format it is the same
    for engine in sorted(lost[name]):
        fitting = [
            other
            for other in can
            if engine in can[other].engines and engine not in lost[other] and not _model_problems(other, dense, dtype)
        ]
        if best := least_asked(fitting, method, budget):
            notes.append(f"{engine} would serve this model in the format {best[0]}. {best[1]}".rstrip(" ."))
    return tuple(notes)


def _too_many(method: MethodSection, budget: SliceBudget | None) -> str:
    """Say that there may be more routed experts than llama.cpp loads; empty if there are not."""
    from expertweaver.gguf.architectures.base import MAX_EXPERTS

    experts = 0 if budget is None else budget.num_slices - (method.fixed_share(budget) or 0)
    if experts <= MAX_EXPERTS:
        return ""
    return f"llama.cpp loads at most {MAX_EXPERTS:,} routed experts, and there may be {experts:,}: see --num-slices"


def _why(name: str, refused: dict[str, list[Problem]]) -> str:
    """Why auto chose a format, in one line."""
    passed = "; ".join(f"{other} cannot hold {problems[0].found}" for other, problems in refused.items())
    return f"format {name}, chosen by auto: it holds this model and method exactly" + (f" ({passed})" if passed else "")


def _summary(name: str, problems: list[Problem]) -> Problem:
    found = "; ".join(problem.found for problem in problems)
    return Problem(f"format {name}", "a model and a method that it holds exactly", found, problems[0].fix)
