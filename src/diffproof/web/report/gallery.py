"""Every image of the runs with its certificates or attacks, to be filtered and sorted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from diffproof.attacks.evaluation import Evaluated
from diffproof.defenses.voting import majority
from diffproof.runs.attack.report import AttackRow, difference
from diffproof.runs.attack.store import AttackedImage
from diffproof.runs.certify.report import Report, Row
from diffproof.runs.certify.store import ImageResult
from diffproof.runs.settings import RunSettings
from diffproof.web.markup import Child, Html, tag
from diffproof.web.report.opened import Opened
from diffproof.web.report.source import Source
from diffproof.web.report.thumbnails import Album
from diffproof.wording import counted

# What became of an image, by its class on the page, and what a filter calls it.
STATES = {
    "right": "right",
    "wrong": "wrong",
    "abstained": "abstained",
    "flipped": "flipped by the attack",
}
# Cards that a browser lays out at once; of more, those that are looked at.
_MANY = 200
# Which image of which data: two runs over the same share a card.
Key = tuple[str, str | None, int | None, int]


@dataclass(frozen=True)
class Entry:
    """What a run says of an image.

    Attributes:
        run: the number of its row.
        state: one of STATES.
        told: the label, and the certificate or the attack, in words.
        pictures: numbers of pictures in the album with their captions.
        radius: certified, 0 where it abstained; None of an attack.
    """

    run: int
    state: str
    told: str
    pictures: list[tuple[str, int]]
    radius: float | None = None


@dataclass
class Card:
    """An image.

    Attributes:
        index: its number in the data.
        true_label: its class, in words.
        clean: the number of its picture in the album; None where there is none.
        entries: what the runs say of it.
    """

    index: int
    true_label: str
    clean: int | None
    entries: list[Entry] = field(default_factory=list)


def cards(opened: Opened, album: Album) -> list[Card]:
    """A card an image, in the order of their indices; pictures go into the album."""
    found: dict[Key, Card] = {}
    if isinstance(opened.report, Report):
        for number, row in enumerate(opened.report.rows, 1):
            # Parts of one run have the same data.
            _add_certified(found, number, row, opened.sources[row.folders[0]], album)
    else:
        for number, attacked in enumerate(opened.report.rows, 1):
            _add_attacked(found, number, attacked, opened.sources[attacked.folder], album)
    return [found[key] for key in sorted(found, key=lambda key: (str(key[:3]), key[3]))]


def _key(settings: RunSettings, index: int) -> Key:
    return settings.data, settings.split, settings.image_size, index


def _add_certified(found: dict[Key, Card], number: int, row: Row, source: Source, album: Album) -> None:
    for result in row.results:
        card = found.setdefault(
            _key(row.settings, result.image_index),
            Card(result.image_index, named(result.true_label, source), None),
        )
        if card.clean is None and (image := source.image(result.certificate)) is not None:
            card.clean = album.add(image)
        card.entries.append(_certified(number, result, source))


def _certified(number: int, result: ImageResult, source: Source) -> Entry:
    one = result.certificate
    draws = f"{one.hits:,} of {counted(one.bounded, 'draw')}"
    if one.label is None:
        return Entry(number, "abstained", f"{draws} for {named(one.selected, source)}", [], 0.0)
    state = "right" if result.correct else "wrong"
    told = f"label {named(one.label, source)}, radius {one.radius:.3f}, {draws}"
    return Entry(number, state, told, [], one.radius)


def _add_attacked(found: dict[Key, Card], number: int, row: AttackRow, source: Source, album: Album) -> None:
    attacked = [image for image in row.results if image.evaluated.result is not None]
    answers = dict(
        zip((one.evaluated.image_index for one in attacked), _majorities(attacked, row), strict=True)
    )
    largest = max((float(difference(image).abs().max()) for image in attacked), default=0.0)
    factor = 0.5 / largest if largest > 0 else 1.0
    for image in row.results:
        one = image.evaluated
        card = found.setdefault(
            _key(row.settings, one.image_index), Card(one.image_index, named(one.true_label, source), None)
        )
        if card.clean is None:
            card.clean = album.add(image.clean)
        card.entries.append(_attacked(number, row, image, answers, source, factor, album))


def _majorities(attacked: Sequence[AttackedImage], row: AttackRow) -> list[int]:
    """What the majority of the draws says of each attacked image."""
    if not attacked:
        return []
    labels = torch.tensor([image.evaluated.labels[: row.settings.majority_of] for image in attacked])
    return [int(label) for label in majority(labels, int(labels.max()) + 1)]


def _attacked(
    number: int,
    row: AttackRow,
    image: AttackedImage,
    answers: dict[int, int],
    source: Source,
    factor: float,
    album: Album,
) -> Entry:
    one, result = image.evaluated, image.evaluated.result
    if result is None:
        usual = Counter(one.clean_labels).most_common(1)[0][0]
        told = f"label {named(usual, source)}, right in {_right(one.clean_labels, one)} without an attack"
        return Entry(number, "wrong", f"{told}: not attacked", [])
    pictures = [
        ("perturbed", album.add(result.adversarial)),
        (f"difference ×{factor:.3g}", album.add(0.5 + factor * difference(image), coarse=True)),
    ]
    if image.purified is not None:
        pictures.append(("purified", album.add(image.purified)))
    answer = answers[one.image_index]
    state = "right" if answer == one.true_label else "flipped"
    told = (
        f"label {named(answer, source)}, right in {_right(one.labels, one)}, before the attack in"
        f" {_right(one.clean_labels, one)}; norm {result.norm:.4g}"
    )
    return Entry(number, state, told, pictures)


def _right(labels: Sequence[int], of: Evaluated) -> str:
    """How many of the labels of an image are its own."""
    return f"{sum(label == of.true_label for label in labels)} of {counted(len(labels), 'draw')}"


def named(label: int, source: Source) -> str:
    """A label with its class's name, where that says more."""
    name = source.names[label] if label < len(source.names) else ""
    return str(label) if name in ("", str(label)) else f"{label} ({name})"


def gallery(made: Sequence[Card], uris: Sequence[str], rows: Sequence[str]) -> Html:
    """The cards, and what filters them.

    Args:
        made: the cards.
        uris: of the album's pictures.
        rows: what the runs are called, by number from 1.
    """
    several = len(rows) > 1
    there = {entry.state for card in made for entry in card.entries}
    options = [tag("option", told, value=state) for state, told in STATES.items() if state in there]
    which = [tag("option", f"{number}: {name}", value=number) for number, name in enumerate(rows, 1)]
    filters = tag(
        "div",
        tag("label", "show ", tag("select", tag("option", "all", value=""), options, id="state")),
        tag("label", "of run ", tag("select", tag("option", "any", value=""), which, id="run"))
        if several
        else None,
        tag("label", "order ", tag("select", _orders(made), id="order")),
        tag("output", counted(len(made), "image"), id="count", aria_live="polite"),
        class_="filters scripted",
    )
    key = tag("ol", [tag("li", tag("code", name)) for name in rows], class_="key") if several else None
    shown = [_card(card, uris, several) for card in made]
    return tag("div", key, filters, tag("div", shown, class_="cards many" if len(made) > _MANY else "cards"))


def _orders(made: Sequence[Card]) -> list[Html]:
    orders = {"index": "by number"}
    if any(entry.radius is not None for card in made for entry in card.entries):
        orders |= {"up": "smallest radius first", "down": "largest radius first"}
    return [tag("option", told, value=order) for order, told in orders.items()]


def _card(card: Card, uris: Sequence[str], several: bool) -> Html:
    title = tag("h3", f"Image {card.index}", tag("small", f"class {card.true_label}"))
    about = f"image {card.index}"
    pictures: list[Child] = [] if card.clean is None else [_picture("clean", uris[card.clean], about)]
    entries = []
    for entry in card.entries:
        shown = [_picture(told, uris[place], about) for told, place in entry.pictures]
        number = tag("span", entry.run, class_="run") if several else None
        state = tag("b", STATES[entry.state], class_=f"state {entry.state}")
        text = tag("p", number, state, f": {entry.told}")
        entries.append(
            tag(
                "li",
                text,
                tag("div", shown, class_="pictures") if shown else None,
                data_run=entry.run,
                data_state=entry.state,
                data_radius=entry.radius,
            )
        )
    clean = tag("div", pictures, class_="pictures") if pictures else None
    return tag("article", title, clean, tag("ul", entries), class_="card", data_index=card.index)


def _picture(told: str, uri: str, about: str) -> Html:
    image = tag("img", src=uri, alt=f"{told}, {about}", decoding="async")
    return tag("figure", image, tag("figcaption", told))
