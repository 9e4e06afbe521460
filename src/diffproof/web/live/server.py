"""A server of one page that only reads: two addresses, no path of a file in them, no request to anybody."""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

from diffproof.web.live.board import Board
from diffproof.web.ports import resolved, unavailable

# Of every answer: kept nowhere, in no frame, read by no other page, and it loads nothing from elsewhere. The
# page's own policy, in the page, allows its script and pictures; what both allow holds.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'self' 'unsafe-inline' data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_TEXT, _HTML, _JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json"
_FAILED = "The page cannot be made; where diffproof serve runs, it says why.\n"


class _Server(ThreadingHTTPServer):
    """Serves a board.

    Args:
        host: as the user named it.
        family: of addresses.
        address: to listen at.
        board: what is served.
    """

    daemon_threads = True

    def __init__(self, host: str, family: int, address: object, board: Board) -> None:
        self.address_family = family
        self.board, self.host, self.last_problem = board, host, ""
        super().__init__(address, _Handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        """Without the look-up of the machine's name, which may ask others."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Somebody who leaves before the end is no error."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()

    def knows(self, host: str | None) -> bool:
        """Whether a request's Host may be ours: no name that somebody else has led to this address.

        Where the page is for this machine alone, that are localhost and addresses; else its names, too.
        """
        name = (host or "").rpartition("]")[0].lstrip("[") or (host or "").partition(":")[0]
        name = name.lower().rstrip(".")
        if _is_address(name) or name in ("localhost", self.host.lower()):
            return True
        here = socket.gethostname().lower()
        return not _is_local(self.server_address[0]) and name in (here, here.partition(".")[0])


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "diffproof", ""
    # Seconds that a connection may be silent; after an answer it is closed.
    timeout = 60
    error_content_type, error_message_format = _TEXT, "%(message)s\n"
    server: _Server

    def do_GET(self) -> None:
        """Answer with the page, or with how far its runs are."""
        if not self.server.knows(self.headers.get("Host")):
            told = "This page is not served under this name: take the address that diffproof serve printed.\n"
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, _TEXT, told.encode())
            return
        path = self.path.partition("?")[0]
        if path not in ("/", "/state"):
            self._answer(HTTPStatus.NOT_FOUND, _TEXT, b"There is nothing here but the page at /.\n")
            return
        try:
            shown = self.server.board.shown()
            if path == "/state":
                self._answer(HTTPStatus.OK, _JSON, shown.state)
            elif self.headers.get("If-None-Match") == shown.tag:
                self._answer(HTTPStatus.NOT_MODIFIED, _HTML, b"", ETag=shown.tag)
            elif _takes_gzip(self.headers.get("Accept-Encoding", "")):
                self._answer(HTTPStatus.OK, _HTML, shown.packed, ETag=shown.tag, Content_Encoding="gzip")
            else:
                self._answer(HTTPStatus.OK, _HTML, shown.document, ETag=shown.tag)
        except OSError:
            # They left.
            raise
        except Exception:
            # An error of ours is told where the command runs, once, and the page is served on.
            problem = traceback.format_exc()
            if problem != self.server.last_problem:
                print(problem, file=sys.stderr)
            self.server.last_problem = problem
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, _FAILED.encode())

    def do_HEAD(self) -> None:
        """Answer with the head of what GET gets."""
        self.do_GET()

    def parse_request(self) -> bool:
        """Refuse what does not only read."""
        if not super().parse_request():
            return False
        if self.command in ("GET", "HEAD"):
            return True
        told = b"This page can only be read.\n"
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, told, Allow="GET, HEAD")
        return False

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        length = {} if status == HTTPStatus.NOT_MODIFIED else {"Content-Length": str(len(body))}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        every = {**_HEADERS, "Content-Type": kind, "Vary": "Accept-Encoding", **length, **given}
        for name, value in every.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nobody is told who looks."""


def _takes_gzip(accepted: str) -> bool:
    """Whether a browser takes gzip, by its Accept-Encoding."""
    for one in accepted.lower().split(","):
        name, _, quality = one.replace(" ", "").partition(";")
        if name == "gzip":
            return quality not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_local(address: object) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(str(address).partition("%")[0]).is_loopback


@contextmanager
def serving(board: Board, host: str, port: int) -> Iterator[tuple[str, bool]]:
    """Serve a board while the context lasts.

    Args:
        board: what is served.
        host: the address to listen at; 127.0.0.1 for this machine alone.
        port: the port to listen at; 0 for any that is free.

    Yields:
        The page's address, and whether only this machine reaches it.

    Raises:
        ValueError: the host is no address of this machine, or the port cannot be had.
    """
    family, address = resolved(host, port)
    try:
        server = _Server(host, family, address, board)
    except OSError as error:
        raise unavailable(host, port, error) from None
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        try:
            name = f"[{host}]" if ":" in host else host
            yield f"http://{name}:{server.server_port}/", _is_local(server.server_address[0])
        finally:
            server.shutdown()
            thread.join()
