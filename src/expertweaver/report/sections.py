"""The sections of the page, each from its values to HTML; a section without values is empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from expertweaver.evaluation.results import Evaluation, ModelQuality
from expertweaver.report import captions, figures, tables, words
from expertweaver.report.conversion import Conversion, LayerPlan
from expertweaver.report.embed import plot
from expertweaver.report.markup import Html, join, tag
from expertweaver.report.usage import UsagePanel, usage_panels

EMPTY = Html("")


def warnings(conversions: Sequence[Conversion], labels: Sequence[str]) -> Html:
    """What the conversions warned of, each warning once, with the conversions that gave it."""
    sources: dict[str, list[str]] = {}
    for conversion, label in zip(conversions, labels, strict=True):
        for warning in conversion.warnings:
            sources.setdefault(warning, []).append(label)
    items = [
        tag("li", warning, EMPTY if len(conversions) == 1 else tag("span", ", ".join(who), class_="aside"))
        for warning, who in sources.items()
    ]
    return tag("ul", *items, class_="warnings") if items else EMPTY


def notes(texts: Sequence[str]) -> Html:
    """The author's remarks, a paragraph each."""
    return join(*(tag("p", text) for text in texts))


def quality(evaluation: Evaluation) -> Html:
    """Figures and table of what the models are worth."""
    legend = legend_list(tables.model_name(evaluation, i) for i in range(len(evaluation.models)))
    drawn = [plot(figures.quality_by_domain(evaluation), "quality", captions.quality(evaluation), "Loss per domain")]
    if evaluation.has_dense and len(evaluation.models) > 1:
        caption = captions.difference(evaluation)
        drawn.append(plot(figures.difference_by_domain(evaluation), "difference", caption, "Loss against dense"))
    text = tag("p", f"Measured on {words.listed(evaluation.text)}.") if evaluation.text else EMPTY
    extra = fold("Results of lm-eval", _yaml(evaluation.lm_eval)) if evaluation.lm_eval else EMPTY
    return join(text, legend, tag("div", *drawn, class_="pair"), tables.quality_table(evaluation), extra)


def speed(measured: Mapping[str, Mapping[str, Any]]) -> Html:
    """The table of speeds with the setup they were measured in."""
    explained = (
        "Ratios are times over those of the dense model in the same run: below 1 is faster, above 1 slower. The ideal "
        "is what the times would be if they followed the arithmetic; the bar is the measured decode ratio, the stroke "
        "the ideal."
    )
    setups = _grouped(measured, lambda name: measured[name].get("setup") or {})
    listed = [
        join(
            tag("p", f"Setup of {words.listed(names)}:" if len(setups) > 1 else "Setup of all measurements:"),
            tables.facts([(str(key), _flat(value)) for key, value in setup.items()]),
        )
        for setup, names in setups
        if setup
    ]
    return join(tag("p", explained), tables.speed_table(measured), *listed)


def budget(conversions: Sequence[Conversion], labels: Sequence[str]) -> Html:
    """Source model, parameters and stored form."""
    sources = _grouped(range(len(conversions)), lambda i: conversions[i].source)
    return join(*(tables.source_list(source) for source, _ in sources), tables.budget_table(conversions, labels))


def layers(conversions: Sequence[Conversion], labels: Sequence[str]) -> Html:
    """What each layer got, and the statistics it was decided on."""
    legend = legend_list(
        join(tag("span", class_="swatch", style=f"background:var({variable})"), name)
        for variable, name in (("--shared", "shared"), ("--routed", "routed, active"), ("--skipped", "skipped"))
    )
    slices = [
        plot(figures.slices_per_layer(conversion.layers), f"slices-{i}", captions.slices(conversion.layers), label)
        for i, (conversion, label) in enumerate(zip(conversions, labels, strict=True))
    ]
    folded = [
        fold(f"Per-layer numbers, {label}", tables.layer_table(conversion.layers, f"Plan of every layer, {label}"))
        for conversion, label in zip(conversions, labels, strict=True)
    ]
    return join(
        tag("h3", "Shared, routed and skipped slices"),
        legend,
        tag("div", *slices, class_="pair"),
        _cv(conversions, labels),
        _frequency(conversions, labels),
        *folded,
    )


def _cv(conversions: Sequence[Conversion], labels: Sequence[str]) -> Html:
    def of(layer: LayerPlan) -> object:
        return layer.cv

    legend = legend_list(
        (
            join(tag("span", class_="box", aria_hidden="true"), "neurons of the layer"),
            join(tag("span", class_="dashes", aria_hidden="true"), "tau"),
        )
    )
    return _distinct(conversions, labels, "Variation across samples", legend, "cv", of, figures.cv_spread, captions.cv)


def _frequency(conversions: Sequence[Conversion], labels: Sequence[str]) -> Html:
    def of(layer: LayerPlan) -> object:
        return layer.activation_frequency

    ramp = join("first layer", tag("span", class_="ramp depth", aria_hidden="true"), "last layer")
    return _distinct(
        conversions,
        labels,
        "How often neurons are among the strongest",
        legend_list([ramp]),
        "frequency",
        of,
        figures.activation_frequency,
        captions.frequency,
    )


def _distinct(
    conversions: Sequence[Conversion],
    labels: Sequence[str],
    heading: str,
    legend: Html,
    name: str,
    values: Callable[[LayerPlan], object],
    draw: Callable[[Sequence[LayerPlan]], Any],
    caption: Callable[[Sequence[LayerPlan]], str],
) -> Html:
    """Draw a statistic of the layers once for all conversions that agree on it."""
    groups = _grouped(range(len(conversions)), lambda i: tuple(values(layer) for layer in conversions[i].layers))
    known = [(conversions[members[0]].layers, members) for key, members in groups if any(v is not None for v in key)]
    if not known:
        return EMPTY
    drawn = [
        plot(draw(plan), f"{name}-{i}", caption(plan), _who(members, labels)) for i, (plan, members) in enumerate(known)
    ]
    return join(tag("h3", heading), legend, tag("div", *drawn, class_="pair"))


def usage(evaluation: Evaluation) -> Html:
    """Heat maps of expert use per domain, for one model at a time."""
    routed = [(i, model) for i, model in enumerate(evaluation.models) if model.routing and model.routing.share]
    if not routed:
        return EMPTY
    choices = [_choice(evaluation, index, place) for place, (index, _) in enumerate(routed)]
    chooser = tag("fieldset", tag("legend", "Model"), *choices, class_="chooser") if len(routed) > 1 else EMPTY
    return join(chooser, *(_usage_of(index, model) for index, model in routed))


def _choice(evaluation: Evaluation, index: int, place: int) -> Html:
    box = tag("input", type="radio", name="usage", value=f"usage-{index}", checked=place == 0)
    return tag("label", box, tag("span", evaluation.models[index].name))


def _usage_of(index: int, model: ModelQuality) -> Html:
    assert model.routing is not None
    panels = usage_panels(model.routing)
    drawn = [
        plot(figures.expert_usage(panel), f"usage-{index}-{i}", captions.usage_panel(panel), panel.domain, level=4)
        for i, panel in enumerate(panels)
    ]
    return tag(
        "div",
        tag("h3", model.name),
        tag("p", captions.usage(model.routing, panels)),
        _usage_legend(panels),
        tag("div", *drawn, class_="many"),
        id=f"usage-{index}",
        class_="panel",
    )


def _usage_legend(panels: Sequence[UsagePanel]) -> Html:
    limit = panels[0].limit
    ends = (f"1/{2**limit} or less", f"{2**limit}× or more")
    ramp = join(ends[0], tag("span", class_="ramp use", aria_hidden="true"), ends[1])
    always = join(tag("span", class_="swatch", style="background:var(--always-on)"), "always on")
    has_always = any(value is None for row in panels[0].ratio_log2 for value in row)
    return legend_list(["use over the even spread:", ramp, *([always] if has_always else [])])


def calibration(conversions: Sequence[Conversion], labels: Sequence[str]) -> Html:
    """The text whose activations decided, once for all conversions that used the same."""
    parts = []
    for used, members in _grouped(range(len(conversions)), lambda i: conversions[i].calibration):
        if used is None:
            continue
        who = _who(members, labels)
        origin = {True: "the text shipped with ExpertWeaver", False: "given by the user", None: "not recorded"}
        entries = [
            ("conversions", who),
            ("text", origin[used.shipped]),
            ("fingerprint", tag("code", used.fingerprint or "not recorded")),
        ]
        parts += [tables.facts(entries), tables.calibration_table(used, f"Calibration text of {who}")]
    return join(*parts)


def recipes(conversions: Sequence[Conversion], labels: Sequence[str]) -> Html:
    """Every recipe as YAML."""
    return join(*(fold(label, _yaml(c.recipe)) for c, label in zip(conversions, labels, strict=True)))


def _yaml(value: Mapping[str, Any]) -> Html:
    text = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, default_flow_style=False, width=100)
    return tag("pre", tag("code", text), tabindex="0")


def fold(title: object, content: Html) -> Html:
    """Content that opens below its title."""
    return tag("details", tag("summary", title), content)


def legend_list(entries: Any) -> Html:
    """A legend of marks and names."""
    return tag("ul", *(tag("li", entry) for entry in entries), class_="legend")


def _who(members: Sequence[int], labels: Sequence[str]) -> str:
    everyone = len(members) == len(labels) > 1
    return "all conversions" if everyone else words.listed(labels[member] for member in members)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(entry)}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _grouped(members: Any, key: Callable[[Any], Any]) -> list[tuple[Any, list[Any]]]:
    """Members by equal keys, in the order of their first appearance; keys need no hash."""
    groups: list[tuple[Any, list[Any]]] = []
    for member in members:
        value = key(member)
        found = next((names for known, names in groups if known == value), None)
        groups.append((value, [member])) if found is None else found.append(member)
    return groups
