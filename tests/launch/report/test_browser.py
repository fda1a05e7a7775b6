"""The report in a real browser: it draws, answers clicks and wheel, and asks no network.

Pictures for a look are left in build/screenshots. Without Chromium (scripts/browser.sh
installs it) nothing here runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.report.build import build_page
from tests.launch.jobs.jobs import ROOT
from tests.launch.report.folders import Made

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SCREENSHOTS = ROOT / "build" / "screenshots"
WIDTHS = (390, 1280)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; bash scripts/browser.sh installs it"
)

MODEL = "name => [...Bokeh.documents[0].all_models].find(model => model.name === name)"
INK = """() => [...document.querySelectorAll('.plot')].map(place => {
  const canvases = [];
  const search = node => {
    if (node.tagName === 'CANVAS') canvases.push(node);
    for (const child of [...node.children, ...(node.shadowRoot?.children ?? [])]) search(child);
  };
  search(place);
  return Math.max(0, ...canvases.filter(c => c.width > 150)  // not those of legends
    .map(canvas => {
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let drawn = 0;
    for (let i = 3; i < pixels.length; i += 4) drawn += pixels[i] > 0;
    return drawn / (canvas.width * canvas.height);
  }));
})"""
"""Of each plot's fullest canvas, the share of pixels that something was drawn on."""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [
        Made(path=folder / "dual_end-s0", steps=24).write(),
        Made(path=folder / "dual_end-s1", steps=24, seed=1).write(),
        Made(
            path=folder / "first_m", steps=12, settings=("selector=first_m",), finished=False
        ).write(),
    ]  # fmt: skip
    path = folder / "report.html"
    path.write_text(build_page(runs, print))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Seen:
    """A page in the browser, with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str) -> None:
        self.context = browser.new_context(
            offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("Bokeh.documents.length === 1 && Bokeh.documents[0].is_idle")

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def model(self, name: str, script: str) -> Any:
        """What a script says of the model of that name."""
        return self.page.evaluate(f"name => (model => {script})(({MODEL})(name))", name)

    def gantt(self) -> Any:
        """Where the picture of a step is."""
        place = self.page.locator("#gantt .plot")
        place.scroll_into_view_if_needed()
        return place.bounding_box()

    def wheel(self, turn: int) -> None:
        """Ctrl and the wheel, over the middle of the picture of a step."""
        box = self.gantt()
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.page.keyboard.down("Control")
        self.page.mouse.wheel(0, turn)
        self.page.wait_for_timeout(300)
        self.page.keyboard.up("Control")


@pytest.fixture
def seen(browser: Any, page_file: Path) -> Iterator[Seen]:
    found = Seen(browser, page_file, 1280, "light")
    yield found
    found.context.close()
    assert found.errors == []
    assert [url for url in found.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_plot_draws_without_an_error_or_a_request(
    browser: Any, page_file: Path, width: int, scheme: str
) -> None:
    found = Seen(browser, page_file, width, scheme)
    shares = found.page.evaluate(INK)
    assert len(shares) == 17
    assert min(shares) > 0.01, shares
    assert found.page.evaluate("document.documentElement.scrollWidth") == width
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    found.page.screenshot(path=SCREENSHOTS / f"report-{width}-{scheme}.png", full_page=True)
    assert found.errors == []
    assert [url for url in found.requests if not url.startswith("file:")] in ([], ["data:,"])
    found.context.close()


def test_texts_of_plots_have_the_colour_of_the_page(seen: Seen) -> None:
    colour = "model.below[0].axis_label_text_color"
    assert seen.model("gantt", colour) == "#1c1f23"
    seen.page.emulate_media(color_scheme="dark")
    dark = f"({MODEL})('gantt').below[0].axis_label_text_color === '#e4e6e9'"
    seen.page.wait_for_function(dark)


def test_the_wheel_scrolls_the_page_over_every_plot(seen: Seen) -> None:
    ends = "[model.x_range.start, model.x_range.end]"
    whole = seen.model("gantt", ends)
    seen.page.mouse.move(640, 600)
    positions = [0]
    while not positions[1:] or positions[-1] > positions[-2]:
        seen.page.mouse.wheel(0, 400)
        seen.page.wait_for_timeout(150)
        positions.append(seen.page.evaluate("scrollY"))
    height = seen.page.evaluate("document.documentElement.scrollHeight - innerHeight")
    assert positions[-1] == pytest.approx(height, abs=1)
    assert seen.model("gantt", ends) == whole


def test_ctrl_and_the_wheel_zoom_the_seconds_of_a_step_and_reset_undoes_it(seen: Seen) -> None:
    width = "model.x_range.end - model.x_range.start"
    lanes = "[model.y_range.start, model.y_range.end]"
    whole, names = seen.model("gantt", width), seen.model("gantt", lanes)
    seen.wheel(-400)
    assert seen.model("gantt", width) < 0.9 * whole
    assert seen.model("gantt", lanes) == names
    assert seen.page.evaluate("visualViewport.scale") == 1
    seen.page.locator("#gantt .bk-tool-icon-reset").click()
    assert abs(seen.model("gantt", width) - whole) < 1e-6


def test_nobody_zooms_out_into_emptiness(seen: Seen) -> None:
    seen.page.locator("#gantt select").select_option(label="dual_end-s0, step 3")
    ends = "[model.x_range.start, model.x_range.end]"
    whole = seen.model("gantt", ends)
    assert whole == seen.model("gantt", "model.x_range.bounds")
    seen.wheel(400)
    assert seen.model("gantt", ends) == whole


def test_a_box_zooms_the_picture_of_a_step(seen: Seen) -> None:
    width = "model.x_range.end - model.x_range.start"
    whole = seen.model("gantt", width)
    box = seen.gantt()
    seen.page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6, steps=5)
    seen.page.mouse.up()
    assert seen.model("gantt", width) < 0.5 * whole


def test_a_click_in_the_legend_hides_a_fate(seen: Seen) -> None:
    assert seen.model("redundant", "model.visible") is True
    seen.page.locator("#gantt .bk-item", has_text="redundant").click()
    assert seen.model("redundant", "model.visible") is False
    assert seen.model("trained", "model.visible") is True


def test_another_step_is_shown_with_its_own_bars_and_table(seen: Seen) -> None:
    told = seen.page.locator("#gantt [data-step]:visible .caption")
    assert told.inner_text().startswith("Step 1 took")
    end = "model.x_range.end"
    before = seen.model("gantt", end)
    seen.page.locator("#gantt select").select_option(label="dual_end-s0, step 3")
    assert told.inner_text().startswith("Step 3 took")
    assert "straggler" in seen.page.locator("#gantt [data-step]:visible table").inner_text()
    assert seen.model("gantt", end) != before


def test_a_chip_hides_a_line_in_every_plot(seen: Seen) -> None:
    shown = """() => [...Bokeh.documents[0].all_models]
      .filter(model => model.name === "line 1").map(model => model.visible)"""
    assert set(seen.page.evaluate(shown)) == {True}
    seen.page.locator(".chip").nth(1).click()
    assert set(seen.page.evaluate(shown)) == {False}


def test_samples_are_filtered_by_text(seen: Seen) -> None:
    rows = seen.page.locator("#samples tr.sample:visible")
    assert rows.count() == 4  # of the run that is unfolded
    seen.page.locator("#samples .filter").fill("2+6+8")
    assert rows.count() == 1
    assert seen.page.locator("#samples .left").inner_text() == "3 of 12 rows"


def test_paper_has_no_tools_no_hints_and_no_tooltip(seen: Seen) -> None:
    box = seen.gantt()
    seen.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.7)
    seen.page.locator(".bk-Tooltip").first.wait_for(state="visible")
    things = ("#gantt .bk-Toolbar", "#gantt .use", "nav", "#samples .filter", ".bk-Tooltip")
    assert all(seen.page.locator(thing).first.is_visible() for thing in things)
    seen.page.emulate_media(media="print")
    assert not any(seen.page.locator(thing).first.is_visible() for thing in things)
    assert seen.page.locator("#gantt .see").is_visible()


def test_the_page_is_printed(seen: Seen) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / "report.pdf"
    seen.page.pdf(path=path, prefer_css_page_size=True)
    assert path.stat().st_size > 50_000
