"""A benchmark as a table for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from expertweaver.bench.results import Benchmark, Measurement
from expertweaver.report import words

CAPTION = (
    "Time / dense: median over rounds of the ratio within a round, with quartiles; below 1 is faster. Ideal: if time "
    "followed the bytes read (decode) or the operations (prefill). Share: ideal over measured. Experts touched: "
    "distinct routed experts of a layer in a step, ~ as expected under uniform routing."
)


def render_benchmark(result: Benchmark) -> Table:
    """Lay out every case: one row a model, or a way to run its experts."""
    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left", pad_edge=False)
    table.add_column("")
    table.add_column("model", overflow="fold")
    for title in ("experts", "tokens/s", "time / dense", "ideal", "share", "experts touched"):
        table.add_column(title, justify="right")
    last = None
    for measured in result.measurements:
        case = (measured.case, measured.batch, measured.length)
        if last not in (None, case):
            table.add_section()
        table.add_row(_title(measured) if case != last else "", *_cells(measured))
        last = case
    return table


def setup_line(result: Benchmark) -> str:
    """The whole set-up in one paragraph."""
    models = result.setup["models"]
    named = {key: value for key, value in result.setup.items() if key != "models"}
    sizes = [
        f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items() if not isinstance(value, dict))
        for name, facts in models.items()
    ]
    return "\n".join([", ".join(f"{key} {value}" for key, value in named.items()), *sizes])


def _title(measured: Measurement) -> str:
    return f"decode, batch {measured.batch}" if measured.case == "decode" else f"prefill {measured.length}"


def _cells(measured: Measurement) -> list[str | Text]:
    model, rate = Text(measured.model), words.rate(measured.tokens_per_second)
    if measured.experts is None and measured.distinct_experts is None and measured.ideal_ratio == 1:
        return [model, "", rate, words.times(1.0), "", "", ""]
    spread = f"{measured.ratio.median:.2f} ({measured.ratio.low:.2f}-{measured.ratio.high:.2f})"
    touched = "" if measured.distinct_experts is None else f"{measured.distinct_experts:.1f}"
    mark = "~" if measured.distinct_from == "uniform" else ""
    share = f"{measured.share_of_ideal:.2f}"
    return [model, measured.experts or "", rate, spread, f"{measured.ideal_ratio:.2f}", share, mark + touched]
