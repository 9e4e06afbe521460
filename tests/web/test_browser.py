"""The page in a real browser: Chromium by Playwright, where both are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from diffproof.cli.main import run
from helpers.browser import prepare
from helpers.contrast import CONTRASTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of certifications, and one of attacks."""
    folder = tmp_path_factory.mktemp("pages")
    for name, chosen in (("certified", ("none", "dds", "wide")), ("attacked", ("attacked", "broken"))):
        line = ["report", *(str(runs / one) for one in chosen), "--html", str(folder / f"{name}.html")]
        assert run(line) == 0
    return {name: folder / f"{name}.html" for name in ("certified", "attacked")}


@pytest.fixture
def opened(browser: Any, tab: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Opens a report by name; afterwards it must have complained of nothing and asked nobody."""
    complaints: list[str] = []
    addresses: set[str] = set()
    with ExitStack() as stack:

        def visit(
            name: str, color_scheme: str = "light", width: int = 1280, *, java_script_enabled: bool = True
        ) -> Any:
            page = tab
            if not java_script_enabled:
                page = stack.enter_context(browser.new_context(java_script_enabled=False)).new_page()
            prepare(page, stack, complaints, asked, color_scheme, width)
            addresses.add(pages[name].as_uri())
            page.goto(pages[name].as_uri())
            return page

        def asked(request: Any) -> None:
            if request.url not in {*addresses, "data:,"} and not request.url.startswith(
                "data:image/png;base64,"
            ):
                complaints.append(request.url)

        yield visit
    assert complaints == []


@pytest.mark.parametrize("name", ["certified", "attacked"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(opened: Any, name: str, scheme: str) -> None:
    page = opened(name, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [one for one in found if one[0] < 4.5] == []


@pytest.mark.parametrize("name", ["certified", "attacked"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_a_page_is_as_wide_as_its_screen(opened: Any, name: str, width: int) -> None:
    page = opened(name, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("name", ["certified", "attacked"])
def test_all_is_there_without_scripts(opened: Any, name: str) -> None:
    without = opened(name, java_script_enabled=False)
    scripted = opened(name)
    for selector in ("h2", "article", ".sentences li", "table.sortable tbody tr", "svg", ".pictures img"):
        assert without.locator(selector).count() == scripted.locator(selector).count() > 0
    assert not any(one.is_visible() for one in without.locator("select, input, output").all())
    assert all(one.is_visible() for one in without.locator("article").all())


def test_pictures_are_decoded(opened: Any) -> None:
    page = opened("attacked")
    width = "(image) => image.decode().then(() => image.naturalWidth)"
    sizes = page.evaluate(f"Promise.all([...document.images].map({width}))")
    assert len(sizes) > 10
    assert {*sizes} == {8}


def test_a_table_is_sorted_by_its_columns(opened: Any) -> None:
    page = opened("certified")

    table = page.locator("#table table").first

    def column(place: int) -> list[str]:
        cells = table.locator(f"tbody tr > :nth-child({place})").all_inner_texts()
        return [cell.split()[0] for cell in cells]

    def head(name: str) -> tuple[Any, int]:
        names = table.locator("thead th").all_inner_texts()
        return table.locator("thead button").nth(names.index(name)), names.index(name) + 1

    button, place = head("ACR")
    before = column(place)
    button.click()
    assert [float(cell) for cell in column(place)] == sorted(map(float, before))
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    # By the keyboard, too.
    button.press("Enter")
    assert [float(cell) for cell in column(place)] == sorted(map(float, before), reverse=True)
    assert button.locator("..").get_attribute("aria-sort") == "descending"
    button, place = head("defence")
    button.click()
    assert column(place) == sorted(column(place))
    # What is no number comes last, either way.
    button, place = head("ε=0.5")
    for _ in range(2):
        button.click()
        assert [cell == "–" for cell in column(place)] == [False, True, True]


def test_a_chart_tells_its_values(opened: Any) -> None:
    page = opened("certified")
    panel = page.locator(".panel").first
    slider, reading = panel.locator("input[type=range]"), panel.locator("output")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    step = float(slider.get_attribute("step"))
    assert f"at ε = {3 * step:g}" in reading.inner_text()
    for label in ("none", "dds"):
        series = panel.locator(f".series[data-label={label}]")
        assert f"{label}: {series.get_attribute('data-values').split('|')[3]}" in reading.inner_text()
    # By the pointer, a third of the way.
    chart = panel.locator("svg").first
    box = chart.bounding_box()
    # Once the page has come to rest, which scrolls smoothly.
    chart.hover(position={"x": box["width"] * (46 + 420 / 3) / 480, "y": box["height"] / 2})
    largest = float(panel.locator("svg").first.get_attribute("data-largest"))
    assert float(slider.input_value()) == pytest.approx(largest / 3, abs=step)
    assert panel.locator(".cursor").get_attribute("visibility") == "visible"
    page.locator(".legend label", has_text="dds").locator("input").uncheck()
    assert not panel.locator(".series[data-label=dds]").is_visible()
    assert "dds" not in reading.inner_text()
    assert panel.locator(".band").first.is_visible()
    page.locator(".legend label", has_text="intervals").locator("input").uncheck()
    assert not panel.locator(".band").first.is_visible()


def test_bars_are_shown_and_hidden(opened: Any) -> None:
    page = opened("attacked")
    boxes = page.locator(".legend label")
    boxes.filter(has_text="worst").locator("input").uncheck()
    assert not page.locator("[data-score-row=worst]").first.is_visible()
    assert page.locator("[data-score-row=majority]").first.is_visible()
    boxes.filter(has_text="clean images").locator("input").uncheck()
    assert not page.locator("rect.clean").first.is_visible()
    assert page.locator("rect.attacked").first.is_visible()
    boxes.filter(has_text="intervals").locator("input").uncheck()
    assert not page.locator(".whisker").first.is_visible()


def test_images_are_filtered_and_sorted(opened: Any) -> None:
    page = opened("certified")
    cards, count = page.locator("article"), page.locator("#count")
    whole = cards.count()
    assert count.inner_text() == f"{whole} images"
    page.locator("#state").select_option("right")
    page.locator("#run").select_option("1")
    shown = [card for card in cards.all() if card.is_visible()]
    expected = page.locator("article:has([data-run='1'][data-state=right])").count()
    assert 0 < len(shown) == expected < whole
    assert count.inner_text() == f"{expected} of {whole} images"
    page.locator("#state").select_option("")
    page.locator("#run").select_option("2")
    page.locator("#order").select_option("down")
    entries = page.locator("article [data-run='2']")
    radii = entries.evaluate_all("(all) => all.map((one) => +one.dataset.radius)")
    assert radii == sorted(radii, reverse=True)
    page.locator("#order").select_option("index")
    indices = cards.evaluate_all("(all) => all.map((one) => +one.dataset.index)")
    assert indices == sorted(indices)


def test_paper_has_all_that_is_folded(opened: Any) -> None:
    page = opened("certified")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    assert all(one.is_visible() for one in page.locator("details table, details pre").all())
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")


def test_all_that_works_is_reached_by_the_keyboard_and_seen(opened: Any) -> None:
    page = opened("certified")
    working = "a, button, input, select, summary, pre"
    names = page.locator(working).evaluate_all(
        "(all) => all.map((one, place) => (one.dataset.place = place, 1))"
    )
    shown = {
        place for place in map(str, range(len(names))) if page.locator(f"[data-place='{place}']").is_visible()
    }
    reached = set()
    for _ in range(3 * len(names)):
        page.keyboard.press("Tab")
        place, width = page.evaluate(
            "[document.activeElement.dataset.place, getComputedStyle(document.activeElement).outlineWidth]"
        )
        reached.add(place)
        assert place is None or width != "0px"
    assert shown <= reached


STRANGERS = """async () => {
  const stopped = [];
  document.addEventListener("securitypolicyviolation", (one) => stopped.push(one.effectiveDirective));
  const add = (name, fill) => document.body.append(Object.assign(document.createElement(name), fill));
  add("img", { src: "https://example.org/x.png" });
  add("script", { textContent: "window.ran = true" });
  add("style", { textContent: "body { color: red }" });
  await fetch("https://example.org").catch(() => {});
  await new Promise((done) => setTimeout(done, 50));
  return [window.ran, getComputedStyle(document.body).color, stopped];
}"""


def test_the_policy_stops_what_is_not_the_pages_own(tab: Any, pages: dict[str, Path]) -> None:
    tab.goto(pages["certified"].as_uri())
    ran, colour, stopped = tab.evaluate(STRANGERS)
    assert ran is None
    assert colour != "rgb(255, 0, 0)"
    assert {*stopped} >= {"img-src", "script-src-elem", "style-src-elem", "connect-src"}
