"""The top of the page: what was converted, and one card a model with the numbers that matter first."""

from __future__ import annotations

from collections.abc import Sequence

from expertweaver.evaluation.results import Evaluation
from expertweaver.report import palette, words
from expertweaver.report.compare import ALL, difference_to_dense
from expertweaver.report.conversion import Conversion
from expertweaver.report.markup import Html, join, tag
from expertweaver.report.tables import model_name


def lead(conversions: Sequence[Conversion]) -> Html:
    """One sentence on what was converted into what."""
    if not conversions:
        return Html("")
    models = dict.fromkeys(conversion.source.model for conversion in conversions)
    formats = dict.fromkeys(conversion.format for conversion in conversions)
    methods = dict.fromkeys(conversion.method for conversion in conversions)
    sparsities = dict.fromkeys(words.exact_percent(conversion.budget.mlp_sparsity) for conversion in conversions)
    text = (
        f"{words.listed(models)}, converted by {words.listed(methods)} into {words.listed(formats)} "
        f"at mlp_sparsity {words.listed(sparsities)}."
    )
    return tag("p", text, class_="lead")


def cards(evaluation: Evaluation | None, conversions: Sequence[Conversion], labels: Sequence[str]) -> Html:
    """One card a model: from the evaluation if there is one, else from the budgets."""
    if evaluation is not None and evaluation.models:
        shown = [_measured(evaluation, index, conversions) for index in range(len(evaluation.models))]
        legend = "Nats per predicted token over all domains; beside it the difference to the dense model."
    else:
        shown = [_planned(conversion, label) for conversion, label in zip(conversions, labels, strict=True)]
        legend = "mlp_sparsity: the share of FFN neurons that do not run for a token."
    if not shown:
        return Html("")
    legend += " Bars: the parameters that are active for a token, out of the dense model's."
    listed = tag("ul", *(tag("li", *parts, class_="card") for parts in shown), class_="cards")
    return join(listed, tag("p", legend, class_="cards-note"))


def _measured(evaluation: Evaluation, index: int, conversions: Sequence[Conversion]) -> tuple[Html, ...]:
    model = evaluation.models[index]
    overall = model.quality(ALL)
    difference = difference_to_dense(evaluation, model, ALL)
    delta = Html("") if difference is None else tag("span", words.signed(difference), class_="delta")
    is_dense = evaluation.has_dense and index == 0
    budget = _budget_text(model.num_params, model.num_active_params, conversions)
    whole = evaluation.models[0].num_params if evaluation.has_dense else model.num_params
    color = palette.model_variable(index, evaluation.has_dense)
    return (
        tag("h2", model_name(evaluation, index)),
        tag("p", "dense reference" if is_dense else budget, class_="sub"),
        tag("p", words.decimal(overall.nats_per_token), delta, class_="big"),
        tag("p", "nats per token", class_="unit"),
        *_parameters(model.num_params, model.num_active_params, whole, color),
    )


def _budget_text(num_params: int, num_active_params: int, conversions: Sequence[Conversion]) -> str:
    """The mlp_sparsity of the conversions with just these parameter counts, where they agree on one."""
    found = {
        conversion.budget.mlp_sparsity
        for conversion in conversions
        if (conversion.budget.num_params, conversion.budget.num_active_params) == (num_params, num_active_params)
    }
    return f"mlp_sparsity {words.exact_percent(found.pop())}" if len(found) == 1 else "converted"


def _planned(conversion: Conversion, label: str) -> tuple[Html, ...]:
    budget = conversion.budget
    return (
        tag("h2", label),
        tag("p", f"{conversion.method}, {conversion.format}", class_="sub"),
        tag("p", words.exact_percent(budget.mlp_sparsity), class_="big"),
        tag("p", "mlp_sparsity", class_="unit"),
        *_parameters(budget.num_params, budget.num_active_params, budget.dense_num_params, "--model-0"),
    )


def _parameters(num_params: int, num_active_params: int, dense_num_params: int, color: str) -> tuple[Html, Html]:
    """A bar of the parameters that run per token, out of the dense model's, and the counts in words."""
    share = min(1.0, num_active_params / dense_num_params)
    fill = tag("span", class_="bar-fill", style=f"width:{share:.2%};background:var({color})")
    counts = (("active parameters", num_active_params), ("parameters", num_params))
    rows = [
        tag("div", tag("dt", name), tag("dd", words.short_count(count), title=words.count(count)))
        for name, count in counts
    ]
    return tag("span", fill, class_="bar-frame", aria_hidden="true"), tag("dl", *rows, class_="params")
