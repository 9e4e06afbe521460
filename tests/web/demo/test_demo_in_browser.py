"""The demo's page in a real browser: Chromium by Playwright, gradio as it is installed."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from diffproof.pictures import save_picture

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = pytest.mark.slow


@contextmanager
def serving(*options: str, cwd: Path | None = None) -> Iterator[str]:
    """The real command, serving; it must end quietly when it is interrupted."""
    pytest.importorskip("gradio", reason="the package gradio is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", "diffproof", "demo", "--port", str(port), *options]
    # A shell that starts the suite in the background lets it, and what it starts, ignore Ctrl-C.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)
    finally:
        signal.signal(signal.SIGINT, usual)
    with started as process:
        assert process.stdout is not None
        try:
            told = process.stdout.readline()
            assert told == f"the demo is at http://127.0.0.1:{port}/; Ctrl-C ends it\n"
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                out, err = process.communicate(timeout=30)
            finally:
                # Not for ever, if it does not end.
                process.kill()
        assert (process.returncode, out, err) == (0, "", "")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The demo as it is without options."""
    with serving() as at:
        yield at


class Page:
    """The page, and its controls by their names.

    Args:
        page: Playwright's.
    """

    def __init__(self, page: Any) -> None:
        self.page = page

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    @property
    def panel(self) -> Any:
        return self.page.get_by_role("tabpanel").filter(visible=True)

    def field(self, label: str, *, at: Any = None) -> Any:
        return (at or self.panel).get_by_role("spinbutton", name=re.compile(re.escape(label)))

    def number(self, label: str, value: float, *, at: Any = None) -> None:
        field = self.field(label, at=at)
        field.fill(str(value))
        field.press("Tab")

    def choose(self, label: str, *, at: Any = None) -> None:
        (at or self.panel).get_by_role("radio", name=label, exact=True).check()

    def type(self, label: str, text: str) -> None:
        field = self.panel.get_by_label(label, exact=True)
        field.fill(text)
        field.press("Enter")
        # A list that stays open lies over what is below it.
        field.blur()
        sync_api.expect(self.page.get_by_role("option").filter(visible=True)).to_have_count(0)

    def pick(self, label: str, option: str) -> None:
        field = self.page.get_by_label(label, exact=True)
        field.click()
        self.page.get_by_role("option", name=option, exact=True).click()
        sync_api.expect(field).to_have_value(option)
        field.blur()
        sync_api.expect(self.page.get_by_role("option").filter(visible=True)).to_have_count(0)

    def click(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def says(self, text: str | re.Pattern[str], *, of: str = "") -> None:
        said = self.page.locator(of) if of else self.panel.locator(".prose.said")
        sync_api.expect(said).to_contain_text(text, timeout=30_000)

    def upload(self, path: Path) -> None:
        remove = self.page.get_by_label("Clear")
        if remove.count():
            remove.click()
        self.page.locator("input[type=file]").set_input_files(path)


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """Keeps what of gradio is the same for all pages."""
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    yield made
    made.close()


@contextmanager
def visiting(context: Any, address: str) -> Iterator[Page]:
    """A visit; afterwards the browser must have complained of nothing and asked nobody else."""
    complaints: list[str] = []
    asked: set[str] = set()
    made = context.new_page()
    # Gradio's own client warns that it cannot close a stream that has not begun.
    made.on("console", lambda message: complaints.extend([message.text] if message.type == "error" else []))
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    made.goto(address)
    visit = Page(made)
    visit.says("digits 0: true class 0", of="#picture .prose")
    yield visit
    made.close()
    assert complaints == []
    assert asked - {""} == {urlsplit(address).netloc}


@pytest.fixture
def page(context: Any, address: str) -> Iterator[Page]:
    """A visit to the demo as it is without options."""
    with visiting(context, address) as visit:
        yield visit


def test_a_picture_is_attacked_and_purified(page: Page) -> None:
    page.number("Picture of digits", 8, at=page.page)
    page.says("digits 8: true class 8", of="#picture .prose")
    page.choose("ℓ2: the length of all changes")
    # The first budget of this threat comes in its own time, and would replace another.
    sync_api.expect(page.field("Budget")).to_have_value("1", timeout=30_000)
    page.number("Budget", 1.5)
    page.number("Gradient steps", 5)
    page.number("Draws a gradient", 2)
    page.type("Defence", "diffpure:t_star=0.05,steps=1")
    page.click("Attack the original")
    page.says(re.compile(r"diffpure:t_star=0.05,steps=1 (holds|is fooled).*of its noise call it.*length 1\."))
    page.type("Defence", "diffpur")
    page.click("Attack the original")
    page.says("defense: unknown name 'diffpur'; did you mean diffpure or densepure?")
    page.choose("the attacked picture", at=page.page)
    page.tab("Purify")
    for method, solver in (("gdmp", "sde"), ("coup", "ode"), ("diffpure", "ddpm")):
        page.choose(method)
        page.choose(solver)
        page.number("Noise t*", 0.1)
        page.number("Steps", 2)
        page.number("Draw of noise", 7)
        page.click("Purify step by step")
        page.says(re.compile(r"purifiedlooks like.*In the end the classifier calls it \d"))


def test_votes_come_in_and_a_certificate_grows(page: Page) -> None:
    page.tab("Votes")
    page.number("Noise σ", 0.5)
    page.number("Steps of a sample", 2)
    page.number("Votes K", 11)
    page.number("Draw of noise", 3)
    page.click("Let them vote")
    page.says("All 11 votes are cast; 0 wins.")
    page.tab("Certificate")
    page.number("Noise σ", 0.3)
    page.number("Draws at most", 200)
    page.choose("0.05")
    page.click("Certify draw by draw")
    page.says(re.compile(r"Certified: 0 within an ℓ2 radius of 0\.\d+.*at least 0.95 over its own draws"))
    page.panel.get_by_text("What a certificate says, and what it does not").click()
    page.says("That the label is right")


def test_long_work_is_stopped(page: Page) -> None:
    page.tab("Certificate")
    page.type("Defence to smooth", "densepure:steps=10,votes=40")
    page.number("Draws at most", 10_000)
    page.click("Certify draw by draw")
    page.says(re.compile("proved", re.IGNORECASE))
    page.click("Stop")
    page.type("Defence to smooth", "none")
    page.number("Draws at most", 100)
    page.click("Certify draw by draw")
    page.says(re.compile("^ *(Certified|Abstained)"))


def test_defences_are_compared_and_the_diffusion_classifier_is_asked(page: Page) -> None:
    page.tab("Compare")
    page.choose("ℓ2: the length of all changes")
    page.number("Budget", 1.0)
    page.number("Gradient steps", 2)
    page.number("Draws at most", 100)
    page.type("Defences", "likelihood:iterations=1,timesteps=uniform:2")
    page.click("Compare on the original")
    page.says("All are done.")
    assert page.panel.locator("tbody tr").count() == 5
    page.tab("Diffusion classifier")
    page.number("Noise σ of the pictures", 0.3)
    page.number("Draw of noise", 1)
    page.type("Diffusion classifier", "dc:timesteps=uniform:2")
    page.click("Ask the diffusion model")
    page.says("The diffusion model finds 0 likeliest")


def test_pictures_of_ones_own_and_files_that_are_none(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page.upload(tmp_path / "notes.txt")
    page.says("upload: notes.txt cannot be decoded: cannot identify image file", of="#picture .prose")
    save_picture(tmp_path / "mine.png", torch.rand(1, 16, 24))
    page.upload(tmp_path / "mine.png")
    page.says("mine.png is 24×16 pixels. It was resized to 8×8", of="#picture .prose")
    page.says("mine.png: true class not known", of="#picture .prose")
    page.click("Another picture")
    page.says(re.compile(r"digits \d+: true class \d"), of="#picture .prose")


OWN = """
import diffproof as dp
import torch


class AlwaysThree(torch.nn.Module):
    num_classes = 10

    def forward(self, images):
        three = torch.eye(10)[torch.full((len(images),), 3)]
        return 9 * three + 0 * images.sum((1, 2, 3))[:, None]


def without_classes():
    return dp.GaussianMixtureDenoiser(torch.full((1, 1, 8, 8), 0.5), torch.tensor([0.1]))
"""


def test_networks_are_chosen_among(context: Any, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    given = (
        "--classifier digits --classifier own:AlwaysThree --denoiser digits --denoiser own:without_classes"
    )
    guides = "--guide own:AlwaysThree --guide digits"
    with serving(*f"{given} {guides}".split(), cwd=tmp_path) as address, visiting(context, address) as page:
        page.number("Gradient steps", 1)
        page.click("Attack the original")
        page.says("it calls it 0; after, it calls it 5")
        page.pick("Classifier", "own:AlwaysThree")
        page.click("Attack the original")
        page.says("Without an attack, it calls it 3.")
        page.tab("Diffusion classifier")
        page.pick("Diffusion model", "own:without_classes")
        page.click("Ask the diffusion model")
        page.says("denoiser: expected a class-conditional one, got one without classes")
        page.pick("Diffusion model", "digits")
        page.tab("Purify")
        page.choose("agdm")
        page.number("Noise t*", 0.4)
        page.click("Purify step by step")
        page.says("In the end the classifier calls it 3")
        # The picture, and of each of the nine states and the end what it is and what is seen in it.
        sync_api.expect(page.panel.locator("img")).to_have_count(19, timeout=30_000)
        last = page.panel.locator("img").nth(18)
        unguided = last.get_attribute("src")
        assert unguided is not None
        # A guide that always answers the same has no gradient, another moves the picture.
        page.pick("Guide", "digits")
        page.click("Purify step by step")
        sync_api.expect(last).not_to_have_attribute("src", unguided, timeout=30_000)
