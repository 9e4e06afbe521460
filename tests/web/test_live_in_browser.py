"""The page of diffproof serve in a real browser: Chromium by Playwright, where both are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from diffproof.cli.main import run
from diffproof.runs.places import Places
from diffproof.web.live.board import Board
from diffproof.web.live.server import serving
from helpers.browser import prepare
from helpers.processes import exit_status, forked
from helpers.runs import change

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = pytest.mark.slow

HALF = "DELETE FROM images WHERE image_index > 30"
CERTIFY = (
    "certify --data digits --indices 0:60:5 --classifier digits --defense none --sigma 0.25 --n0 10 --n 60"
)


@pytest.fixture
def served(browser: Any, tab: Any) -> Iterator[Callable[..., Any]]:
    """Opens the served page of folders; it must have complained of nothing and asked its server alone."""
    complaints: list[str] = []
    with ExitStack() as stack:

        def visit(
            *folders: Path, color_scheme: str = "light", width: int = 1280, java_script_enabled: bool = True
        ) -> Any:
            board = Board(folders, Places({}), every=0.2)
            address, _ = stack.enter_context(serving(board, "127.0.0.1", 0))
            # Left before its server ends, of which it would complain.
            stack.callback(tab.goto, "about:blank")
            page = tab
            if not java_script_enabled:
                page = stack.enter_context(browser.new_context(java_script_enabled=False)).new_page()

            def asked(request: Any) -> None:
                if not request.url.startswith((address, "data:")):
                    complaints.append(request.url)

            prepare(page, stack, complaints, asked, color_scheme, width)
            page.goto(address)
            return page

        yield visit
    assert complaints == []


@pytest.fixture
def halves(runs: Path, tmp_path: Path) -> dict[str, Path]:
    """Runs with half of their images."""
    found = {}
    for name in ("none", "dds", "wide"):
        found[name] = Path(shutil.copytree(runs / name, tmp_path / name))
        change(found[name], HALF)
    return found


def finish(halves: dict[str, Path], runs: Path) -> None:
    for name, folder in halves.items():
        shutil.copyfile(runs / name / "results.sqlite", folder / "results.sqlite")


def wait_for(page: Any, images: int) -> None:
    # Not by wait_for_function, which evaluates a text, as no script on this page may.
    sync_api.expect(page.locator("article")).to_have_count(images, timeout=60_000)


def test_what_the_reader_did_stays(served: Any, halves: dict[str, Path], runs: Path) -> None:
    page = served(*halves.values(), color_scheme="dark")
    wait_for(page, 7)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.evaluate("window.same = true")
    page.locator(".legend label", has_text="dds").locator("input").uncheck()
    panel = page.locator(".panel").first
    panel.locator("input[type=range]").fill("0.2")
    page.locator("#cost thead button", has_text="sigma").click()
    page.locator("#cost thead button", has_text="sigma").click()
    page.locator("#state").select_option("right")
    page.locator("#run").select_option("2")
    page.locator("#order").select_option("down")
    details = panel.locator("details")
    details.locator("summary").click()
    page.locator("#runs details").nth(1).locator("summary").click()
    card = page.locator("article:not([hidden])").nth(1)
    card.scroll_into_view_if_needed()
    index = card.get_attribute("data-index")
    picture = card.locator("img").first.element_handle()
    summary = page.locator("#runs details summary").nth(1)
    summary.focus(timeout=5000)
    card.evaluate(
        "(card) => window.scrollBy({ top: card.getBoundingClientRect().top - 1, behavior: 'instant' })"
    )
    finish(halves, runs)
    wait_for(page, 12)
    assert page.evaluate("window.same")
    assert "12 images of digits" in page.locator("header").inner_text()
    assert not page.locator(".legend label", has_text="dds").locator("input").is_checked()
    assert page.locator(".legend label", has_text="none").locator("input").is_checked()
    assert not panel.locator(".series[data-label=dds]").is_visible()
    assert panel.locator("input[type=range]").input_value() == "0.2"
    assert "at ε = 0.2" in panel.locator("output").inner_text()
    sigmas = page.locator("#cost tbody tr > :nth-child(2)").all_inner_texts()
    assert sigmas == ["1", "0.25", "0.25"]
    head = page.locator("#cost thead th", has_text="sigma")
    assert head.get_attribute("aria-sort") == "descending"
    chosen = [page.locator(f"#{name}").input_value() for name in ("state", "run", "order")]
    assert chosen == ["right", "2", "down"]
    shown = [one for one in page.locator("article").all() if one.is_visible()]
    assert 0 < len(shown) == page.locator("article:has([data-run='2'][data-state=right])").count()
    assert panel.locator("details").get_attribute("open") is not None
    assert [one.get_attribute("open") is not None for one in page.locator("#runs details").all()] == [
        False,
        True,
        False,
    ]
    assert page.evaluate("document.activeElement.textContent") == summary.inner_text()
    # The card that was at the upper edge still is, and its picture was not decoded again.
    now = page.locator(f"article[data-index='{index}']")
    assert now.bounding_box()["y"] == pytest.approx(1, abs=2)
    assert now.locator("img").first.evaluate("(one, other) => one === other", picture)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_nothing_changes_while_something_is_selected(
    served: Any, halves: dict[str, Path], runs: Path
) -> None:
    page = served(halves["none"])
    wait_for(page, 7)
    page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
    finish(halves, runs)
    page.locator("#live", has_text="More is there").wait_for()
    assert page.locator("article").count() == 7
    page.evaluate("getSelection().removeAllRanges()")
    wait_for(page, 12)
    assert "More is there" not in page.locator("#live").inner_text()


def test_a_run_at_work_is_followed_from_before_its_beginning(served: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    page = served(folder)
    assert "waiting, there is no run yet" in page.locator("#live").inner_text()
    assert page.locator("article").count() == 0
    writer = forked(lambda: run([*CERTIFY.split(), "--out", str(folder)]))
    wait_for(page, 12)
    page.locator("#live", has_text="1 run finished.").wait_for()
    assert exit_status(writer) == 0
    # What makes the page work does so on parts that came later.
    page.locator("#order").select_option("down")
    radii = page.locator("article li").evaluate_all("(all) => all.map((one) => +one.dataset.radius)")
    assert radii == sorted(radii, reverse=True)


def test_all_is_there_without_scripts(served: Any, halves: dict[str, Path]) -> None:
    page = served(halves["none"], java_script_enabled=False)
    assert page.locator("article").count() == 7
    assert "unfinished, 7 of 12 images finished" in page.locator("#live").inner_text()


@pytest.mark.parametrize("width", [1280, 320])
def test_a_page_is_as_wide_as_its_screen(served: Any, halves: dict[str, Path], width: int) -> None:
    page = served(*halves.values(), width=width)
    wait_for(page, 7)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    bar = page.locator("#live").bounding_box()
    assert bar["y"] + bar["height"] <= 800
    assert bar["height"] <= 0.3 * 800 + 2


def test_a_server_that_ended_is_told(browser: Any, halves: dict[str, Path]) -> None:
    page = browser.new_page()
    with serving(Board([halves["none"]], Places({}), every=0.2), "127.0.0.1", 0) as (address, _):
        page.goto(address)
        page.locator("#live", has_text="Live, as of").wait_for()
    page.locator("#live.troubled", has_text="diffproof serve does not answer").wait_for()
    assert page.locator("article").count() == 7
    page.close()
