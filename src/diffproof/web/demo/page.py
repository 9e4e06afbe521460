"""The page: what is worked on at its left, a tab for each thing to try at its right."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from diffproof.web.demo.actions import ATTACKED, ORIGINAL, Actions
from diffproof.web.demo.controls import Controls
from diffproof.web.demo.tabs import TABS

TITLE = "diffproof demo"
_ABOUT = (
    "Choose a picture, attack it, watch a diffusion model purify it, and prove how far its label holds."
    " Everything is computed on the machine that serves this page; nothing is sent anywhere else."
)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
_MONO = ("ui-monospace", "Liberation Mono", "monospace")


def build(gr: Any, actions: Actions) -> Any:
    """The page as gradio's Blocks.

    Args:
        gr: the library.
        actions: what clicks do.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}\n\n{_ABOUT}")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                page = _choosers(gr, actions)
                stop = gr.Button("Stop")
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                for name, tab in TABS.items():
                    with gr.Tab(name):
                        tab(page)
        stop.click(None, cancels=page.running, api_visibility="private")
    return blocks


def look(gr: Any) -> dict[str, Any]:
    """Theme and style as `launch` takes them, with fonts that the visitor's machine has."""
    theme = gr.themes.Default(primary_hue="blue", font=list(_FONTS), font_mono=list(_MONO))
    # Gradio's own colours of small text and of the tab that is open are too faint to read.
    theme.set(color_accent="*primary_600")
    quiet = {"block_info_text_color": "*neutral_600", "body_text_color_subdued": "*neutral_600"}
    theme.set(**quiet, **{f"{name}_dark": "*neutral_300" for name in quiet})
    return {"theme": theme, "css": (files("diffproof.web.demo") / "demo.css").read_text(encoding="utf-8")}


def _choosers(gr: Any, actions: Actions) -> Controls:
    """The picture, and the networks."""
    studio, start = actions.studio, actions.start()
    visit = gr.State(start)
    shown = gr.HTML(actions.show(start), elem_id="picture", elem_classes="said")
    last = len(studio.data) - 1
    index = gr.Slider(0, last, value=0, step=1, label=f"Picture of {studio.data.name}")
    another = gr.Button("Another picture")
    upload = gr.File(label="Or a picture of your own", height=170)
    which = gr.Radio(
        [ORIGINAL, ATTACKED], value=ORIGINAL, label="Tabs work on", info="Attacks start at the original."
    )
    offered = {"Classifier": studio.classifiers, "Diffusion model": studio.denoisers, "Guide": studio.guides}
    networks = [
        gr.Dropdown(list(specs), value=next(iter(specs)), label=label, interactive=True)
        for label, specs in offered.items()
        if specs
    ]
    quick = {"show_progress": "hidden", "api_visibility": "private"}
    index.change(actions.choose, [visit, index], [visit, shown], trigger_mode="always_last", **quick)
    another.click(actions.another, None, index, **quick)
    upload.change(actions.upload, [visit, upload], [visit, shown], **quick)
    return Controls(gr, actions, visit, networks, which)
