"""Serves the page, by default to this machine alone, until somebody ends it."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffproof.optional import import_optional
from diffproof.web.demo.actions import Actions
from diffproof.web.demo.page import build, look

# What keeps gradio and what it stands on from telling others, read when they are imported.
_SILENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
_LARGEST_UPLOAD = "50mb"


@contextmanager
def silent_gradio() -> Iterator[Any]:
    """Gradio, which asks nobody anything; its files lie in a folder that goes with the context.

    Raises:
        ValueError: it is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="diffproof-demo-") as folder:
        os.environ.update(_SILENT, GRADIO_TEMP_DIR=folder)
        yield import_optional("gradio", "web")


@contextmanager
def served(gr: Any, actions: Actions, host: str, port: int) -> Iterator[str]:
    """Serve the page while the context lasts, and give its address. No request leaves this machine.

    Args:
        gr: the library.
        actions: what clicks do.
        host: the address to listen at; 127.0.0.1 for this machine alone.
        port: the port to listen at, a free one; see `ports.check_port`.
    """
    # Gradio asks the page for itself, which is no proxy's business.
    os.environ["no_proxy"] = _unproxied(host)
    blocks = build(gr, actions)
    try:
        _, address, _ = blocks.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            max_file_size=_LARGEST_UPLOAD,
            **look(gr),
        )
        yield str(address)
    finally:
        blocks.close(verbose=False)


def _unproxied(host: str) -> str:
    """The value of no_proxy with the hosts of the page."""
    known = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    return ",".join([*filter(None, known.split(",")), host, "localhost", "127.0.0.1"])


def wait() -> None:
    """Until somebody interrupts."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
