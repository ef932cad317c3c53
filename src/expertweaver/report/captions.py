"""The sentence under each figure: what is drawn, how to read it, and what these values say."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from expertweaver.evaluation.results import Evaluation, RoutingUsage
from expertweaver.report import words
from expertweaver.report.conversion import LayerPlan
from expertweaver.report.usage import UsagePanel


def quality(evaluation: Evaluation) -> str:
    """Explain the quality figure."""
    has_interval = any(entry.interval for model in evaluation.models for entry in model.domains)
    bars = " Bars are 95 % bootstrap intervals over documents." if has_interval else ""
    return f"Mean loss per predicted token in each domain; further left is better.{bars}"


def difference(evaluation: Evaluation) -> str:
    """Explain the difference figure and name where each model loses most."""
    dense = evaluation.models[0]
    sentences = []
    for model in evaluation.models[1:]:
        losses = {
            entry.domain: entry.nats_per_token - dense.quality(entry.domain).nats_per_token
            for entry in model.domains
            if entry.domain != "all"
        }
        if losses:
            worst = max(losses, key=lambda domain: losses[domain])
            sentences.append(f"{model.name} loses most in {worst} ({words.signed(losses[worst])}).")
    return " ".join(["Distance from the dense model, on its own scale; zero is no loss.", *sentences])


def slices(layers: Sequence[LayerPlan]) -> str:
    """Explain the slices figure."""
    shares = {layer.layer: layer.num_shared / layer.num_slices for layer in layers}
    low, high = (pick(shares, key=lambda layer: shares[layer]) for pick in (min, max))
    skipped = {layer.num_skipped / layer.num_slices for layer in layers}
    rest = f" Every layer skips {words.exact_percent(skipped.pop())} for a token." if len(skipped) == 1 else ""
    if shares[low] == shares[high]:
        return f"Every layer shares {words.percent(shares[low])} of its slices.{rest}"
    return (
        f"Shared slices run for every token: from {words.percent(shares[low])} of layer {low} to "
        f"{words.percent(shares[high])} of layer {high}, {words.percent(fmean(shares.values()))} on average.{rest}"
    )


def cv(layers: Sequence[LayerPlan]) -> str:
    """Explain the spread of the coefficient of variation."""
    known = [layer for layer in layers if layer.cv is not None]
    taus = sorted({layer.cv.tau for layer in known if layer.cv is not None})
    tau = f"tau ({words.listed(f'{value:g}' for value in taus)})" if len(taus) <= 3 else "tau"
    parts = [
        "How much a neuron's activity varies from sample to sample. Boxes hold the middle half of a layer's neurons, "
        "the line in them is the median, whiskers reach from 5 % to 95 %; the dashed line is "
        f"{tau}."
    ]
    shares = [layer.r for layer in known if layer.r is not None]
    if shares:
        parts.append(
            f"Neurons above tau count as specialised: {words.percent(min(shares))} to {words.percent(max(shares))} "
            "of a layer."
        )
    return " ".join(parts)


def frequency(layers: Sequence[LayerPlan]) -> str:
    """Explain the activation-frequency curves."""
    curves = [layer.activation_frequency for layer in layers if layer.activation_frequency is not None]
    middle = [curve[len(curve) // 2] for curve in curves]
    return (
        "One line a layer: the share of tokens on which a neuron is among the strongest by gate activation, neurons "
        "sorted. A flat line means that all neurons take turns, a steep end that a few work all the time. The middle "
        f"neuron is among them on {words.percent(min(middle))} to {words.percent(max(middle))} of the tokens, "
        "depending on the layer."
    )


def usage(routing: RoutingUsage, panels: Sequence[UsagePanel]) -> str:
    """Explain the heat maps and state the even spread."""
    even = sorted({value for panel in panels for value in panel.even_share if value is not None})
    if not even:
        return f"Every stored expert is always on: num_experts_per_tok is {words.extent(routing.num_experts_per_tok)}."
    first, last = words.percent(even[0], 1), words.percent(even[-1], 1)
    spread = f"{first} of the tokens" if first == last else f"{first} to {last} of the tokens, depending on the layer"
    always = any(value is None for panel in panels for row in panel.ratio_log2 for value in row)
    apart = (
        " Grey cells serve every token (shared slices that the format stores as experts) and are left out of that "
        "expectation."
        if always
        else ""
    )
    return (
        f"With {words.extent(routing.num_experts_per_tok)} experts a token and an even spread, an expert would serve "
        f"{spread}.{apart} "
        "Rows are layers, from the first at the top; experts stand from most to least used over all domains, in the "
        "same order in every panel, so that a domain's own preferences show as breaks in the pattern."
    )


def usage_panel(panel: UsagePanel) -> str:
    """One number for one domain's heat map."""
    factor = panel.typical_factor
    return (
        "Every expert is always on."
        if factor is None
        else f"Typically a factor {words.decimal(factor, 2)} away from even."
    )
