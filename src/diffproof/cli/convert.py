"""diffproof convert."""

from __future__ import annotations

from pathlib import Path

import click

from diffproof.cli.flags import command
from diffproof.cli.paths import PATH
from diffproof.cli.screen import printed


@command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("out", metavar="OUT.safetensors", type=PATH)
@click.option("--trust-pickle", is_flag=True, help="Load IN even if it is a pickle with code; see above.")
@click.option(
    "--key",
    help="Take the weights from this entry of IN. [default: IN itself if it has the tensors, else the first"
    " there is of ema, model_ema, ema_state_dict, state_dict, model_state_dict, model]",
)
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def convert(source: Path, out: Path, trust_pickle: bool, key: str | None, force: bool) -> None:
    """Turn a checkpoint into safetensors, which hold tensors and no code.

    IN is a .pt, .pth, .pkl or .bin file with a state dict or a module in it. Files that hold only tensors,
    numbers and text are read as data.

    Any other pickle can run any program on your machine with your rights while it loads, so it is refused
    without --trust-pickle. Give that flag only for a file whose source you trust as you would trust a program
    to run. The file is then loaded in a separate process: its code and memory stay out of this one and it
    sees of your environment variables only PATH and its like, but that is NOT a sandbox: it can read, write
    and delete your files and use the network. After ten minutes it is ended, with all that it started. Only
    classes that are not installed become inert stand-ins, and the source inside EDM's pickles is not run.
    """
    from diffproof.convert import convert as convert_file
    from diffproof.wording import counted

    converted = convert_file(source, out, trust_pickle=trust_pickle, key=key, force=force)
    held = f"{counted(converted.tensors, 'tensor')}, {counted(converted.values, 'value')}"
    printed(f"taken: {converted.taken}, {held}")
    printed(f"written: {out}")
