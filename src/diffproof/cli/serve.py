"""diffproof serve: the page of a report, live."""

from __future__ import annotations

import threading
from pathlib import Path

import click

from diffproof.cli.flags import command
from diffproof.cli.paths import PATH
from diffproof.cli.screen import said
from diffproof.cli.watch import every_option


@command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--host", default="127.0.0.1", help="Serve at this address; 0.0.0.0 is all of this machine’s.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7861, help="Serve at this port; 0 takes a free one."
)
@every_option
@click.option("--data", help="Take the images from here. [default: packaged data of the runs]")
@click.option("--trust", is_flag=True, help="Open the data that RUNS name, for the images.")
def serve(runs: tuple[Path, ...], host: str, port: int, every: float, data: str | None, trust: bool) -> None:
    """Serve the page of `report --html` of RUNS, which renews itself as images are finished.

    What the reader has opened, chosen, sorted and scrolled to stays. A folder that is not there yet is waited
    for. The page can only be read, nothing is written to RUNS, and it is served to this machine alone unless
    --host says otherwise; --data and --trust are those of report. Ctrl-C ends it.
    """
    from diffproof.web.ports import check_port

    # Before torch is loaded.
    check_port(host, port)
    from diffproof.runs.places import Places
    from diffproof.web.live.board import Board
    from diffproof.web.live.server import serving

    board = Board(runs, Places({} if data is None else {"data": data}, trust), every)
    with serving(board, host, port) as (address, local):
        others = "" if local else "; without a password, to all who reach this machine"
        said(f"the report is at {address}{others}; Ctrl-C ends it")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return
