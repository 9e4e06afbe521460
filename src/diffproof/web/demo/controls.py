"""Controls that all tabs of the page share, made of gradio's components."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffproof.web.demo.actions import Actions, Visit
from diffproof.web.demo.studio import Networks
from diffproof.web.markup import tag


@dataclass
class Controls:
    """What all tabs share, and how they make their own.

    Attributes:
        gr: the library.
        actions: what clicks do.
        visit: the visitor's picture.
        networks: the choosers of classifier, diffusion model and, where there is one, guide.
        which: the chooser of the original or the attacked picture.
        running: what the button Stop ends.
    """

    gr: Any
    actions: Actions
    visit: Any
    networks: Sequence[Any]
    which: Any
    running: list[Any] = field(default_factory=list)

    def defense(self, label: str, texts: Sequence[str]) -> Any:
        """A chooser of a defence, in which any other can be typed."""
        return self.gr.Dropdown(
            list(texts),
            value=texts[0],
            label=label,
            info="Or type any other with its settings, as after --defense.",
            allow_custom_value=True,
        )

    def guided(self, text: str) -> list[str]:
        """A defence that needs a guide, or nothing where the page has none."""
        return [text] if self.actions.studio.guides else []

    def slider(self, label: str, low: float, high: float, value: float, step: float, info: str = "") -> Any:
        """A slider with a field for its number."""
        return self.gr.Slider(low, high, value=value, step=step, label=label, info=info or None)

    def draw(self) -> Any:
        """The chooser of a draw of noise."""
        return self.slider("Draw of noise", 0, 99, 0, 1, "Another number is another noise.")

    def output(self, text: str) -> Any:
        """Where a tab's answer stands, and what stands there before."""
        return self.gr.HTML(tag("p", text), elem_classes="said")

    def on_click(
        self,
        label: str,
        work: Callable[..., Iterator[Any]],
        inputs: Sequence[Any],
        outputs: Callable[[], Any],
    ) -> None:
        """A button that calls `work` with the visit, the networks and what is chosen, one click at a time.

        Args:
            label: of the button.
            work: what it calls; it yields what stands in the outputs.
            inputs: what is chosen on the tab.
            outputs: makes the places of the answer, which stand below the button.
        """
        split = len(self.networks)

        def handler(visit: Visit, *chosen: Any) -> Iterator[Any]:
            yield from work(visit, Networks(*chosen[:split]), *chosen[split:])

        button = self.gr.Button(label, variant="primary")
        self.running.append(
            button.click(
                handler,
                [self.visit, *self.networks, *inputs],
                outputs(),
                concurrency_id="networks",
                concurrency_limit=1,
                show_progress="minimal",
                api_visibility="private",
            )
        )
