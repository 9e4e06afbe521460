"""What the demo computes is what the library computes: attacks, purifications, votes, certificates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffproof as dp
from diffproof.defenses.labelling import label_all
from diffproof.errors import ArgumentError
from diffproof.noise import Noise, Stream
from diffproof.pictures import read_picture, save_picture
from diffproof.web.demo.asking import asked
from diffproof.web.demo.attacking import DRAWS, attacked
from diffproof.web.demo.certifying import growing
from diffproof.web.demo.comparing import compared
from diffproof.web.demo.picture import Picture, of_data, uploaded
from diffproof.web.demo.purifying import stages
from diffproof.web.demo.studio import Networks, Studio
from diffproof.web.demo.voting import ballots


@pytest.fixture(scope="module")
def picture(studio: Studio) -> Picture:
    return of_data(studio, 8)


def test_defences_have_the_chosen_networks(studio: Studio, networks: Networks) -> None:
    made = studio.defense("dds:sigma=0.25", networks)
    assert made is studio.defense("dds:sigma=0.25", networks)
    assert made.denoiser is studio.denoisers["digits"]
    assert made.classifier is studio.classifiers["digits"]
    # No place for a classifier, or for a denoiser.
    assert studio.defense("dc:timesteps=uniform:2", networks).classifier is None
    assert studio.defense("none", networks).denoiser is None


@pytest.mark.slow
def test_networks_and_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", torch.rand(1, 9, 9))
    cpu = torch.device("cpu")
    folder = tmp_path / "data" / "0"
    folder.mkdir(parents=True)
    (tmp_path / "a.png").rename(folder / "a.png")
    with pytest.raises(ArgumentError, match=r"^classifier: has 10 classes, but data has 1; a class map"):
        Studio.load(str(folder.parent), ["digits"], ["digits"], device=cpu)
    for digit in range(1, 10):
        (folder.parent / str(digit)).mkdir()
        save_picture(folder.parent / str(digit) / "a.png", torch.rand(1, 9, 9))
    with pytest.raises(ArgumentError, match=r"has 1×9×9 images, a network takes 1×8×8 .*--image-size"):
        Studio.load(str(folder.parent), ["digits"], ["digits"], device=cpu)
    made = Studio.load(str(folder.parent), ["digits"], ["digits"], device=cpu, image_size=8)
    assert of_data(made, 3).image.shape == (1, 8, 8)
    (tmp_path / "map.yaml").write_text("".join(f"'{digit}': {9 - digit}\n" for digit in range(10)))
    settings = {"image_size": 8, "class_map": str(tmp_path / "map.yaml")}
    made = Studio.load(str(folder.parent), ["digits"], ["digits"], device=cpu, **settings)  # type: ignore[arg-type]
    assert of_data(made, 3).label == 6
    with pytest.raises(ArgumentError, match=r"^denoiser: .*nothing"):
        Studio.load("digits", ["digits"], ["nothing"], device=cpu)


def test_uploads_are_taken_resized_with_a_notice_or_refused(studio: Studio, tmp_path: Path) -> None:
    fits, large = tmp_path / "fits.png", tmp_path / "large.png"
    image = torch.rand(1, 8, 8).mul(255).round() / 255
    save_picture(fits, image)
    taken = uploaded(studio, fits, "mine.png")
    assert torch.equal(taken.image, image)
    assert (taken.name, taken.label, taken.levels, taken.notice) == ("mine.png", None, None, "")
    save_picture(large, torch.rand(1, 20, 30))
    small = uploaded(studio, large, "large.png")
    assert torch.equal(small.image, read_picture(large, 1, 8))
    assert small.notice.startswith("large.png is 30×20 pixels. It was resized to 8×8")
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[0, 0] = 255, 0, 0
    Image.fromarray(colours).save(tmp_path / "red.png")
    (tmp_path / "text.txt").write_text("no picture")
    for name, problem in (
        ("red.png", "upload: red.png has colours, expected a grey picture"),
        ("text.txt", "upload: text.txt cannot be decoded: cannot identify image file"),
    ):
        with pytest.raises(ArgumentError) as error:
            uploaded(studio, tmp_path / name, name)
        assert str(error.value) == problem


@pytest.mark.slow
def test_an_attack_is_the_librarys(studio: Studio, networks: Networks, picture: Picture) -> None:
    settings = {"threat": "linf", "budget": 0.25, "iterations": 4}
    for text, eot in (("none", 1), ("diffpure:t_star=0.1,steps=2", 2)):
        defense = studio.defense(text, networks)
        found = attacked(defense, picture, **settings, eot=eot)  # type: ignore[arg-type]
        evaluation = dp.evaluate(
            defense,
            picture.image[None],
            torch.tensor([picture.label]),
            image_indices=[8],
            attack=f"pgd:iterations=4,eot={eot}",
            threat="linf",
            budget=0.25,
            draws=DRAWS,
            votes=DRAWS,
        )
        (expected,) = evaluation.images
        assert found.evaluated.labels == expected.labels
        assert expected.result is not None
        assert found.adversarial is not None
        assert torch.equal(found.adversarial, expected.result.adversarial)
        assert found.distance == pytest.approx(float((found.adversarial - picture.image).norm()))
        assert found.random is (text != "none")
    assert (found.before, found.label) == (picture.label, picture.label)


def test_an_attack_without_a_true_class_leads_away_from_the_defences(
    studio: Studio, networks: Networks, picture: Picture
) -> None:
    unknown = Picture(picture.image, "mine", 0, None, None)
    settings = {"threat": "linf", "budget": 0.25, "iterations": 4, "eot": 1}
    found = attacked(studio.defense("none", networks), unknown, **settings)  # type: ignore[arg-type]
    assert found.label == found.before == picture.label
    assert found.after != found.label
    # With a true class that the defence does not give there is nothing to attack.
    wrong = Picture(picture.image, "mine", 0, 0, None)
    found = attacked(studio.defense("none", networks), wrong, **settings)  # type: ignore[arg-type]
    assert (found.adversarial, found.after, found.distance) == (None, None, 0.0)
    assert found.before == picture.label


@pytest.mark.parametrize(
    "text",
    [
        "diffpure:t_star=0.15,steps=4,solver=ddpm",
        "diffpure:t_star=0.15,steps=3,solver=ode",
        "coup:t_star=0.1,steps=3",
        "gdmp:t_star=0.05,steps=2,rounds=2",
    ],
)
def test_stages_end_in_what_the_defence_purifies(
    studio: Studio, networks: Networks, picture: Picture, text: str
) -> None:
    defense = studio.defense(text, networks)
    assert isinstance(defense, dp.Purification)
    seen = list(stages(defense, picture, draw=3))
    noise = Noise.for_draws(0, Stream.FORWARD, 8, 3, 4)
    with torch.no_grad():
        assert torch.equal(seen[-1].state, defense.purify(picture.image[None], noise)[0])
        assert seen[-1].label == int(defense(picture.image[None], noise).argmax())
    assert [one.sigma for one in seen] == [sigma for levels in defense.levels() for sigma in (*levels, 0.0)]
    first = seen[0]
    with torch.no_grad():
        clean = defense.denoiser(first.state[None], first.sigma).clamp(0, 1)[0]
    assert torch.equal(first.estimate, clean)


def test_only_a_reverse_process_has_stages(studio: Studio, networks: Networks, picture: Picture) -> None:
    with pytest.raises(ArgumentError, match="reverse process has steps to show, got likelihood"):
        next(stages(studio.defense("likelihood:iterations=2", networks), picture))


@pytest.mark.slow
def test_votes_are_those_of_the_certificates_draw(
    studio: Studio, networks: Networks, picture: Picture
) -> None:
    defense = studio.defense("densepure:steps=2,votes=12", networks)
    assert isinstance(defense, dp.DensePure)
    sigma, differing = 1.0, 0
    for draw in range(4):
        seen = list(ballots(defense, picture, sigma=sigma, draw=draw))
        noise = Noise.for_draws(0, Stream.ESTIMATION, 8, draw, draw + 1)
        noisy = dp.Smoothed(defense, sigma, levels=picture.levels).noise.added(picture.image, noise)
        assert torch.equal(seen[-1].noisy, noisy[0])
        with torch.no_grad():
            _, cast = label_all(defense.labeller(sigma, 64, all_votes=True), noisy, noise.after_first())
            early, _ = label_all(defense.labeller(sigma, 64), noisy, noise.after_first())
        assert cast is not None
        assert seen[-1].labels == tuple(cast[0].tolist())
        assert seen[-1].leader == int(early.labels)
        assert seen[-1].settled == early.classifier_evaluations
        assert [len(one.labels) for one in seen] == list(range(1, 13))
        differing += len(set(seen[-1].labels)) > 1
    assert differing
    with pytest.raises(ArgumentError, match="expected densepure, whose samples vote, got none"):
        next(ballots(studio.defense("none", networks), picture, sigma=0.5))


@pytest.mark.slow
def test_a_certificate_grows_to_the_librarys(studio: Studio, networks: Networks, picture: Picture) -> None:
    defense = studio.defense("dds", networks)
    seen = list(growing(defense, picture, sigma=0.25, n=150, n0=20, alpha=0.01, batch_size=32))
    expected = dp.Smoothed(defense, 0.25, levels=picture.levels).certify(
        picture.image, n0=20, n=150, alpha=0.01, seed=0, image_index=8, stop="sequential"
    )
    last = seen[-1]
    assert last.certificate == expected
    assert expected.radius > 0
    assert all(one.certificate is None for one in seen[:-1])
    draws, radii = zip(*last.points, strict=True)
    assert draws[-1] == expected.n
    assert radii[-1] == expected.radius
    known = [radius or 0.0 for radius in radii]
    assert known == sorted(known)
    assert 0 < len([one for one in seen if one.points]) < len(seen)
    # Earlier points do not change by what comes later.
    assert all(one.points == last.points[: len(one.points)] for one in seen)
    with pytest.raises(ArgumentError, match=r"expected one that can be certified, .* got diffpure"):
        next(growing(studio.defense("diffpure:t_star=0.1,steps=2", networks), picture, sigma=0.25, n=100))


@pytest.mark.slow
def test_defences_are_compared_each_by_itself(studio: Studio, networks: Networks, picture: Picture) -> None:
    texts = ["none", "none:sigma=0.1", "agdm", "nothing"]
    rows = list(compared(studio, networks, texts, picture, threat="linf", budget=0.25, iterations=2, n=60))
    assert [one.text for one in rows] == texts
    plain, smoothed, guided, unknown = rows
    assert plain.attack is not None
    assert plain.certificate is None
    assert smoothed.certificate == dp.Smoothed(
        studio.defense("none:sigma=0.1", networks),
        0.1,
        levels=picture.levels,
    ).certify(picture.image, n0=50, n=60, seed=0, image_index=8, stop="sequential")
    assert guided.attack is None
    assert guided.problem == "guide: the method 'agdm' needs one, got None"
    assert unknown.problem.startswith("defense: unknown name 'nothing'")


def test_a_diffusion_classifier_answers(studio: Studio, networks: Networks, picture: Picture) -> None:
    defense = studio.defense("dc:timesteps=uniform:4", networks)
    answer = asked(defense, picture, sigma=0.4, draw=2)
    noise = Noise.for_draws(0, Stream.FORWARD, 8, 2, 3)
    with torch.no_grad():
        assert torch.equal(answer.probabilities, defense.predict_proba(picture.image[None], noise)[0])
        label = torch.tensor([3])
        estimate = studio.denoisers["digits"](answer.noisy[None], 0.4, label)[0].clamp(0, 1)
    torch.testing.assert_close(answer.estimates[3], estimate)
    assert float(answer.errors[3]) == pytest.approx(float((estimate - picture.image).square().mean()))
    assert float((answer.noisy - picture.image).std()) == pytest.approx(0.4, rel=0.3)
    with pytest.raises(ArgumentError, match="diffusion model knows classes, as dc or rdc; got none"):
        asked(studio.defense("none", networks), picture, sigma=0.4)
