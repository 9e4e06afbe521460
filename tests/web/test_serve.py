"""diffproof serve: one page that can only be read, by whom it is for, whatever becomes of its runs."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from diffproof.cli.main import run
from diffproof.errors import ArgumentError
from diffproof.runs.places import Places
from diffproof.web.live import board as boards
from diffproof.web.live.board import Board
from diffproof.web.live.server import serving
from helpers.command_line import Refused
from helpers.files import tree
from helpers.pages import Node, hash_in_policy, policy_of, read_page
from helpers.processes import until
from helpers.runs import change

HALF = "DELETE FROM images WHERE image_index > 30"
ALLOWED = {"default-src", "base-uri", "form-action", "frame-ancestors"}


class Client:
    """Asks one address.

    Args:
        address: of the page.
    """

    def __init__(self, address: str) -> None:
        self.host, self.port = urlsplit(address).hostname, urlsplit(address).port

    def __call__(
        self, path: str = "/", method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host or "", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=given)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body

    @property
    def state(self) -> dict[str, object]:
        status, headers, body = self("/state")
        assert (status, headers["content-type"]) == (200, "application/json")
        found: dict[str, object] = json.loads(body)
        return found

    @property
    def page(self) -> Node:
        return read_page(self()[2].decode())


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """A run, half of it."""
    folder = Path(shutil.copytree(runs / "none", tmp_path / "run"))
    change(folder, HALF)
    return folder


@pytest.fixture
def ask(copy: Path) -> Iterator[Client]:
    """Asks the server of it, which looks for changes whenever it is asked."""
    with serving(Board([copy], Places({}), every=0.0), "127.0.0.1", 0) as (address, local):
        assert local
        yield Client(address)


def test_the_page_is_that_of_the_report(ask: Client, copy: Path, tmp_path: Path) -> None:
    status, headers, body = ask()
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert {part.split()[0] for part in headers["content-security-policy"].split(";")} == ALLOWED
    assert "http" not in headers["content-security-policy"]
    page = read_page(body.decode())
    policy = policy_of(page)
    assert policy == {
        "default-src": ["'none'"],
        "style-src": [hash_in_policy(page.one("style").text)],
        "script-src": [hash_in_policy(script.text) for script in page.all("script")],
        "img-src": ["data:"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    assert run(["report", str(copy), "--html", str(tmp_path / "page.html")]) == 0
    file = read_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.one("main") == file.one("main")
    assert page.one("h1") == file.one("h1")
    strip = page.one("aside", id="live")
    assert strip.all("p")[1].text == f"{copy}: unfinished, 7 of 12 images finished"
    assert strip.attributes["data-version"] == ask.state["version"]
    # Without scripts the browser asks again.
    assert page.one("noscript").one("meta").attributes == {"http-equiv": "refresh", "content": "10"}


def test_a_page_goes_once_and_packed(ask: Client) -> None:
    plain = ask()
    packed = ask(Accept_Encoding="br, gzip;q=0.5")
    assert packed[1]["content-encoding"] == "gzip"
    assert gzip.decompress(packed[2]) == plain[2]
    assert len(packed[2]) < len(plain[2])
    assert "content-encoding" not in ask(Accept_Encoding="gzip;q=0, br")[1]
    head = ask(method="HEAD")
    assert (head[0], head[1]["content-length"], head[2]) == (200, str(len(plain[2])), b"")
    tag = plain[1]["etag"]
    assert ask(If_None_Match=tag)[::2] == (304, b"")
    assert ask(If_None_Match='"other"')[0] == 200


def test_it_can_only_be_read(ask: Client, copy: Path) -> None:
    before = tree(copy)
    for path in (
        "/state/",
        "/results.sqlite",
        "/../run/settings.yaml",
        "/%2e%2e/run/lock",
        "/favicon.ico",
    ):
        assert ask(path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
        status, headers, body = ask(method=method, body="x")
        assert (status, headers["allow"], body) == (405, "GET, HEAD", b"This page can only be read.\n")
    assert ask("/?theme=dark")[0] == 200
    assert tree(copy) == before


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7861", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("192.168.0.7:7861", 200),
        ("evil.example", 421),
        ("localhost.evil.example:7861", 421),
        ("127.0.0.1.evil.example", 421),
        ("127.0.0.1@evil.example", 421),
        (socket.gethostname() + ".evil.example", 421),
        ("", 421),
    ],
)
def test_other_names_of_its_address_are_refused(ask: Client, host: str, status: int) -> None:
    for path in ("/", "/state"):
        answer = ask(path, Host=host)
        assert answer[0] == status
        assert (b"not served under this name" in answer[2]) == (status == 421)


def test_names_of_a_machine_that_serves_others(copy: Path) -> None:
    board = Board([copy], Places({}), every=1.0)
    with serving(board, "0.0.0.0", 0) as (address, local):
        ask = Client(address)
        assert not local
        assert ask(Host=f"{socket.gethostname()}:80")[0] == 200
        assert ask(Host="evil.example")[0] == 421


def test_a_port_that_is_taken_meanwhile(copy: Path) -> None:
    board = Board([copy], Places({}), every=1.0)
    with serving(board, "127.0.0.1", 0) as (address, _):
        port = urlsplit(address).port or 0
        with pytest.raises(ArgumentError, match=f"{port} of 127.0.0.1 cannot be had: Address already"):
            serving(board, "127.0.0.1", port).__enter__()


@pytest.mark.slow
def test_a_page_follows_its_runs(ask: Client, copy: Path, runs: Path) -> None:
    first = ask.state
    assert ask.state == first
    change(copy, "UPDATE progress SET evaluations = evaluations + 1")
    assert ask.state == first
    shutil.copyfile(runs / "none" / "results.sqlite", copy / "results.sqlite")
    state = ask.state
    assert state["version"] != first["version"]
    assert state["lines"] == ["1 run finished."]
    assert len(ask.page.all("article")) == 12
    # What is deleted is waited for.
    shutil.rmtree(copy)
    assert ask.state["lines"] == [f"{copy}: waiting, there is no run yet"]
    assert ask.page.one("section").one("p").text.startswith("No image is finished yet.")
    # What is no run any more is said, and the page stays as it was.
    shutil.copytree(runs / "none", copy)
    version = ask.state["version"]
    (copy / "results.sqlite").write_bytes(b"no database, but long enough to be one" * 100)
    state = ask.state
    assert (state["troubled"], state["version"]) == (True, version)
    told = f"The runs cannot be read: run: the store in {copy} is corrupt: file is not a database"
    assert state["lines"] == [told]
    page = ask.page
    assert page.one("aside", id="live").classes == ["live", "troubled"]
    assert told in page.one("aside", id="live").text
    assert len(page.all("article")) == 12
    shutil.copyfile(runs / "none" / "results.sqlite", copy / "results.sqlite")
    assert ask.state["troubled"] is False


def test_an_error_of_ours_is_told_where_the_command_runs(
    ask: Client,
    copy: Path,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(boards, "open_runs", lambda *given: 1 / 0)
        shutil.copyfile(runs / "none" / "results.sqlite", copy / "results.sqlite")
        for _ in range(2):
            status, _, body = ask()
            assert (status, body) == (
                500,
                b"The page cannot be made; where diffproof serve runs, it says why.\n",
            )
    assert capsys.readouterr().err.count("ZeroDivisionError") == 1
    assert len(ask.page.all("article")) == 12


def test_many_runs_are_a_few_lines(runs: Path, tmp_path: Path) -> None:
    folders = [runs / "none", *(tmp_path / f"later-{number}" for number in range(6))]
    lines = Board(folders, Places({}), every=1.0).shown().lines
    assert lines[0] == f"{folders[1]}: waiting, there is no run yet"
    assert lines[4:] == ["2 further runs not finished.", "1 run finished."]


def test_markup_in_names_stays_text(copy: Path) -> None:
    odd = copy.rename(copy.parent / "<img src=x onerror=alert(1)>")
    with serving(Board([odd], Places({}), every=1.0), "127.0.0.1", 0) as (address, _):
        page = Client(address).page
    assert "<img src=x onerror=alert(1)>: unfinished" in page.one("aside", id="live").text
    assert all("onerror" not in node.attributes for node in page.all("img"))


@pytest.fixture
def started(copy: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The real command on a port that it chooses."""
    processes = []

    def start(*flags: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "diffproof", "serve", str(copy), "--port", "0", *flags]
        # A shell that starts the suite in the background lets it, and what it starts, ignore Ctrl-C.
        usual = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            made = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, usual)
        processes.append(made)
        return made

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_when_it_is_told_to(
    started: Callable[..., subprocess.Popen[str]], copy: Path, how: signal.Signals
) -> None:
    before = tree(copy)
    process = started("--every", "0.1")
    assert process.stdout is not None
    told = process.stdout.readline()
    found = re.fullmatch(r"the report is at (http://127\.0\.0\.1:\d+/); Ctrl-C ends it\n", told)
    assert found is not None
    assert Client(found[1])()[0] == 200
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert tree(copy) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve run", "demo"])
def test_pages_are_served_with_every_stream_closed(command: str, copy: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = f'exec "$PYTHON" -m diffproof {command} --port {port} >&- 2>&- <&-'
    environment = {**os.environ, "PYTHON": sys.executable}
    process = subprocess.Popen(["sh", "-c", line], cwd=copy.parent, env=environment)
    try:
        until(lambda: process.poll() is not None or listens(port), 240)
        assert Client(f"http://127.0.0.1:{port}/")()[0] == 200
        process.terminate()
        # It answers before it waits for its end: until then it is interrupted as any command.
        assert process.wait(60) in (0, 130)
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    """Whether somebody does at this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_cannot_be_served_is_one_line(
    refused: Refused, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(runs / "none")
    with socket.create_server(("127.0.0.1", 0)) as other, monkeypatch.context() as patch:
        port = other.getsockname()[1]
        # Nothing that loads torch is imported before.
        for module in ("runs.places", "web.live.board"):
            patch.setitem(sys.modules, f"diffproof.{module}", None)
        said = refused(["serve", folder, "--port", str(port)])
    assert said == f"--port: {port} of 127.0.0.1 cannot be had: Address already in use; --port takes another"
    assert refused(["serve", folder, "--port", "65536"]).startswith("Invalid value for '--port'")
    assert refused(["serve", folder, "--host", "no such host"]).startswith(
        "--host: expected a name or address"
    )
    assert refused(["serve", folder, "--host", "203.0.113.7"]).startswith(
        "--port: 7861 of 203.0.113.7 cannot be had"
    )
    assert refused(["serve", folder, "--data", "nowhere.npz"]).startswith("--data: no such file")
    if os.getuid():
        assert refused(["serve", folder, "--port", "80"]).startswith("--port: 80 of 127.0.0.1 cannot be had")
