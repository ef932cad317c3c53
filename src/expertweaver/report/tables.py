"""One function a table, from values to HTML; numbers are right-aligned and every table scrolls in its own frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expertweaver.evaluation.results import DomainQuality, Evaluation, ModelQuality
from expertweaver.report import palette, words
from expertweaver.report.compare import ALL, difference_to_dense, domains_of
from expertweaver.report.conversion import Calibration, Conversion, LayerPlan, Source
from expertweaver.report.markup import Html, join, tag

Row = Sequence[object]


@dataclass(frozen=True)
class RowGroup:
    """Rows under a heading of their own."""

    heading: object
    rows: Sequence[Row]


def table(caption: str, head: Sequence[object], groups: Sequence[RowGroup], *, is_narrow: bool = False) -> Html:
    """Write a table of one column of words and further ones of numbers; a narrow one keeps its columns together."""
    kinds = ["text", *["number"] * (len(head) - 1)]
    columns = join(*(tag("th", name, scope="col", class_=kind) for name, kind in zip(head, kinds, strict=True)))
    bodies = join(*(_body(group, kinds) for group in groups))
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", columns)), bodies)
    frame = "scroll narrow" if is_narrow else "scroll"
    return tag("div", inner, class_=frame, tabindex="0", role="region", aria_label=caption)


def _body(group: RowGroup, kinds: Sequence[str]) -> Html:
    heading = Html("")
    if group.heading:
        cell = tag("th", group.heading, scope="rowgroup", colspan=len(kinds), class_="text group")
        heading = tag("tr", cell)
    return tag("tbody", heading, join(*(_row(row, kinds) for row in group.rows)))


def _row(row: Row, kinds: Sequence[str]) -> Html:
    first, *rest = row
    cells = [tag("td", value, class_=kind) for value, kind in zip(rest, kinds[1:], strict=True)]
    return tag("tr", tag("th", first, scope="row", class_=kinds[0]), join(*cells))


def model_name(evaluation: Evaluation, index: int) -> Html:
    """A model's marker, as in the figures, and its name."""
    glyph = palette.model_mark(index, evaluation.has_dense)[1]
    color = f"color:var({palette.model_variable(index, evaluation.has_dense)})"
    mark = tag("span", glyph, class_="mark", style=color, aria_hidden="true")
    return tag("span", mark, tag("span", evaluation.models[index].name, class_="name"), class_="model")


def quality_table(evaluation: Evaluation) -> Html:
    """Every model in every domain, the whole text first."""
    head = [
        "model",
        "nats/token",
        "95 % interval",
        "difference to dense",
        "perplexity",
        "KL to dense",
        "top-1 agreement",
    ]
    groups = [_quality_group(evaluation, domain) for domain in domains_of(evaluation)]
    return table("Quality of every model, per domain", head, groups)


def _quality_group(evaluation: Evaluation, domain: str) -> RowGroup:
    first = evaluation.models[0].quality(domain)
    size = f"{words.count(first.num_documents)} documents, {words.count(first.num_tokens)} tokens"
    title = "all domains" if domain == ALL else domain
    rows = [
        (model_name(evaluation, index), *_quality_cells(model.quality(domain), evaluation, model))
        for index, model in enumerate(evaluation.models)
    ]
    return RowGroup(join(tag("span", title), tag("span", size, class_="aside")), rows)


def _quality_cells(entry: DomainQuality, evaluation: Evaluation, model: ModelQuality) -> tuple[str, ...]:
    return (
        words.decimal(entry.nats_per_token),
        words.interval(entry.interval),
        words.signed(difference_to_dense(evaluation, model, entry.domain)),
        words.perplexity(entry.perplexity),
        words.decimal(entry.kl_to_dense),
        words.percent(entry.top1_agreement, 1),
    )


def budget_table(conversions: Sequence[Conversion], labels: Sequence[str]) -> Html:
    """Parameters, slices and their stored form, one column a conversion."""
    runs = [
        ("mlp_sparsity", lambda c: words.exact_percent(c.budget.mlp_sparsity)),
        ("num_params", lambda c: words.count(c.budget.num_params)),
        ("num_active_params", lambda c: words.count(c.budget.num_active_params)),
        ("of the dense model's parameters", lambda c: _active_share(c)),
        ("dense num_params", lambda c: words.count(c.budget.dense_num_params)),
        ("slices of an FFN", lambda c: f"{c.budget.num_slices} × {c.budget.slice_width} neurons"),
        ("active slices per token", lambda c: words.count(c.budget.active_slices)),
    ]
    stored = [
        ("format", lambda c: c.format),
        ("method", lambda c: c.method),
        ("num_experts", lambda c: words.extent(c.stored.num_experts)),
        ("num_experts_per_tok", lambda c: words.extent(c.stored.num_experts_per_tok)),
        ("n_shared_experts", lambda c: words.extent(c.stored.n_shared_experts)),
        ("moe_intermediate_size", lambda c: words.extent(c.stored.moe_intermediate_size)),
    ]
    groups = [
        RowGroup(title, [(name, *(value(conversion) for conversion in conversions)) for name, value in rows])
        for title, rows in (("What runs per token", runs), ("As stored", stored))
    ]
    return table("Budget of every conversion", ["", *labels], groups, is_narrow=True)


def _active_share(conversion: Conversion) -> str:
    return words.percent(conversion.budget.num_active_params / conversion.budget.dense_num_params, 1)


def source_list(source: Source) -> Html:
    """The dense model's identity and widths."""
    entries: list[tuple[str, object]] = [
        ("model", source.model),
        ("revision", tag("code", source.revision or "not recorded")),
        ("family", source.family),
        ("hidden_size", words.count(source.hidden_size)),
        ("intermediate_size", words.count(source.intermediate_size)),
        ("num_hidden_layers", words.count(source.num_hidden_layers)),
        ("vocab_size", words.count(source.vocab_size)),
    ]
    return facts(entries)


def facts(entries: Sequence[tuple[str, object]]) -> Html:
    """A list of names and values."""
    return tag("dl", join(*(tag("div", tag("dt", n), tag("dd", v)) for n, v in entries)), class_="facts")


def calibration_table(calibration: Calibration, caption: str) -> Html:
    """Samples and tokens per domain."""
    rows: list[Row] = [
        (name, words.count(domain.num_samples), words.count(domain.num_tokens))
        for name, domain in calibration.domains.items()
    ]
    total = sum(domain.num_samples for domain in calibration.domains.values())
    rows.append((tag("strong", "all"), words.count(total), words.count(calibration.num_tokens)))
    return table(caption, ["domain", "samples", "tokens"], [RowGroup("", rows)], is_narrow=True)


def layer_table(layers: Sequence[LayerPlan], caption: str) -> Html:
    """Every number of the per-layer plan."""
    head = ["layer", "shared", "routed", "active routed", "alpha", "r", "tau", "CV mean", "CV median"]
    head += ["router scale", "max |router logit|", "clip"]
    rows = [
        (
            layer.layer,
            layer.num_shared,
            layer.num_routed,
            layer.num_active_routed,
            words.decimal(layer.alpha),
            words.decimal(layer.r),
            words.decimal(layer.cv.tau if layer.cv else None, 2),
            words.decimal(layer.cv.mean if layer.cv else None),
            words.decimal(layer.cv.quantiles[len(layer.cv.quantiles) // 2] if layer.cv else None),
            _power_of_two(layer.router_scale_log2),
            words.NOTHING if layer.max_abs_router_logit is None else f"{layer.max_abs_router_logit:.2g}",
            layer.clip or words.NOTHING,
        )
        for layer in layers
    ]
    return table(caption, head, [RowGroup("", rows)])


def _power_of_two(exponent: float | None) -> Html:
    if exponent is None:
        return Html(words.NOTHING)
    return join("2", tag("sup", f"{exponent:g}".replace("-", "−")))


def speed_table(speed: Mapping[str, Mapping[str, Any]]) -> Html:
    """Tokens per second, time over the dense model's, and the ratio that the skipped arithmetic allows."""
    head = [
        "model",
        "decode tokens/s",
        "decode time / dense",
        "prefill tokens/s",
        "prefill time / dense",
        "ideal time / dense",
        "decode and ideal",
    ]
    top = max((value for entry in speed.values() for value in _ratios(entry)), default=1.0)
    rows = [
        (
            name,
            words.rate(entry.get("decode_tokens_per_second")),
            words.times(entry.get("decode_ratio")),
            words.rate(entry.get("prefill_tokens_per_second")),
            words.times(entry.get("prefill_ratio")),
            words.times(entry.get("ideal_ratio")),
            _meter(entry.get("decode_ratio"), entry.get("ideal_ratio"), top),
        )
        for name, entry in speed.items()
    ]
    return table("Speed of every model", head, [RowGroup("", rows)])


def _ratios(entry: Mapping[str, Any]) -> list[float]:
    return [entry[key] for key in ("decode_ratio", "prefill_ratio", "ideal_ratio") if entry.get(key) is not None]


def _meter(measured: float | None, ideal: float | None, top: float) -> Html:
    """A bar as long as the measured ratio with a stroke at the ideal one; the numbers stand beside it."""
    if measured is None or top <= 0:
        return Html(words.NOTHING)
    bar = tag("span", class_="bar", style=f"width:{max(0.0, measured) / top:.2%}")
    stroke = tag("span", class_="stroke", style=f"left:{ideal / top:.2%}") if ideal is not None else Html("")
    return tag("span", bar, stroke, class_="meter", aria_hidden="true")
