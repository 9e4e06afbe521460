"""The tabs of the page: the controls of each, and the action that its button calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from diffproof.web.demo.actions import Visit
from diffproof.web.demo.controls import Controls
from diffproof.web.demo.studio import Networks
from diffproof.web.markup import Html

# Suggestions; any other defence can be typed.
_ATTACKED = (
    "none",
    "dds:sigma=0.25",
    "diffpure:t_star=0.1,steps=5",
    "densepure:sigma=0.25,steps=2,votes=5",
)
_CERTIFIED = ("dds", "none", "densepure:steps=2,votes=5")
_COMPARED = ("none", "none:sigma=0.25", "dds:sigma=0.25", "diffpure:t_star=0.1,steps=5")
_MORE = ("densepure:sigma=0.25,steps=2,votes=5", "coup:steps=5", "dc:timesteps=uniform:4")
_ASKED = (
    "dc:timesteps=uniform:8",
    "rdc:timesteps=uniform:8,likelihood_timesteps=uniform:4,iterations=3,budget=0.1",
)
# Where there is a guide.
_GUIDED = "agdm:t_star=0.1,steps=5"
# Of a threat: the largest budget of its slider, and the first.
_BUDGETS = {"linf": (0.5, 0.2), "l2": (4.0, 1.0)}
_NORMS = [("ℓ∞: the largest change of a pixel", "linf"), ("ℓ2: the length of all changes", "l2")]


def attack(page: Controls) -> None:
    """PGD with a budget."""
    gr = page.gr
    defense = page.defense("Defence", (*_ATTACKED, *page.guided(_GUIDED)))
    with gr.Row():
        threat = gr.Radio(_NORMS, value="linf", label="Norm of the change")
        budget = page.slider(
            "Budget", 0.0, _BUDGETS["linf"][0], _BUDGETS["linf"][1], 0.01, "Of [0, 1] pixels."
        )
    with gr.Row():
        iterations = page.slider("Gradient steps", 1, 50, 10, 1)
        eot = page.slider("Draws a gradient", 1, 10, 1, 1, "Of a defence’s noise, for random ones.")

    def ranged(name: str) -> Any:
        most, first = _BUDGETS[name]
        return gr.Slider(maximum=most, value=first)

    threat.change(ranged, threat, budget, show_progress="hidden", api_visibility="private")

    def work(
        visit: Visit,
        networks: Networks,
        text: str,
        norm: str,
        size: float,
        steps: int,
        draws: int,
    ) -> Iterator[tuple[Visit, Html]]:
        yield page.actions.attack(
            visit,
            networks,
            text,
            threat=norm,
            budget=size,
            iterations=int(steps),
            eot=int(draws),
        )

    page.on_click(
        "Attack the original",
        work,
        [defense, threat, budget, iterations, eot],
        lambda: [
            page.visit,
            page.output("The attack changes the picture within the budget until the label flips."),
        ],
    )


def purify(page: Controls) -> None:
    """The reverse process, step by step."""
    gr = page.gr
    with gr.Row():
        method = gr.Radio(
            ["diffpure", "gdmp", "coup", *page.guided("agdm")], value="diffpure", label="Method"
        )
        solver = gr.Radio(["ddpm", "sde", "ode"], value="ddpm", label="Solver")
    with gr.Row():
        t_star = page.slider("Noise t*", 0.01, 0.5, 0.15, 0.01, "The time to which the picture is diffused.")
        steps = page.slider("Steps", 1, 50, 8, 1)
        draw = page.draw()

    def work(
        visit: Visit,
        networks: Networks,
        which: str,
        name: str,
        by: str,
        t: float,
        n: int,
        number: int,
    ) -> Iterator[Html]:
        yield from page.actions.purify(
            visit,
            networks,
            which,
            name,
            solver=by,
            t_star=t,
            steps=int(n),
            draw=int(number),
        )

    page.on_click(
        "Purify step by step",
        work,
        [page.which, method, solver, t_star, steps, draw],
        lambda: page.output("Noise first, then the reverse process takes it away step by step."),
    )


def vote(page: Controls) -> None:
    """DensePure's votes."""
    with page.gr.Row():
        sigma = page.slider("Noise σ", 0.05, 1.0, 0.5, 0.05, "Of [0, 1] pixels.")
        steps = page.slider("Steps of a sample", 2, 20, 3, 1)
    with page.gr.Row():
        votes = page.slider("Votes K", 1, 100, 40, 1)
        draw = page.draw()

    def work(
        visit: Visit, networks: Networks, which: str, noise: float, b: int, k: int, number: int
    ) -> Iterator[Html]:
        yield from page.actions.vote(
            visit,
            networks,
            which,
            sigma=noise,
            steps=int(b),
            votes=int(k),
            draw=int(number),
        )

    page.on_click(
        "Let them vote",
        work,
        [page.which, sigma, steps, votes, draw],
        lambda: page.output(
            "One noisy draw, K samples of what it may have been, and a vote of their labels."
        ),
    )


def certify(page: Controls) -> None:
    """A certificate that grows."""
    gr = page.gr
    defense = page.defense("Defence to smooth", _CERTIFIED)
    with gr.Row():
        sigma = page.slider("Noise σ", 0.05, 1.0, 0.25, 0.05, "Of [0, 1] pixels.")
        n = page.slider("Draws at most", 100, 10_000, 500, 100)
        alpha = gr.Radio(["0.05", "0.01", "0.001"], value="0.001", label="Chance of error α")

    def work(
        visit: Visit,
        networks: Networks,
        which: str,
        text: str,
        noise: float,
        most: int,
        error: str,
    ) -> Iterator[Html]:
        yield from page.actions.certify(visit, networks, which, text, sigma=noise, n=int(most), alpha=error)

    page.on_click(
        "Certify draw by draw",
        work,
        [page.which, defense, sigma, n, alpha],
        lambda: page.output(
            "Each draw adds noise and asks for a label; the more agree, the larger the radius."
        ),
    )


def compare(page: Controls) -> None:
    """Defences side by side."""
    gr = page.gr
    texts = gr.Dropdown(
        [*_COMPARED, *_MORE, *page.guided(_GUIDED)],
        value=list(_COMPARED),
        multiselect=True,
        label="Defences",
        info="Or type any other with its settings, as after --defense, and Enter.",
        allow_custom_value=True,
    )
    with gr.Row():
        threat = gr.Radio(_NORMS, value="linf", label="Norm of the change")
        budget = gr.Number(_BUDGETS["linf"][1], label="Budget", minimum=0.0)
        iterations = page.slider("Gradient steps", 1, 50, 5, 1)
        n = page.slider("Draws at most", 100, 5_000, 200, 100, "Of a certificate.")

    def work(
        visit: Visit,
        networks: Networks,
        names: list[str],
        norm: str,
        size: float,
        steps: int,
        most: int,
    ) -> Iterator[Html]:
        yield from page.actions.compare(
            visit,
            networks,
            names,
            threat=norm,
            budget=size,
            iterations=int(steps),
            n=int(most),
        )

    page.on_click(
        "Compare on the original",
        work,
        [texts, threat, budget, iterations, n],
        lambda: page.output("Each defence is attacked for itself, and certified where it has a sigma."),
    )


def ask(page: Controls) -> None:
    """The diffusion classifier."""
    defense = page.defense("Diffusion classifier", _ASKED)
    with page.gr.Row():
        sigma = page.slider("Noise σ of the pictures", 0.05, 2.0, 0.5, 0.05, "Of [0, 1] pixels.")
        draw = page.draw()

    def work(
        visit: Visit, networks: Networks, which: str, text: str, noise: float, number: int
    ) -> Iterator[Html]:
        yield from page.actions.ask(visit, networks, which, text, sigma=noise, draw=int(number))

    page.on_click(
        "Ask the diffusion model",
        work,
        [page.which, defense, sigma, draw],
        lambda: page.output("Under which class does the diffusion model explain the picture best?"),
    )


TABS: dict[str, Callable[[Controls], None]] = {
    "Attack": attack,
    "Purify": purify,
    "Votes": vote,
    "Certificate": certify,
    "Compare": compare,
    "Diffusion classifier": ask,
}
