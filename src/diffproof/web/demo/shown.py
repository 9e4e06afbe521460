"""What the demo says of each thing that is tried, as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.resources import files

from torch import Tensor

from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.decisions import Stop
from diffproof.web.demo.asking import Answer
from diffproof.web.demo.attacking import DRAWS, Attacked
from diffproof.web.demo.certifying import Growth
from diffproof.web.demo.comparing import Compared
from diffproof.web.demo.picture import Picture
from diffproof.web.demo.pieces import bars, growth, sentence, strip, table, tile
from diffproof.web.demo.purifying import Stage
from diffproof.web.demo.voting import Ballot
from diffproof.web.markup import Html, markup, tag
from diffproof.wording import counted

Named = Callable[[int], str]

# Why the draws of a certificate ended.
_WHY = {
    Stop.PROVED: "It was proved",
    Stop.HOPELESS: "It was hopeless to go on",
    Stop.SETTLED: "More draws would hardly make it larger, so they ended",
    Stop.SPENT: "All draws were made: they ended",
}
# Pictures of a reverse process, and of votes, that are shown at most.
_STAGES, _SAMPLES = 12, 40


def shown_picture(picture: Picture, named: Named) -> Html:
    """The picture that all tabs work on, and its true class."""
    known = "true class not known" if picture.label is None else f"true class {named(picture.label)}"
    notice = sentence(picture.notice, kind="notice") if picture.notice else ""
    return markup(tile(picture.image, picture.name, ": ", known, kind="large"), notice)


def shown_attack(found: Attacked, named: Named, text: str) -> Html:
    """The attacked picture, the labels, and what they mean."""
    evaluated, label = found.evaluated, named(found.label)
    before = _agreeing(found, evaluated.clean_labels, found.before, named)
    if evaluated.result is None or found.adversarial is None or found.after is None:
        return markup(
            tag("h3", f"{text} is wrong already"),
            sentence(f"Without an attack, {before}. It is {label}, so there is nothing to attack."),
        )
    held = found.after == found.label
    verdict = f"{text} holds" if held else f"{text} is fooled: {named(found.after)} instead of {label}"
    after = _agreeing(found, evaluated.labels, found.after, named)
    difference = (found.adversarial - found.picture.image) / 2 + 0.5
    unseen = ", under noise that the attack has not seen" if found.random else ""
    largest = float((found.adversarial - found.picture.image).abs().max())
    away = (
        ""
        if found.picture.label is not None
        else " Its true class is not known: the attack leads away from the defence’s own."
    )
    means = (
        "This attack found no way within the budget; a stronger one may. Only a certificate says that"
        " there is none."
        if held
        else "One picture is enough to show that the defence does not hold at this budget."
    )
    return markup(
        tag("h3", verdict),
        strip(
            [
                tile(found.picture.image, "before: ", named(found.before)),
                tile(found.adversarial, "attacked: ", named(found.after), kind="" if held else "wrong"),
                tile(difference, "difference, grey is none"),
            ]
        ),
        sentence(f"Before, {before}; after, {after}{unseen}.", away),
        sentence(
            f"No pixel changed by more than {largest:.3f} of [0, 1], and all changes have the ℓ2 length"
            f" {found.distance:.3f}; the attack took {counted(evaluated.result.backwards, 'gradient')}."
        ),
        sentence(means),
    )


def _agreeing(found: Attacked, labels: Sequence[int], label: int, named: Named) -> str:
    if not found.random:
        return f"it calls it {named(label)}"
    return f"{labels.count(label)} of {counted(len(labels), 'draw')} of its noise call it {named(label)}"


def shown_stages(stages: Sequence[Stage], picture: Picture, named: Named) -> Html:
    """The states of a reverse process above what the denoiser makes of each."""
    kept = _evenly(len(stages), _STAGES)
    columns = [tag("div", tile(picture.image, "the picture"), class_="stage")]
    for place in kept:
        one = stages[place]
        level = f"σ = {one.sigma:.3f}" if one.sigma else "purified"
        columns.append(
            tag(
                "div",
                tile(one.state, level),
                tile(one.estimate, "looks like ", named(one.label), kind=_right(one.label, picture)),
                class_="stage",
            )
        )
    left_out = len(stages) - len(kept)
    more = (
        f" {counted(left_out, 'step')} between them {'is' if left_out == 1 else 'are'} not shown."
        if left_out
        else ""
    )
    when = "So far" if stages[-1].sigma else "In the end"
    return markup(
        tag("div", columns, class_="strip stages"),
        sentence(
            "Above: the state, from the diffused picture to the purified one. Below: the clean picture that"
            f" the denoiser sees in it, and what the classifier calls that.{more}"
        ),
        sentence(f"{when} the classifier calls it {named(stages[-1].label)}.", kind="result"),
    )


def _evenly(number: int, most: int) -> list[int]:
    """At most so many places, the first and the last among them."""
    if number <= most:
        return list(range(number))
    return [round(place * (number - 1) / (most - 1)) for place in range(most)]


def _right(label: int, picture: Picture) -> str:
    return "" if picture.label is None else "right" if label == picture.label else "wrong"


def shown_votes(ballot: Ballot, picture: Picture, named: Named) -> Html:
    """The samples that have voted, and the count."""
    counts = Counter(ballot.labels).most_common()
    cast = len(ballot.labels)
    samples = [
        tile(one, named(label), kind=_right(label, picture))
        for one, label in zip(ballot.samples[:_SAMPLES], ballot.labels, strict=False)
    ]
    told = f"{cast} of {counted(ballot.votes, 'vote')} cast; {named(ballot.leader)} is ahead."
    if cast == ballot.votes:
        told = f"All {ballot.votes} votes are cast; {named(ballot.leader)} wins."
    if ballot.settled is not None:
        saved = ballot.votes - ballot.settled
        told += (
            f" After {counted(ballot.settled, 'vote')} no other class could win any more:"
            f" a certification would leave out the other {saved}."
        )
    return markup(
        sentence(told, kind="result"),
        strip([tile(picture.image, "the picture"), tile(ballot.noisy, "a noisy draw of it")]),
        bars(
            "votes by class",
            [(named(label), number, str(number)) for label, number in counts],
            largest=ballot.votes,
        ),
        strip(samples),
        sentence(
            "Each small picture is a sample of what could have been there before the noise, with its label."
        ),
    )


def shown_growth(one: Growth, picture: Picture, named: Named, attacked: Tensor | None = None) -> Html:
    """The chart of the radius, the labels counted, and in the end the certificate and what it says."""
    selection, estimation = one.counted.selection, one.counted.estimation
    tally = estimation or selection
    rows = [] if tally is None else _tallied(tally.counts, tally.draws, named)
    draws = 0 if estimation is None else estimation.draws
    phase = (
        f"{counted(draws, 'draw')} of at most {one.most:,}, which bound the class’s probability"
        if estimation is not None
        else "first draws, which choose the class"
    )
    certificate = one.certificate
    parts = [growth(one.points, one.most, one.largest), bars(f"labels of {phase}", rows)]
    if certificate is None:
        radius = one.points[-1][1] if one.points else None
        told = "Nothing is proved yet." if radius is None else f"Proved so far: a radius of {radius:.3f}."
        return markup(sentence(told, kind="result"), parts)
    return markup(
        sentence(*_statement(certificate, named), kind="result"),
        parts,
        _covering(certificate, picture, attacked),
        _meaning(certificate, picture, named),
    )


def _tallied(counts: Sequence[int], draws: int, named: Named) -> list[tuple[str, float, str]]:
    most = sorted(range(len(counts)), key=lambda label: -counts[label])[:5]
    return [(named(label), counts[label] / draws, f"{counts[label]:,}") for label in most if counts[label]]


def _statement(certificate: Certificate, named: Named) -> list[str]:
    if certificate.label is None:
        return [
            "Abstained: these draws do not prove that one class is the most probable."
            " That is no wrong answer."
        ]
    return [
        f"Certified: {named(certificate.label)} within an ℓ2 radius of {certificate.radius:.3f}."
        f" {_WHY[Stop(str(certificate.stopped))]} after {counted(certificate.n, 'draw')}."
    ]


def _covering(certificate: Certificate, picture: Picture, attacked: Tensor | None) -> Html | None:
    """Whether the picture that an attack has found lies within the radius."""
    if attacked is None or certificate.label is None:
        return None
    distance = float((attacked - picture.image).norm())
    if certificate.covers(picture.image, attacked):
        told = "within the radius: the certificate holds for it, too"
    else:
        told = "outside the radius: the certificate says nothing of it"
    return sentence(f"The attacked picture is {distance:.3f} away, {told}.")


def _meaning(certificate: Certificate, picture: Picture, named: Named) -> Html:
    """What a certificate says and what not, in words; then all that it holds."""
    means: list[Html | str] = []
    if certificate.label is not None:
        means.append(
            f"With probability at least {1 - certificate.alpha:g} over its own draws of noise, the smoothed"
            f" classifier says {named(certificate.label)} to every picture within that distance: no attack of"
            " that size changes it."
        )
        means.append(f"Its {certificate.seed_told}.")
        if picture.label not in (None, certificate.label):
            means.append(
                f"The true class is {named(picture.label or 0)}: a certificate does not say that its label is"
                " right."
            )
    general = Html((files("diffproof.web.report") / "certificates.html").read_text(encoding="utf-8"))
    return markup(
        [sentence(one) for one in means],
        tag("details", tag("summary", "What a certificate says, and what it does not"), general),
        tag("details", tag("summary", "All that it rests on"), Html(certificate._repr_html_())),
    )


def shown_comparison(rows: Sequence[Compared], named: Named, total: int) -> Html:
    """A row a defence."""
    body = [_compared(one, named) for one in rows]
    head = ("defence", "before", "attacked", "found", "certified radius", "seconds")
    left = total - len(rows)
    return markup(
        table("Each defence, attacked for itself", head, body),
        sentence(f"{counted(left, 'defence')} to come." if left else "All are done.", kind="result"),
        sentence(
            f"Labels are majorities of {DRAWS} draws of noise that the attack has not seen. Each attack has"
            " the exact gradient of its defence. A radius is certified for defences with a sigma of their"
            " own. One picture says little of a defence: ",
            tag("code", "diffproof attack"),
            " and ",
            tag("code", "diffproof certify"),
            " measure it on many.",
        ),
    )


def _compared(one: Compared, named: Named) -> list[Html | str]:
    name = tag("code", one.text)
    if one.attack is None:
        return [name, tag("span", one.problem, class_="problem"), "–", "–", "–", f"{one.seconds:.1f}"]
    found = one.attack
    radius = "–"
    if one.certificate is not None:
        proved = one.certificate
        radius = "abstained" if proved.label is None else f"{named(proved.label)}: {proved.radius:.3f}"
    if found.adversarial is None or found.after is None:
        after, seen = tag("span", "not attacked: wrong already"), "–"
    else:
        after = tag("span", named(found.after), class_="right" if found.after == found.label else "wrong")
        seen = tile(found.adversarial, f"ℓ2 {found.distance:.2f}", kind="small")
    return [name, named(found.before), after, seen, radius, f"{one.seconds:.1f}"]


def shown_answer(answer: Answer, picture: Picture, named: Named) -> Html:
    """Probabilities of all classes, and what the model makes of the noisy picture under each."""
    order = answer.probabilities.argsort(descending=True).tolist()
    first = order[0]
    rows = [
        (named(label), float(answer.probabilities[label]), f"{float(answer.probabilities[label]):.1%}")
        for label in order[:10]
    ]
    tiles = [
        tile(
            answer.estimates[label],
            named(label),
            f": {float(answer.errors[label]):.4f}",
            kind="right" if label == int(answer.errors.argmin()) else "",
        )
        for label in sorted(order[:_SAMPLES])
    ]
    return markup(
        sentence(
            f"The diffusion model finds {named(first)} likeliest: {float(answer.probabilities[first]):.1%}.",
            kind="result",
        ),
        bars("probability of each class", rows),
        strip([tile(picture.image, "the picture"), tile(answer.noisy, "with noise")]),
        strip(tiles),
        sentence(
            "Told a class, the model makes this of the noisy picture; the number is the mean squared error,"
            " least where the frame is. The classifier sums such errors over many noise levels."
        ),
    )
