"""The report in a real browser: drawn, legible in both colour schemes, silent on the network, safe on a phone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.reports import HOSTILE, NUM_LAYERS, full_report, hostile_report

from expertweaver.report import Report, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PHONE, DESK = 390, 1280
LEGIBLE = 4.5


def _missing(reason: str) -> None:
    if os.environ.get("EXPERTWEAVER_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}, and EXPERTWEAVER_REQUIRE_BROWSER is set")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        _missing(f"no browser on the path: none of {', '.join(NAMES)}")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("the playwright package is not installed")
        raise
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@dataclass
class Visit:
    """An open page and everything it did that a quiet page does not do."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def watch(self) -> None:
        def dismiss(dialog: Any) -> None:
            self.dialogs.append(dialog.message)
            dialog.dismiss()

        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", dismiss)

    def outside(self) -> list[str]:
        return [url for url in self.requests if url != self.address and not url.startswith(("data:", "blob:"))]


Open = Callable[[str, str, int], Visit]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    reports: dict[str, Report] = {"full": full_report(), "hostile": hostile_report()}
    return {name: write_report(folder / f"{name}.html", report) for name, report in reports.items()}


@pytest.fixture
def visit(browser: Browser, files: dict[str, Path]) -> Iterator[Open]:
    opened: list[Any] = []

    def start(name: str, scheme: str, width: int) -> Visit:
        chosen: Any = scheme
        context = browser.new_context(color_scheme=chosen, viewport={"width": width, "height": 900})
        opened.append(context)
        made = Visit(context.new_page(), files[name].as_uri())
        made.watch()
        made.page.goto(made.address)
        made.page.wait_for_selector("html[data-drawn]", timeout=60_000)
        return made

    yield start
    for context in opened:
        context.close()


SCREENS = [("light", DESK), ("dark", DESK), ("light", PHONE), ("dark", PHONE)]


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_every_figure_is_drawn_and_nothing_else_happens(visit: Open, scheme: str, width: int) -> None:
    made = visit("full", scheme, width)
    sizes = made.page.eval_on_selector_all(
        ".plot:not([hidden] *)",
        "all => all.map(p => { const b = p.querySelector('svg.main-svg')?.getBoundingClientRect();"
        " return [p.id, b?.width ?? 0, b?.height ?? 0]; })",
    )
    assert len(sizes) == 2 + 2 + 1 + 1 + 6
    assert all(drawn > width / 6 and height > 100 for _, drawn, height in sizes), sizes
    marks = {
        "#plot-quality .scatterlayer path.point": 4 * 7,
        "#plot-quality .scatterlayer path.xerror": 4 * 7,
        "#plot-difference .scatterlayer path.point": 3 * 7,
        "#plot-slices-0 .barlayer .point path": 3 * NUM_LAYERS,
        "#plot-slices-1 .barlayer .point path": 3 * NUM_LAYERS,
        "#plot-cv-0 .boxlayer path.box": NUM_LAYERS,
        "#plot-cv-0 .scatterlayer path.js-line": 1,
        "#plot-frequency-0 .scatterlayer path.js-line": NUM_LAYERS,
        "#usage-1 .heatmaplayer image": 2 * 6,
    }
    assert {selector: made.page.locator(selector).count() for selector in marks} == marks
    assert _empty_marks(made.page) == []
    assert (made.complaints, made.outside(), made.dialogs) == ([], [], [])


def _empty_marks(page: Page) -> list[Any]:
    """Bars, boxes, lines and heat maps that have a place in the page and no extent in it."""
    found: list[Any] = page.eval_on_selector_all(
        ".barlayer .point path, .boxlayer path.box, path.js-line, .heatmaplayer image",
        "all => all.filter(m => !m.closest('[hidden]')).map(m => [m.closest('.plot').id, m.getBoundingClientRect()])"
        ".filter(([, b]) => Math.max(b.width, b.height) < 1).map(([id]) => id)",
    )
    return found


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
@pytest.mark.parametrize("name", ["full", "hostile"])
def test_the_page_never_scrolls_sideways(visit: Open, name: str, scheme: str, width: int) -> None:
    page = visit(name, scheme, width).page
    page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true; })")
    widths = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, window.innerWidth]")
    assert max(widths[:2]) <= widths[2] == width
    page.evaluate("window.scrollTo(500, 0)")
    assert page.evaluate("window.scrollX") == 0


def test_wide_tables_scroll_in_their_frame(visit: Open) -> None:
    page = visit("full", "light", PHONE).page
    frame = page.locator("#quality .scroll")
    inner, outer = frame.evaluate("f => [f.scrollWidth, f.clientWidth]")
    assert inner > outer
    assert frame.evaluate("f => { f.scrollLeft = 80; return f.scrollLeft; }") == 80


def test_light_and_dark_differ_and_both_are_legible(visit: Open) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        page = visit("full", scheme, DESK).page
        grounds[scheme] = _color(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        texts = _figure_texts(page)
        assert len(texts) > 100
        worst = min(texts, key=lambda text: _contrast(_color(text["fill"]), _color(text["ground"])))
        assert _contrast(_color(worst["fill"]), _color(worst["ground"])) >= LEGIBLE, worst
    assert _luminance(grounds["light"]) > 0.8
    assert _luminance(grounds["dark"]) < 0.05


def _figure_texts(page: Page) -> list[dict[str, str]]:
    """Fill of every axis text and the ground that it stands on."""
    found: list[dict[str, str]] = page.eval_on_selector_all(
        ".xtick text, .ytick text, .xtitle, .ytitle",
        "all => all.filter(t => !t.closest('[hidden]')).map(t => ({ text: t.textContent,"
        " fill: getComputedStyle(t).fill, ground: getComputedStyle(t.closest('figure')).backgroundColor }))",
    )
    return found


def test_figures_follow_the_scheme_while_the_page_is_open_and_print_in_light(visit: Open) -> None:
    page = visit("full", "light", DESK).page
    tick = "getComputedStyle(document.querySelector('#plot-slices-0 .xtick text')).fill"
    light = page.evaluate(tick)
    page.emulate_media(color_scheme="dark")
    _await(page, f"{tick} !== '{light}'")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    _await(page, f"{tick} === '{light}'")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    _await(page, f"{tick} !== '{light}'")


def _await(page: Page, condition: str) -> None:
    """Wait for a condition; the page's own policy forbids Playwright's way to do so."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never came true: {condition}")


def test_expert_use_can_be_chosen_per_model(visit: Open) -> None:
    made = visit("full", "light", DESK)
    page = made.page
    assert page.locator("#usage .panel:visible").evaluate_all("all => all.map(p => p.id)") == ["usage-1"]
    page.locator("#usage label", has_text="expertweaver-50").click()
    page.wait_for_selector("#usage-2 .heatmaplayer image")
    assert page.locator("#usage .panel:visible").evaluate_all("all => all.map(p => p.id)") == ["usage-2"]
    assert page.locator("#usage-2 .heatmaplayer image").count() == 2 * 6
    assert _empty_marks(page) == []
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#usage-3 .heatmaplayer image")
    assert made.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_names_are_shown_as_text(visit: Open, scheme: str) -> None:
    made = visit("hostile", scheme, DESK)
    page = made.page
    page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true; })")
    page.locator("#plot-quality .point").first.hover(force=True)
    page.wait_for_timeout(200)
    assert page.title() == HOSTILE
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.get_by_text(HOSTILE, exact=True).count() > 8
    assert any("<script>alert(1)" in text for text in page.locator("#plot-quality .ytick text").all_text_contents())
    assert page.locator("img").count() == 0
    assert (made.complaints, made.outside(), made.dialogs) == ([], [], [])


def test_the_policy_stops_scripts_that_do_not_belong(visit: Open) -> None:
    made = visit("full", "light", DESK)
    made.page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'window.intruder = 1';"
        " const image = new Image(); image.src = 'http://localhost:9/x.png'; document.body.append(script, image); }"
    )
    made.page.wait_for_timeout(200)
    assert made.page.evaluate("window.intruder") is None
    assert sum("Content Security Policy" in complaint for complaint in made.complaints) == 2


Color = tuple[float, float, float]


def _color(css: str) -> Color:
    red, green, blue = (float(part) for part in re.findall(r"[\d.]+", css)[:3])
    return red, green, blue


def _luminance(color: Color) -> float:
    parts = [part / 255 for part in color]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(first: Color, second: Color) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)
