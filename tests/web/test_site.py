"""The site of docs/: built without a warning, loading nothing of other hosts, readable, with a reference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

import diffproof as dp
from diffproof.cli.main import diffproof as command_group
from diffproof.methods import KINDS
from helpers.contrast import CONTRASTS
from helpers.paths import ROOT

pytestmark = pytest.mark.slow

# What a browser loads by itself, in HTML and in style sheets.
_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\s(?:src|data)=[\"']?([^\"'\s>]+)"
)
_LINKED = re.compile(r"<link\b[^>]*>")
_STYLED = re.compile(r"url\([\"']?([^\"')]+)|@import\s+[\"']([^\"']+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed: pip install 'diffproof[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    pages, sheets = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert len(pages) >= 25
    assert sheets
    loaded = [(page.name, url) for page in pages for url in _loaded(page.read_text(encoding="utf-8"))]
    for sheet in sheets:
        found = _STYLED.findall(sheet.read_text(encoding="utf-8"))
        loaded += [(sheet.name, url or other) for url, other in found]
    assert len(loaded) > 100
    assert [one for one in loaded if re.match(r"(https?:)?//", one[1])] == []


def _loaded(page: str) -> list[str]:
    links = [
        link for link in _LINKED.findall(page) if not re.search(r"rel=[\"']?(canonical|next|prev)", link)
    ]
    hrefs = [found[1] for link in links if (found := re.search(r"href=[\"']?([^\"'\s>]+)", link))]
    return [*_LOADED.findall(page), *hrefs]


def test_what_would_be_loaded_is_seen() -> None:
    page = (
        '<link rel="stylesheet" href="https://a/b.css"><script async src="//c/d.js"></script><img src=e.png>'
    )
    assert _loaded(page) == ["//c/d.js", "e.png", "https://a/b.css"]


def test_the_reference_has_every_command_method_and_public_name(site: Path) -> None:
    pages = {
        path.parent.name: path.read_text(encoding="utf-8")
        for path in (site / "reference").rglob("index.html")
    }
    for name in commands("diffproof", command_group):
        assert f">{name}<a" in pages["commands"], name
    for name, method in [pair for table in KINDS.values() for pair in table.items()]:
        assert f">{name}<a" in pages["methods"], name
        assert all(f"<code>{setting.name}</code>" in pages["methods"] for setting in method.settings)
    for name in dp.__all__:
        home = getattr(dp, name).__module__
        assert f'id="{home}.{name}"' in pages["python"], name


def commands(path: str, command: click.Command) -> list[str]:
    inner = command.commands.items() if isinstance(command, click.Group) else ()
    return [path, *(one for name, child in inner for one in commands(f"{path} {name}", child))]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of the site, served to this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_can_be_read_and_ask_no_other_host(browser: Any, served: str, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 844})
    complaints: list[str] = []

    def asked(url: str) -> None:
        if not url.startswith((served, "data:", "blob:")):
            complaints.append(url)

    page.on("request", lambda one: asked(one.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for name in (
        "",
        "guides/certify/",
        "guides/own_code/",
        "faq/",
        "reference/methods/",
        "reference/python/",
    ):
        page.goto(served + name)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        found = page.evaluate(CONTRASTS)
        assert len(found) > 100
        assert [one for one in found if one[0] < 4.5] == []
    # The search has its index from here, too; it hears keys.
    page.goto(served)
    page.locator("label[for=__search]").first.click()
    page.locator("input[name=query]").press_sequentially("radius")
    page.locator(".md-search-result__item").first.wait_for()
    page.close()
    assert complaints == []
