"""What clicks on the demo's page say, without a browser."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from diffproof.web.demo.actions import ATTACKED, ORIGINAL, Actions, Visit
from diffproof.web.demo.certifying import growing
from diffproof.web.demo.shown import shown_growth
from diffproof.web.demo.studio import Networks, Studio
from helpers.command_line import Refused
from helpers.pages import Node, read_page


def problem_of(html: str) -> str:
    """The only sentence of an answer that is a problem."""
    (node,) = read_page(html).all("p", class_="problem")
    assert node.attributes["role"] == "alert"
    assert read_page(html).text == node.text
    return node.text


def captions(page: Node) -> list[str]:
    return [one.text for one in page.all("figcaption")]


def test_pictures_are_chosen_and_uploaded(actions: Actions, tmp_path: Path) -> None:
    visit, html = actions.choose(actions.start(), 8)
    assert captions(read_page(html)) == ["digits 8: true class 8"]
    wrong = tmp_path / "<b>x.png"
    wrong.write_text("<!DOCTYPE html><html><body>404</body></html>")
    same, html = actions.upload(visit, str(wrong))
    assert same is visit
    page = read_page(html)
    assert page.one("p", class_="problem").text.startswith("upload: <b>x.png is an HTML page")
    assert captions(page) == ["digits 8: true class 8"]
    same, html = actions.choose(visit, 1000)
    assert same is visit
    assert read_page(html).one("p", class_="problem").text == "indices: expected 0 to 513, got 1000"
    same, html = actions.upload(visit, None)
    assert captions(read_page(html)) == ["digits 8: true class 8"]
    assert 0 <= actions.another() < 514


def test_an_attack_is_told_and_kept(actions: Actions, networks: Networks) -> None:
    visit, _ = actions.choose(actions.start(), 8)
    settings = {"threat": "linf", "budget": 0.3, "iterations": 4, "eot": 1}
    after, html = actions.attack(visit, networks, "none", **settings)  # type: ignore[arg-type]
    page = read_page(html)
    fooled = page.one("h3").text
    assert fooled.startswith("none is fooled: ")
    assert fooled.endswith(" instead of 8")
    assert after.adversarial is not None
    assert "No pixel changed by more than 0.300 of [0, 1]" in page.text
    assert after.worked_on(ATTACKED).image is after.adversarial
    assert after.worked_on(ORIGINAL) is visit.picture
    # A new picture has not been attacked.
    chosen, _ = actions.choose(after, 1)
    assert chosen.adversarial is None
    same, html = actions.attack(visit, networks, "diffpur", **settings)  # type: ignore[arg-type]
    assert same is visit
    assert "did you mean diffpure or densepure?" in problem_of(html)
    _, html = actions.attack(visit, networks, "none", **settings | {"budget": 0.0})  # type: ignore[arg-type]
    assert problem_of(html) == "budget: expected a finite number > 0, got 0.0"
    mistaken = Visit(replace(visit.picture, label=0))
    _, html = actions.attack(mistaken, networks, "none", **settings)  # type: ignore[arg-type]
    assert read_page(html).one("h3").text == "none is wrong already"


@pytest.mark.slow
def test_every_step_of_a_purification_is_shown_or_counted(actions: Actions, networks: Networks) -> None:
    visit = actions.start()
    settings = {"t_star": 0.15, "solver": "ddpm", "draw": 0}
    told = list(actions.purify(visit, networks, ORIGINAL, "diffpure", steps=3, **settings))  # type: ignore[arg-type]
    assert len(told) == 4
    found = captions(read_page(told[-1]))
    assert found[0] == "the picture"
    assert found[-2:] == ["purified", "looks like 0"]
    assert len(found) == 1 + 2 * 4
    long = list(actions.purify(visit, networks, ORIGINAL, "coup", steps=15, **settings))[-1]  # type: ignore[arg-type]
    assert len(captions(read_page(long))) == 1 + 2 * 12
    assert "4 steps between them are not shown" in read_page(long).text
    (html,) = actions.purify(visit, networks, ATTACKED, "diffpure", steps=3, **settings)  # type: ignore[arg-type]
    assert problem_of(html) == "picture: there is no attacked one yet; the tab Attack makes one"


def test_votes_are_counted(actions: Actions, networks: Networks) -> None:
    told = list(actions.vote(actions.start(), networks, ORIGINAL, sigma=0.5, steps=2, votes=10, draw=0))
    assert len(told) == 10
    first, last = (read_page(one) for one in (told[0], told[-1]))
    assert first.text.startswith("1 of 10 votes cast; 0 is ahead.")
    assert last.text.startswith("All 10 votes are cast; 0 wins. After 5 votes no other class could win")
    assert last.one("table").rows() == [["0", "", "10"]]
    assert len(last.all("figure")) == 2 + 10


@pytest.mark.slow
def test_a_certificate_says_what_it_means(studio: Studio, actions: Actions, networks: Networks) -> None:
    visit, _ = actions.choose(actions.start(), 0)
    near, far = (visit.picture.image + change for change in (0.01, -0.4))
    told = list(
        actions.certify(
            replace(visit, adversarial=near.clamp(0, 1)),
            networks,
            ORIGINAL,
            "dds",
            sigma=0.25,
            n=100,
            alpha="0.01",
        )
    )
    assert "Nothing is proved yet." in told[0]
    page = read_page(told[-1])
    assert page.text.startswith("Certified: 0 within an ℓ2 radius of 0.")
    assert "With probability at least 0.99 over its own draws of noise" in page.text
    assert "within the radius: the certificate holds for it, too" in page.text
    assert "It does not say" in page.all("details")[0].text
    assert [one.text for one in page.all("summary")] == [
        "What a certificate says, and what it does not",
        "All that it rests on",
    ]
    assert page.one("svg", role="img").attributes["aria-label"] is not None
    last = list(growing(studio.defense("dds", networks), visit.picture, sigma=0.25, n=60, alpha=0.01))[-1]
    html = shown_growth(last, visit.picture, studio.class_name, far.clamp(0, 1))
    assert "outside the radius: the certificate says nothing of it" in html
    # Another true class, and one with a name that is markup.
    html = shown_growth(last, replace(visit.picture, label=3), "<i>{}</i>".format)
    assert (
        "The true class is &lt;i&gt;3&lt;/i&gt;: a certificate does not say that its label is right." in html
    )


def test_abstaining_is_told_apart_from_being_wrong(actions: Actions, networks: Networks) -> None:
    told = list(actions.certify(actions.start(), networks, ORIGINAL, "none", sigma=1.0, n=100, alpha="0.001"))
    assert read_page(told[-1]).text.startswith("Abstained: these draws do not prove that one class")


def test_a_comparison_has_a_row_for_each(actions: Actions, networks: Networks) -> None:
    settings = {"threat": "linf", "budget": 0.3, "iterations": 2, "n": 60}
    texts = ["none", "none:sigma=1", "<b>"]
    told = list(actions.compare(actions.start(), networks, texts, **settings))  # type: ignore[arg-type]
    assert [len(read_page(one).one("table").rows()) for one in told] == [1, 2, 3, 4]
    head, plain, smoothed, unknown = read_page(told[-1]).one("table").rows()
    assert head[0] == "defence"
    assert (plain[0], plain[1], plain[4]) == ("none", "0", "–")
    assert smoothed[4] == "abstained"
    assert unknown[0] == "<b>"
    assert unknown[1].startswith("defense: ")
    (html,) = actions.compare(actions.start(), networks, [], **settings)  # type: ignore[arg-type]
    assert problem_of(html) == "defences: expected at least one, got none"


def test_the_diffusion_classifier_is_asked(actions: Actions, networks: Networks) -> None:
    (html,) = actions.ask(actions.start(), networks, ORIGINAL, "dc:timesteps=uniform:4", sigma=0.5, draw=0)
    page = read_page(html)
    assert page.text.startswith("The diffusion model finds 0 likeliest: ")
    assert len(page.one("table").rows()) == 10
    assert len(page.all("figure")) == 2 + 10
    (html,) = actions.ask(actions.start(), networks, ORIGINAL, "dds", sigma=0.5, draw=0)
    assert "sigma" in problem_of(html)


def test_the_command_says_in_one_line_what_is_wrong(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken, monkeypatch.context() as patch:
        # Nothing that loads torch or gradio is imported before.
        for module in ("runs.prepare", "web.demo.actions", "web.demo.serve"):
            patch.setitem(sys.modules, f"diffproof.{module}", None)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refused(["demo", "--port", port])
        assert line.startswith(f"--port: {port} of 127.0.0.1 cannot be had: Address already in use")
    assert refused(["demo", "--host", "256.0.0.1"]).startswith("--host: expected a name or address of this")
    assert "port" in refused(["demo", "--port", "0"])
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refused(["demo", "--port", port]) == "gradio: not installed; pip install 'diffproof[web]'"
    # Networks and data come after what costs nothing to check.
    monkeypatch.setattr("diffproof.web.demo.serve.import_optional", lambda *_: None)
    assert refused(["demo", "--port", port, "--classifier", "digit"]).startswith("--classifier: ")
    assert refused(["demo", "--port", port, "--data", "nothing"]).startswith("--data: ")
