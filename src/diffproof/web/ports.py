"""Addresses and ports that pages are served at."""

from __future__ import annotations

import socket
from typing import Any

from diffproof.errors import ArgumentError


def resolved(host: str, port: int) -> tuple[int, Any]:
    """The family of addresses of a host, and what to listen at; ValueError where it has no address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no name"
        raise ArgumentError(
            "host", f"expected a name or address of this machine, got {host!r} ({why})"
        ) from None
    family, *_, address = found[0]
    return int(family), address


def unavailable(host: str, port: int, error: OSError) -> ArgumentError:
    """The error of a port at which nobody can listen."""
    return ArgumentError("port", f"{port} of {host} cannot be had: {error.strerror}; --port takes another")


def check_port(host: str, port: int) -> None:
    """Raise ValueError unless somebody can listen there."""
    family, address = resolved(host, port)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise unavailable(host, port, error) from None
