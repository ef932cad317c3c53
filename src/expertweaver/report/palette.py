"""Every colour of the report, once for light and once for dark.

Figures are built with the light colours; the page replaces each by its dark partner when the reader's system asks
for it. That works because no light colour is used twice (tested). The first hues are told apart with every
common colour blindness: blue beside amber and orange. Where many models meet, markers tell them apart as well.
"""

from __future__ import annotations

Pair = tuple[str, str]

PAGE: Pair = ("#f7f7f5", "#111210")
SURFACE: Pair = ("#fdfdfc", "#191a18")
INK: Pair = ("#151613", "#f3f3ef")
INK_SOFT: Pair = ("#4b4c47", "#c6c6be")
INK_FAINT: Pair = ("#696a63", "#a2a299")
LINE: Pair = ("#dcdcd6", "#34352f")
GRID: Pair = ("#e7e7e2", "#2a2b27")
ACCENT: Pair = ("#1f62b8", "#7fb2f2")
WARNING: Pair = ("#8a4b00", "#f0b35c")
WARNING_WASH: Pair = ("#fbf3e4", "#2a2214")

SHARED: Pair = ("#2a6fc4", "#4a8fe0")
ROUTED: Pair = ("#e9a11b", "#d79a2a")
SKIPPED: Pair = ("#e3e3dd", "#32332e")

DENSE: Pair = ("#5d5e58", "#b3b3aa")
MODELS: tuple[Pair, ...] = (
    ("#2473cf", "#5aa0f0"),
    ("#d2570f", "#ef8244"),
    ("#6a46b8", "#a98bea"),
    ("#0e8a68", "#35b48e"),
    ("#c2417c", "#e878a8"),
    ("#1596ad", "#55c3d8"),
    ("#7a7f10", "#b5ba48"),
    ("#b0262c", "#f1777c"),
    ("#85573a", "#c39373"),
    ("#3c3f8a", "#9195e4"),
    ("#bd8600", "#e0b13d"),
    ("#4f8f2f", "#86c462"),
    ("#a044b8", "#d08be2"),
)
SYMBOLS = ("diamond", "circle", "square", "triangle-up", "x", "star")
GLYPHS = ("◆", "●", "■", "▲", "✖", "★")

LESS_TO_MORE: tuple[Pair, ...] = (
    ("#1d5db0", "#79b0f5"),
    ("#85b4e8", "#34619b"),
    ("#efefeb", "#2d2e2a"),
    ("#f0b081", "#9a5220"),
    ("#b9480a", "#f79459"),
)
ALWAYS_ON: Pair = ("#a9aaa2", "#6c6d66")

_DEPTH_ENDS: tuple[Pair, Pair] = (("#8fbfec", "#3a69a8"), ("#0d2f63", "#a9d2ff"))
_NUM_DEPTHS = 16


def _blend(start: str, end: str, share: float) -> str:
    pairs = zip(bytes.fromhex(start[1:]), bytes.fromhex(end[1:]), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in pairs)


def _ramp(ends: tuple[Pair, Pair], steps: int) -> tuple[Pair, ...]:
    (light_low, dark_low), (light_high, dark_high) = ends
    shares = [step / (steps - 1) for step in range(steps)]
    return tuple((_blend(light_low, light_high, s), _blend(dark_low, dark_high, s)) for s in shares)


DEPTHS: tuple[Pair, ...] = _ramp(_DEPTH_ENDS, _NUM_DEPTHS)

_NAMED: dict[str, Pair] = {
    "page": PAGE,
    "surface": SURFACE,
    "ink": INK,
    "ink-soft": INK_SOFT,
    "ink-faint": INK_FAINT,
    "line": LINE,
    "grid": GRID,
    "accent": ACCENT,
    "warning": WARNING,
    "warning-wash": WARNING_WASH,
    "shared": SHARED,
    "routed": ROUTED,
    "skipped": SKIPPED,
    "always-on": ALWAYS_ON,
    "dense": DENSE,
    **{f"model-{index}": pair for index, pair in enumerate(MODELS)},
    **{f"use-{index}": pair for index, pair in enumerate(LESS_TO_MORE)},
    "depth-first": DEPTHS[0],
    "depth-last": DEPTHS[-1],
}


def all_pairs() -> tuple[Pair, ...]:
    """Every pair of a light colour and its dark partner."""
    return (*_NAMED.values(), *DEPTHS[1:-1])


def dark_of_light() -> dict[str, str]:
    """The dark partner of every light colour."""
    return dict(all_pairs())


def css_variables() -> str:
    """The named colours as CSS variables that follow the reader's system; print is always light."""
    light, dark = ("".join(f"--{name}:{pair[scheme]};" for name, pair in _NAMED.items()) for scheme in range(2))
    return (
        f":root{{color-scheme:light dark;{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    )


def depth_color(position: float) -> Pair:
    """The colour of a layer at a relative depth from 0 (first) to 1 (last)."""
    return DEPTHS[round(position * (_NUM_DEPTHS - 1))]


def model_color(index: int, has_dense: bool) -> Pair:
    """The colour of a model by its place in the evaluation."""
    if has_dense and index == 0:
        return DENSE
    return MODELS[(index - has_dense) % len(MODELS)]


def model_variable(index: int, has_dense: bool) -> str:
    """The CSS variable that holds `model_color`."""
    return "--dense" if has_dense and index == 0 else f"--model-{(index - has_dense) % len(MODELS)}"


def model_mark(index: int, has_dense: bool) -> tuple[str, str]:
    """The marker of a model: its name in Plotly and its glyph in text.

    Each time the colours begin again the markers move on by one, so that no two of 65 models look alike.
    """
    if has_dense and index == 0:
        return SYMBOLS[0], GLYPHS[0]
    number = index - has_dense
    place = 1 + (number + number // len(MODELS)) % (len(SYMBOLS) - 1)
    return SYMBOLS[place], GLYPHS[place]
