"""`diffproof theory`: its figures recomputed from the library, its pictures, and bad input in one line."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path

import pytest
import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.digits import load_digits
from diffproof.data.images import ImageData
from diffproof.reverse.levels import vp_sigmas
from diffproof.theory.densities import GaussianMixture
from diffproof.theory.figures import bound as theory_bound
from diffproof.theory.figures import converging as theory_converging
from diffproof.theory.figures import draw as theory_draw
from diffproof.theory.figures import planes as theory_planes
from diffproof.theory.figures import results as theory_results
from diffproof.theory.figures.setting import make_setting
from diffproof.theory.finite_support import FiniteSupport
from diffproof.theory.high_density import HighDensityPurifier
from diffproof.theory.robust_regions import radii
from helpers.command_line import Refused
from helpers.files import tree

DENSITY = {
    "means": [[0.3, 0.4], [0.5, 0.65], [0.7, 0.35]],
    "covariances": [[[0.003, 0.001], [0.001, 0.002]], [[0.001, 0], [0, 0.001]], [[0.002, 0], [0, 0.004]]],
    "weights": [0.45, 0.15, 0.4],
    "labels": [0, 1, 1],
}
DIGITS, CELLS, PER_BIN = 120, 16, 10


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The command on a coarse plane, few votes and few digits: the folder and the line of each picture."""
    folder = tmp_path_factory.mktemp("theory")
    (folder / "p.json").write_text(json.dumps(DENSITY))

    def few(split: str) -> ImageData:
        data = load_digits(split)
        return ImageData("digits", split, data.images[:DIGITS], data.labels[:DIGITS], data.class_names)

    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theory_planes, "_FINE", 61)
        patch.setattr(theory_bound, "_STEPS", 25)
        patch.setattr(theory_bound, "_SAMPLES", 512)
        patch.setattr(theory_bound, "_ITERATIONS", (10, 40, 120))
        patch.setattr(theory_results, "_CELLS", CELLS)
        patch.setattr(theory_results, "_PER_BIN", PER_BIN)
        patch.setattr(theory_converging, "_CHAIN_STEPS", [8, 32, 128])
        patch.setattr(theory_converging, "_GRID_STEPS", [8, 32])
        patch.setattr(theory_results, "load_digits", few)
        patch.setattr("click.echo", lambda text, **_: lines.append(text))
        arguments = ["--out", str(folder / "out"), "--density", str(folder / "p.json"), "--points", "9"]
        assert run(["theory", *arguments, "--seed", "4"]) == 0
    assert len(lines) == 8
    assert not any("\n" in line for line in lines)
    return folder / "out", {Path(path).name: shown for path, shown in (line.split(": ", 1) for line in lines)}


def exact() -> GaussianMixture:
    covariances = torch.tensor(DENSITY["covariances"]).double()
    return GaussianMixture(torch.tensor(DENSITY["means"]).double(), covariances, [0.45, 0.15, 0.4], [0, 1, 1])


SIGMA = 0.5 * math.sqrt(math.expm1(0.1 * 0.1 + 19.9 * 0.1**2 / 2))


def numbers(line: str, pattern: str) -> list[float]:
    found = re.search(pattern, line)
    assert found, line
    return [float(part) for part in found.groups()]


@pytest.mark.slow
def test_the_pictures(drawn: tuple[Path, dict[str, str]]) -> None:
    folder, shown = drawn
    assert sorted(path.name for path in folder.iterdir()) == sorted(shown) == sorted(theory_draw.PICTURES)
    for name in shown:
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", data[16:24])
        assert 800 <= width <= 1600
        assert 500 <= height <= 1300
        assert 20_000 < len(data) < 500_000


@pytest.mark.slow
def test_the_bayes_errors_by_quadrature(drawn: tuple[Path, dict[str, str]]) -> None:
    """From 50,000 samples of a number in [0, 1/2]: 0.01 is over four standard errors, false alarm < 1e-4."""
    clean, noisy = numbers(drawn[1]["density.png"], r"errs on ([\d.]+)% of clean points and ([\d.]+)% of")
    for got, sigma in ((clean, 0.0), (noisy, SIGMA)):
        density = exact().diffused(sigma) if sigma else exact()

        side = torch.linspace(-0.1 - 4 * sigma, 1.1 + 4 * sigma, 301).double()
        points = torch.cartesian_prod(side, side)
        lost = density.log_density(points).exp() * density.class_shares(points).amin(1)
        expected = float(lost.sum()) * float(side[1] - side[0]) ** 2
        assert got / 100 == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_the_posterior_under_attack(drawn: tuple[Path, dict[str, str]]) -> None:
    """The two classes' nearest components are 0 and 1; on the way the label changes where the line says."""
    line = drawn[1]["posterior.png"]
    step, before, after = numbers(line, r"moved by ([\d.]+) .* from ([\d.]+) to ([\d.]+), the high-density")
    start, end = exact().means[0], exact().means[1]
    way = (end - start) / (end - start).norm()
    points = torch.stack([start, start + step * way])
    masses = exact().posterior_classes(points, SIGMA)[:, 0]
    assert [before, after] == pytest.approx(masses.tolist(), abs=0.01)
    sides = torch.stack([start + (step - 0.004) * way, start + (step + 0.004) * way])
    assert HighDensityPurifier(exact()).labels(sides, SIGMA).tolist() == [0, 1]
    mode, mean = numbers(line, r"label from (\d) to (\d)")
    assert (mode, mean) == (0, 1)


@pytest.mark.slow
def test_the_regions(drawn: tuple[Path, dict[str, str]]) -> None:
    union, ratio, single, mip = numbers(
        drawn[1]["regions.png"], r"radius ([\d.]+) = ([\d.]+) × .* D_sub, ([\d.]+); .* ([\d.]+)$"
    )
    assert union == mip
    assert ratio == pytest.approx(union / single, rel=0.01)
    assert union >= single > 0


@pytest.mark.slow
def test_the_decision_regions(drawn: tuple[Path, dict[str, str]]) -> None:
    """DDS and the top class without the command's code: Bayes rule on the clipped posterior mean."""
    side = -0.25 + 1.5 * (torch.arange(CELLS).double() + 0.5) / CELLS
    points = torch.cartesian_prod(side, side)
    density = exact()
    dense = HighDensityPurifier(density).labels(points, SIGMA)
    clean = (points + SIGMA**2 * density.score(points, SIGMA)).clamp(0, 1)
    dds = density.class_shares(clean).argmax(1)
    top = density.posterior_classes(points, SIGMA).argmax(1)
    line = drawn[1]["decisions.png"]
    one, five, forty = numbers(line, r"K = 1 ([\d.]+)%, .*K = 5 ([\d.]+)%, .*K = 40 ([\d.]+)%")
    (got_dds,) = numbers(line, r"DDS ([\d.]+)%")
    (got_top,) = numbers(line, r"top class ([\d.]+)%")
    assert got_dds == pytest.approx(100 * float((dds == dense).double().mean()), abs=0.051)
    assert got_top == pytest.approx(100 * float((top == dense).double().mean()), abs=0.051)
    # The vote tends to the top class: 40 votes are nearer to its share than one.
    assert abs(forty - got_top) < abs(one - got_top)
    assert 50 < one < 100
    assert 50 < five < 100


@pytest.mark.slow
def test_votes_steps_and_bounds(drawn: tuple[Path, dict[str, str]]) -> None:
    first, last, binomial = numbers(
        drawn[1]["agreement.png"], r"gets ([\d.]+)% at K = 1 and ([\d.]+)% at K = 41 \(.* ([\d.]+)%\)"
    )
    # Two classes: the binomial is exact but for the steps' error and the draw; 4 standard errors.
    assert first < last
    assert abs(last - binomial) < 400 * math.sqrt(0.1 * 0.9 / (4 * PER_BIN))
    pattern = r"Gaussian, ancestral ([\d.]+) .*pixel 1, ancestral ([\d.]+) .* ([\d.]+) \("
    orders = numbers(drawn[1]["convergence.png"], pattern)
    assert all(1.6 < order < 2.3 for order in orders)
    assert numbers(drawn[1]["bound.png"], r"for (\d) of (\d) denoisers") == [9, 9]


@pytest.mark.slow
def test_the_vote_is_for_the_top_class_not_for_the_highest_density(monkeypatch: pytest.MonkeyPatch) -> None:
    # On the built-in density the two differ at every other point with a top class of 50 to 60%, and at most
    # 60 points are drawn: 0.2 is 3 standard errors of a share among them.
    monkeypatch.setattr(theory_results, "_PER_BIN", 60)
    monkeypatch.setattr(theory_results, "AGREEMENT_VOTES", (41,))
    setting = make_setting(None, 0.1, 0)
    result = theory_results.agreement(setting)
    pool = setting.density.diffused(setting.sigma).sample(2000, torch.Generator().manual_seed(1))
    mass, top = setting.density.posterior_classes(pool, setting.sigma).max(dim=1)
    pool, top = pool[rows := (mass > 0.5) & (mass <= 0.6)], top[rows]
    same = float((HighDensityPurifier(setting.density).labels(pool, setting.sigma) == top).double().mean())
    assert 0.3 < same < 0.7
    assert abs(result.dense[0][0].value - same) < 0.2
    assert result.top[0][0].value > 0.7


@pytest.mark.slow
def test_the_digits(drawn: tuple[Path, dict[str, str]]) -> None:
    equal, kernel = numbers(drawn[1]["digits.png"], r"larger for ([\d.]+)% .* larger for ([\d.]+)%")
    images, labels = dp.load_data("digits", split="train")
    points = images[:DIGITS].double().flatten(1)
    log_kernel = -torch.cdist(points, points).square() / (2 * 0.5**2)
    for got, weights in ((equal, None), (kernel, torch.softmax(torch.logsumexp(log_kernel, 1), 0))):
        found = radii(FiniteSupport(points, weights, labels[:DIGITS]), range(DIGITS), 1.0)
        larger = found.union > found.single * (1 + 1e-6)
        assert got == pytest.approx(100 * float(larger.double().mean()), abs=0.051)


@pytest.mark.slow
def test_the_noise_level_is_that_of_diffpure(drawn: tuple[Path, dict[str, str]]) -> None:
    assert vp_sigmas(0.1, 1)[0] == pytest.approx(SIGMA, rel=1e-12)
    for name in ("density.png", "posterior.png", "regions.png", "decisions.png"):
        assert f"σ = {SIGMA:.3f}" in drawn[1][name]


def changed(**values: object) -> str:
    return json.dumps({name: value for name, value in {**DENSITY, **values}.items() if value is not None})


FLAT = [[[0.001, 0.001], [0.001, 0.001]], *[[[0.001, 0], [0, 0.001]]] * 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--density: no such file: p.json"),
        ("{", "--density: cannot read p.json: Expecting property name"),
        ("[1]", "--density: expected an object in p.json, got list"),
        ("{}", "--density: expected means in p.json, got nothing"),
        (changed(labels=None), "--density: expected labels in p.json, got means, covariances, weights"),
        (
            '{"means": [[0.3, 0.4]], "covariances": [0.01], "labels": null}',
            "--density: expected labels in p.json, got means, covariances",
        ),
        (changed(wieghts=[1]), "--density: unknown name 'wieghts' in p.json"),
        (changed(means=[[0.3, 0.4], [0.5], [0.7, 0.3]]), "means: expected lists of numbers, of one length"),
        (changed(means=["a", "b", "c"]), "means: expected lists of numbers"),
        (changed(means=[[0.3], [0.5], [0.7]]), "means: expected K points of two pixels, got shape (3, 1)"),
        (changed(means=[[0.3, 0.4, 0.5]] * 3), "means: expected K points of two pixels, got shape (3, 3)"),
        (changed(means=[[math.nan, 0.4], [0.5, 0.6], [0.7, 0.3]]), "means: expected finite numbers, got NaN"),
        (changed(covariances=FLAT), "covariances: expected positive definite matrices, got component 0"),
        (changed(covariances=[0.001, 0.0, 0.001]), "covariances: expected positive definite matrices"),
        (
            changed(covariances=[0.001, 1e-8, 0.001]),
            "covariances: expected standard deviations of at least 0.001 pixels, got 0.0001 in component 1",
        ),
        (changed(weights=[0.4, 0.15, 0.4]), "weights: expected a sum of 1, got 0.95"),
        (changed(weights=[0.5, -0.1, 0.6]), "weights: expected numbers > 0, got -0.1"),
        (changed(weights=[math.nan, 0.5, 0.5]), "weights: expected numbers > 0, got nan"),
        (changed(labels=[0, 1, 1.5]), "labels: expected integers, got others"),
        (changed(labels=[0, 0, 0]), "labels: expected 2 to 6 classes 0, 1, …, got [0]"),
        (changed(labels=[0, 2, 2]), "labels: expected 2 to 6 classes 0, 1, …, got [0, 2]"),
        (changed(means=[[0.3, 0.4], [0.5, 1.5], [0.7, 0.35]]), "--density: expected at most 5% of its mass"),
        (
            changed(covariances=[0.2, 0.01, 0.01]),
            "--density: expected at most 5% of its mass outside [0, 1]²",
        ),
    ],
)
def test_refuses_densities(refused: Refused, text: str | None, message: str) -> None:
    if text is not None:
        Path("p.json").write_text(text)
    said = refused(["theory", "--out", "out", "--density", "p.json"])
    assert said.removeprefix("--density: ").startswith(message.removeprefix("--density: "))
    assert said.startswith("--density: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--t-star 1.5",
            "--t-star: expected a time in (0, 1], got 1.5; timestep 1.5 of 1000 is",
        ),
        ("--t-star 0", "--t-star: expected a time in (0, 1], got 0.0"),
        ("--t-star nan", "--t-star: expected a time in (0, 1], got nan"),
        ("--t-star ten", "Invalid value for '--t-star': 'ten' is not a valid float."),
        ("--points 2", "--points: expected one of each of 3 classes at least, got 2"),
        (
            "--points 24",
            "--points: 24 points of 3 classes are too many for mixed-integer programming",
        ),
        ("--seed -1", "--seed: expected an integer ≥ 0, got -1"),
        (f"--seed {2**64}", f"--seed: expected 0 ≤ seed < 2^64, got {2**64}"),
    ],
)
def test_refuses_flags(refused: Refused, flags: str, message: str) -> None:
    assert refused(["theory", "--out", "out", *flags.split()]).startswith(message)


@pytest.mark.slow
def test_a_noise_level_that_rounding_hides_is_refused_before_the_work(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The distance of its finest steps is below 0 there."""

    def late(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(theory_draw, "bounds", late)
    said = refused(["theory", "--out", "out", "--t-star", "1e-6"])
    assert said.startswith("--t-star: rounding hides how far Euler–Maruyama misses")


def test_overwrites_nothing(refused: Refused) -> None:
    Path("out").mkdir()
    Path("out/digits.png").write_bytes(b"mine")
    assert refused(["theory", "--out", "out"]) == "--out: out/digits.png exists; --force overwrites it"
    Path("file").write_text("")
    assert refused(["theory", "--out", "file"]) == "--out: file is a file, expected a folder"
    assert refused(["theory", "--out", "file/below"]) == "--out: file is a file, expected a folder"


def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(theory_draw, "regions", interrupted)
    assert run(["theory", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.strip() == "diffproof: interrupted"
    assert tree(tmp_path) == {}
