"""What a click on the page does: settings in, HTML out."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec

from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.values import number
from diffproof.web.demo.asking import asked
from diffproof.web.demo.attacking import attacked
from diffproof.web.demo.certifying import growing
from diffproof.web.demo.comparing import Compared, compared
from diffproof.web.demo.picture import Picture, of_data, uploaded
from diffproof.web.demo.pieces import problem
from diffproof.web.demo.purifying import stages
from diffproof.web.demo.shown import (
    shown_answer,
    shown_attack,
    shown_comparison,
    shown_growth,
    shown_picture,
    shown_stages,
    shown_votes,
)
from diffproof.web.demo.studio import Networks, Studio
from diffproof.web.demo.voting import ballots
from diffproof.web.markup import Html, markup

P = ParamSpec("P")

# What the tabs work on.
ORIGINAL, ATTACKED = "the original", "the attacked picture"


@dataclass(frozen=True)
class Visit:
    """What one visitor has before him.

    Attributes:
        picture: the chosen picture.
        adversarial: what the last attack on it made of it; None before one.
    """

    picture: Picture
    adversarial: Tensor | None = None

    def worked_on(self, which: str) -> Picture:
        """The original or the attacked picture.

        Raises:
            ValueError: it has not been attacked.
        """
        if which == ORIGINAL:
            return self.picture
        if self.adversarial is None:
            raise ArgumentError("picture", "there is no attacked one yet; the tab Attack makes one")
        return self.picture.changed(self.adversarial, f"{self.picture.name}, attacked")


Handler = Callable[P, Iterator[Html]]


def _told(work: Handler[P]) -> Handler[P]:
    """The same, with a visitor's mistake as a sentence on the page; a bug stays a bug."""

    @functools.wraps(work)
    def handler(*args: P.args, **kwargs: P.kwargs) -> Iterator[Html]:
        try:
            yield from work(*args, **kwargs)
        except (ArgumentError, MemoryError) as error:
            yield problem(error)

    return handler


class Actions:
    """The clicks of a page over a studio.

    Each yields HTML, again and again where the work takes long; the last is what stays.

    Args:
        studio: data and networks.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def start(self) -> Visit:
        """What a visitor sees first."""
        return Visit(of_data(self.studio, 0))

    def show(self, visit: Visit) -> Html:
        """The chosen picture."""
        return shown_picture(visit.picture, self.studio.class_name)

    def choose(self, visit: Visit, index: int) -> tuple[Visit, Html]:
        """A picture of the data, by its number."""
        try:
            visit = Visit(of_data(self.studio, int(index)))
        except ArgumentError as error:
            # The picture before is still the one that is worked on.
            return visit, markup(problem(error), self.show(visit))
        return visit, self.show(visit)

    def another(self) -> int:
        """The number of any picture of the data."""
        return random.randrange(len(self.studio.data))

    def upload(self, visit: Visit, path: str | None) -> tuple[Visit, Html]:
        """A visitor's own picture; the one before stays where it is none."""
        if path is None:
            return visit, self.show(visit)
        try:
            visit = Visit(uploaded(self.studio, Path(path), Path(path).name))
        except ArgumentError as error:
            # The picture before is still the one that is worked on.
            return visit, markup(problem(error), self.show(visit))
        return visit, self.show(visit)

    def attack(
        self,
        visit: Visit,
        networks: Networks,
        text: str,
        *,
        threat: str,
        budget: float,
        iterations: int,
        eot: int,
    ) -> tuple[Visit, Html]:
        """Attack the original."""
        try:
            found = attacked(
                self.studio.defense(text, networks),
                visit.picture,
                threat=threat,
                budget=budget,
                iterations=iterations,
                eot=eot,
            )
        except (ArgumentError, MemoryError) as error:
            return visit, problem(error)
        visit = replace(visit, adversarial=found.adversarial)
        return visit, shown_attack(found, self.studio.class_name, text)

    @_told
    def purify(
        self,
        visit: Visit,
        networks: Networks,
        which: str,
        method: str,
        *,
        t_star: float,
        steps: int,
        solver: str,
        draw: int,
    ) -> Iterator[Html]:
        """Run a reverse process."""
        defense = self.studio.defense(f"{method}:t_star={t_star:g},steps={steps},solver={solver}", networks)
        picture, seen = visit.worked_on(which), []
        for stage in stages(defense, picture, draw=draw):
            seen.append(stage)
            yield shown_stages(seen, picture, self.studio.class_name)

    @_told
    def vote(
        self, visit: Visit, networks: Networks, which: str, *, sigma: float, steps: int, votes: int, draw: int
    ) -> Iterator[Html]:
        """Let DensePure's samples of one draw vote."""
        defense = self.studio.defense(f"densepure:steps={steps},votes={votes}", networks)
        picture = visit.worked_on(which)
        for ballot in ballots(defense, picture, sigma=sigma, draw=draw):
            yield shown_votes(ballot, picture, self.studio.class_name)

    @_told
    def certify(
        self,
        visit: Visit,
        networks: Networks,
        which: str,
        text: str,
        *,
        sigma: float,
        n: int,
        alpha: str,
    ) -> Iterator[Html]:
        """Certify, draw by draw."""
        picture = visit.worked_on(which)
        other = None if which == ATTACKED else visit.adversarial
        defense = self.studio.defense(text, networks)
        for one in growing(defense, picture, sigma=sigma, n=n, alpha=number(alpha)):
            yield shown_growth(one, picture, self.studio.class_name, other)

    @_told
    def compare(
        self,
        visit: Visit,
        networks: Networks,
        texts: list[str],
        *,
        threat: str,
        budget: float,
        iterations: int,
        n: int,
    ) -> Iterator[Html]:
        """Attack and certify each defence."""
        if not texts:
            raise ArgumentError("defences", "expected at least one, got none")
        rows: list[Compared] = []
        named = self.studio.class_name
        yield shown_comparison(rows, named, len(texts))
        for row in compared(
            self.studio,
            networks,
            texts,
            visit.picture,
            threat=threat,
            budget=budget,
            iterations=iterations,
            n=n,
        ):
            rows.append(row)
            yield shown_comparison(rows, named, len(texts))

    @_told
    def ask(
        self, visit: Visit, networks: Networks, which: str, text: str, *, sigma: float, draw: int
    ) -> Iterator[Html]:
        """Ask the diffusion classifier."""
        picture = visit.worked_on(which)
        answer = asked(self.studio.defense(text, networks), picture, sigma=sigma, draw=draw)
        yield shown_answer(answer, picture, self.studio.class_name)
