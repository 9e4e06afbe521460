"""diffproof demo."""

from __future__ import annotations

import click

from diffproof.cli.flags import command, device_option
from diffproof.cli.run_options import class_map_option
from diffproof.cli.screen import said


@command()
@click.option(
    "--data", default="digits", help="Offer the pictures of this data set; see diffproof certify --help."
)
@click.option(
    "--split", help="Take this split of the data. [default: test (imagenet: validation), or the only one]"
)
@click.option(
    "--image-size",
    type=int,
    help="Resize pictures of --data to this shorter side, then crop a square. [default: no]",
)
@click.option(
    "--classifier",
    "classifiers",
    multiple=True,
    default=["digits"],
    help="Offer this classifier; give it again for more. See diffproof certify --help.",
)
@click.option(
    "--denoiser",
    "denoisers",
    multiple=True,
    default=["digits"],
    help="Offer this diffusion model; give it again for more.",
)
@click.option(
    "--guide",
    "guides",
    multiple=True,
    help="Offer agdm with this classifier as its guide; give it again for more. [default: no agdm]",
)
@class_map_option
@device_option
@click.option(
    "--host", default="127.0.0.1", help="Serve the page at this address; 0.0.0.0 is all of this machine’s."
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, help="Serve the page at this port.")
def demo(
    data: str,
    split: str | None,
    image_size: int | None,
    classifiers: tuple[str, ...],
    denoisers: tuple[str, ...],
    guides: tuple[str, ...],
    class_map: str | None,
    device: str,
    host: str,
    port: int,
) -> None:
    """Serve a page on which defences are tried on one picture at a time.

    Attack a picture, see it purified step by step, watch votes come in and a certificate grow draw by draw,
    compare defences, ask the diffusion classifier; on your own pictures, too. The page is served to this
    machine alone unless --host says otherwise, and asks no other; Ctrl-C ends it. It needs the extra web:
    pip install 'diffproof[web]'. docs/browser.md shows the page.

    \b
      diffproof demo
      diffproof demo --data images/ --classifier hf:my-vit --denoiser cifar10
    """
    from diffproof.web.ports import check_port

    # Before torch and gradio are loaded.
    check_port(host, port)
    from diffproof.runs.prepare import resolve_device
    from diffproof.web.demo.actions import Actions
    from diffproof.web.demo.serve import served, silent_gradio, wait
    from diffproof.web.demo.studio import Studio

    with silent_gradio() as gr:
        studio = Studio.load(
            data,
            classifiers,
            denoisers,
            guides,
            device=resolve_device(device),
            split=split,
            image_size=image_size,
            class_map=class_map,
        )
        with served(gr, Actions(studio), host, port) as address:
            said(f"the demo is at {address}; Ctrl-C ends it")
            wait()
