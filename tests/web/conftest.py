"""Runs that pages are made of, and the browser that shows pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffproof.cli.main import run

CERTIFY = "certify --data digits --indices 0:60:5 --classifier digits --sigma 0.25 --n0 10 --n 60"
ATTACK = (
    "attack --data digits --indices 0:30:5 --classifier digits --denoiser digits --threat linf --budget 0.15"
    " --attack pgd:iterations=3 --diagnose 0 --draws 3 --majority-of 3"
)
RUNS = {
    "none": f"{CERTIFY} --defense none",
    "dds": f"{CERTIFY} --defense dds --denoiser digits",
    "wide": f"{CERTIFY} --defense none --sigma 1",
    "attacked": f"{ATTACK} --defense diffpure:t_star=0.1,steps=2",
    "broken": f"{ATTACK.replace('--denoiser digits', '')} --defense none",
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by the names of RUNS; read only."""
    folder = tmp_path_factory.mktemp("runs")
    for name, line in RUNS.items():
        assert run([*line.split(), "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium by Playwright, where both are; one for all tests of this folder."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def tab(browser: Any) -> Iterator[Any]:
    """A page that one test after the other turns to its own: a new one takes half a second."""
    page = browser.new_page()
    yield page
    page.close()
