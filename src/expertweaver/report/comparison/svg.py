"""Quality against budget as a small drawing that any page can show, without a script: quality.svg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from expertweaver.comparison.results import Comparison
from expertweaver.comparison.summary import Standing
from expertweaver.evaluation.results import ALL
from expertweaver.report import palette, words
from expertweaver.report.comparison import marks
from expertweaver.report.comparison.scale import root, root_ticks

PLOT_WIDTH = 560
LEFT, TOP, BOTTOM = 76, 64, 58
LABEL_GAP = 17
LABEL_LENGTH = 34
CHARACTER = 6.9
"""About how wide a character of a label is."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, SOFT, FAINT = (pair[0] for pair in (palette.INK, palette.INK_SOFT, palette.INK_FAINT))
_SHAPES = {
    "diamond": "M0,-5.5 L5.5,0 L0,5.5 L-5.5,0 Z",
    "circle": "M-4.5,0 A4.5,4.5 0 1,0 4.5,0 A4.5,4.5 0 1,0 -4.5,0 Z",
    "square": "M-4,-4 H4 V4 H-4 Z",
    "triangle-up": "M0,-5 L5,4 H-5 Z",
    "x": "M-4.5,-2.5 L-2.5,-4.5 L0,-2 L2.5,-4.5 L4.5,-2.5 L2,0 L4.5,2.5 L2.5,4.5 L0,2 L-2.5,4.5 L-4.5,2.5 L-2,0 Z",
    "star": "M0,-6 L1.5,-2 L5.7,-1.9 L2.4,0.8 L3.5,4.9 L0,2.5 L-3.5,4.9 L-2.4,0.8 L-5.7,-1.9 L-1.5,-2 Z",
}


@dataclass(frozen=True)
class _Line:
    """One method: its points over all documents, by budget."""

    index: int
    label: str
    is_oracle: bool
    points: tuple[Standing, ...]


@dataclass(frozen=True)
class _Frame:
    """From values to places on the drawing."""

    budgets: tuple[float, float]
    losses: tuple[float, float]
    height: float

    def x(self, mlp_sparsity: float) -> float:
        low, high = self.budgets
        share = (mlp_sparsity - low) / (high - low) if high > low else 0.5
        return LEFT + 26 + share * (PLOT_WIDTH - 52)

    def y(self, loss: float) -> float:
        low, high = (root(value) for value in self.losses)
        share = (root(loss) - low) / (high - low) if high > low else 0.0
        return TOP + self.height - 10 - share * (self.height - 20)


def quality_svg(comparison: Comparison) -> str:
    """Draw the loss over dense of every method against the budget, over all documents, labelled at the line ends."""
    lines = _lines(comparison)
    values = [value for line in lines for point in line.points for value in _ends(point)]
    plot_height = float(max(380, LABEL_GAP * (len(lines) + 2)))
    budgets = comparison.mlp_sparsities
    frame = _Frame((budgets[0], budgets[-1]), (min(0.0, *values), max(0.0, *values)), plot_height)
    widest = max(len(_shown(line)) for line in lines)
    width = LEFT + PLOT_WIDTH + 40 + round(widest * CHARACTER)
    height = round(TOP + plot_height + BOTTOM)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="{FONT}" font-size="13">',
        f"<title>{escape(_title(comparison))}</title>",
        f'<rect width="{width}" height="{height}" fill="{palette.SURFACE[0]}"/>',
        *_headings(comparison),
        *_axes(comparison, frame, values),
        *(part for line in lines for part in _curve(line, frame)),
        *_labels(lines, frame),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart so that neighbours keep a gap, in the same order, as little as that takes.

    Args:
        places: Wanted places, in any order.
        gap: Least distance.
        low: Least place.
        high: Largest place; exceeded only where not all fit.
    """
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    groups: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        wanted, size = places[i] - rank * gap, 1
        while groups and groups[-1][0] > wanted:  # they would touch: stand together around their mean
            before, count = groups.pop()
            wanted, size = (before * count + wanted * size) / (count + size), count + size
        groups.append((wanted, size))
    fitted = [wanted for wanted, size in groups for _ in range(size)]
    last = high - (len(places) - 1) * gap
    moved = list(places)
    for rank, (i, wanted) in enumerate(zip(order, fitted, strict=True)):
        moved[i] = max(low, min(wanted, last)) + rank * gap
    return moved


def _lines(comparison: Comparison) -> list[_Line]:
    points = [standing for standing in comparison.table if standing.domain == ALL]
    return [
        _Line(index, method.label, method.is_oracle, tuple(p for p in points if p.method == method.label))
        for index, method in enumerate(comparison.methods)
        if any(p.method == method.label for p in points)
    ]


def _ends(point: Standing) -> tuple[float, float]:
    low = point.over_dense if point.lowest is None else point.lowest
    return low, point.over_dense if point.highest is None else point.highest


def _shown(line: _Line) -> str:
    name = line.label if len(line.label) <= LABEL_LENGTH else f"{line.label[: LABEL_LENGTH - 1]}…"
    return f"{name} {words.signed(line.points[-1].over_dense)}"


def _title(comparison: Comparison) -> str:
    return f"Loss over dense against mlp_sparsity on {comparison.source}"


def _text(x: float, y: float, text: str, color: str, **more: object) -> str:
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}"{attributes}>{escape(text)}</text>'


def _headings(comparison: Comparison) -> list[str]:
    num_tokens = sum(score.num_tokens for score in comparison.dense)
    below = (
        f"{words.short_count(num_tokens)} predicted tokens of {len(set(comparison.domains))} "
        f"{words.plural(len(set(comparison.domains)), 'domain')}; mean over seeds, bars show their range"
    )
    if any(method.is_oracle for method in comparison.methods):
        below += "; dashed: oracles"
    name = comparison.source.rstrip("/").rsplit("/", 1)[-1]
    title = f"Loss over the dense {name}, nats per token (square-root scale)"
    return [_text(20, 27, title, INK, font_size=15, font_weight=600), _text(20, 46, below, FAINT, font_size=12)]


def _axes(comparison: Comparison, frame: _Frame, values: Sequence[float]) -> list[str]:
    right, floor = LEFT + PLOT_WIDTH, TOP + frame.height
    parts = []
    for tick in root_ticks(values):
        y = frame.y(tick)
        color, width = (palette.DENSE[0], 1.5) if tick == 0 else (palette.GRID[0], 1)
        parts.append(f'<path d="M{LEFT},{y:.1f} H{right}" stroke="{color}" stroke-width="{width}"/>')
        name = "dense" if tick == 0 else f"{tick:+g}".replace("-", "−")
        parts.append(_text(LEFT - 10, y + 4, name, FAINT, text_anchor="end"))
    for budget in comparison.mlp_sparsities:
        x = frame.x(budget)
        parts.append(f'<path d="M{x:.1f},{floor:.1f} v5" stroke="{palette.LINE[0]}"/>')
        parts.append(_text(x, floor + 20, words.exact_percent(budget), FAINT, text_anchor="middle"))
    middle = LEFT + PLOT_WIDTH / 2
    title = "mlp_sparsity: share of FFN neurons that a token does not run"
    return [*parts, _text(middle, floor + 42, title, SOFT, text_anchor="middle")]


def _curve(line: _Line, frame: _Frame) -> list[str]:
    color = marks.color(line.index)
    places = [(frame.x(point.mlp_sparsity), frame.y(point.over_dense)) for point in line.points]
    path = " L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="5,4"' if line.is_oracle else ""
    parts = [f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>']
    for point, (x, y) in zip(line.points, places, strict=True):
        low, high = (frame.y(end) for end in _ends(point))
        if low != high:
            parts.append(f'<path d="M{x:.1f},{low:.1f} V{high:.1f}" stroke="{color}" stroke-width="1.5"/>')
        shape = _SHAPES[marks.symbol(line.index)]
        parts.append(f'<path d="{shape}" transform="translate({x:.1f} {y:.1f})" fill="{color}"/>')
    return parts


def _labels(lines: Sequence[_Line], frame: _Frame) -> list[str]:
    """A name at the end of each line, moved apart where lines end together, and tied to its line by a thin stroke."""
    ends = [frame.y(line.points[-1].over_dense) for line in lines]
    moved = spread_out(ends, LABEL_GAP, TOP + 4, TOP + frame.height - 4)
    x = LEFT + PLOT_WIDTH + 22
    parts = []
    for line, end, y in zip(lines, ends, moved, strict=True):
        color = marks.color(line.index)
        start = frame.x(line.points[-1].mlp_sparsity) + 8
        stroke = f'stroke="{color}" stroke-width="0.8" stroke-opacity="0.6"'
        parts.append(f'<path d="M{start:.1f},{end:.1f} L{x - 5:.1f},{y:.1f}" {stroke}/>')
        parts.append(_text(x, y + 4, _shown(line), color, data_method=line.index))
    return parts
