"""Guided and gradual purifications: the papers' formulas, written in y = √ᾱ·(2x − 1), and exact gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from torch import Tensor, nn

import diffproof as dp
from diffproof.catalog import DEFENSES, able
from diffproof.defenses.purifying.coordinates import as_image
from diffproof.denoisers.base import Estimate, Sigma
from diffproof.gradients import plain
from diffproof.methods import load_class
from helpers.classifiers import SmoothClassifier, linear_classifier
from helpers.denoisers import ToyDenoiser, one_gaussian
from helpers.gradients import direction, pulled
from helpers.images import SHAPE, pictures
from helpers.noise import noise_of
from helpers.tensors import error
from helpers.vp_process import bar, from_y, level, to_y

BUDGET = 8 / 255


def strong(seed: int = 1) -> tuple[dp.Classifier, Tensor, Tensor]:
    """A linear classifier whose answers differ between images, its 3×9 matrix and offset."""
    torch.manual_seed(seed)
    layer = nn.Linear(9, 3).double()
    with torch.no_grad():
        layer.weight *= 5
    network = nn.Sequential(nn.Flatten(), layer)
    return dp.Classifier(network, 3, image_shape=SHAPE), layer.weight.detach(), layer.bias.detach()


def step_in_y(defense: dp.Purification, noisy: Tensor, images: Tensor, gradient_in_y: Tensor) -> Tensor:
    """The first DDPM step after the diffusion, N(μ + Σ·∇, Σ) in y (Dhariwal & Nichol 2021, algorithm 1)."""
    now, then = defense.t_star[0], defense.t_star[0] * (1 - 1 / defense.steps[0])
    bar_now, bar_then = bar(now), bar(then)
    with torch.no_grad():
        x0 = 2 * defense.denoiser(noisy, level(now)).clamp(0, 1) - 1
    y = to_y(noisy, level(now))
    one_minus_alpha = 1 - bar_now / bar_then
    mean = (
        math.sqrt(bar_then) * one_minus_alpha / (1 - bar_now) * x0
        + math.sqrt(bar_now / bar_then) * (1 - bar_then) / (1 - bar_now) * y
    )
    variance = (1 - bar_then) / (1 - bar_now) * one_minus_alpha
    normal = noise_of().normal(SHAPE, 2, torch.float64)
    y_next = mean + variance * gradient_in_y + math.sqrt(variance) * normal
    return from_y(y_next, level(then))


def first_step(defense: dp.Purification, noisy: Tensor, images: Tensor) -> Tensor:
    return defense.chain(noise_of())[1](noisy, images)


def check_step(defense: dp.Purification, gradient_in_y: Callable[[Tensor, float], Tensor]) -> None:
    """One step against the formula with this gradient, a function of y and √ᾱ, that is no trifle."""
    images = pictures()
    now = defense.t_star[0]
    noisy = images + level(now) * direction(7)
    gradient = gradient_in_y(to_y(noisy, level(now)), math.sqrt(bar(now)))
    expected = step_in_y(defense, noisy, images, gradient)
    assert error(step_in_y(defense, noisy, images, 0 * gradient), expected) > 1e-3
    torch.testing.assert_close(first_step(defense, noisy, images), expected, rtol=1e-8, atol=1e-8)


# GDMP.


def gdmp_scale(time: float, scale: float) -> float:
    """s_t = √(1 − ᾱ)/(m·√ᾱ), m = (2·budget/3)/scale."""
    m = 2 * BUDGET / 3 / scale
    return math.sqrt(1 - bar(time)) / (m * math.sqrt(bar(time)))


def guide_in_y(time: float) -> Tensor:
    """The input diffused to time t with the step's own noise: √ᾱ·x' + √(1 − ᾱ)·z."""
    z = noise_of().normal(SHAPE, 3, torch.float64)
    return math.sqrt(bar(time)) * (2 * pictures() - 1) + math.sqrt(1 - bar(time)) * z


def test_gdmp_descends_the_squared_error_to_the_diffused_input() -> None:
    defense = dp.GDMP(ToyDenoiser(2), linear_classifier(), t_star=0.2, steps=5, scale=200.0)

    def gradient(y: Tensor, root: float) -> Tensor:
        return -gdmp_scale(0.2, 200.0) * 2 / 9 * (y - guide_in_y(0.2))

    defense.denoiser.learned_variance = lambda *_: None  # type: ignore[method-assign]
    check_step(defense, gradient)


def test_gdmp_by_default_is_as_strong_on_each_pixel_as_on_cifar10() -> None:
    defense = dp.GDMP(one_gaussian(), linear_classifier())
    assert defense.t_star == (0.036,) * 4
    assert defense.steps == (36,) * 4
    assert defense.solver is dp.Solver.DDPM

    def gradient(y: Tensor, root: float) -> Tensor:
        return -gdmp_scale(0.036, 60_000) * 2 / (3 * 32 * 32) * (y - guide_in_y(0.036))

    check_step(defense, gradient)


def ssim(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Wang et al. 2004, eq. 13, of 7×7 windows whose values lie in [−1, 1]."""
    place = np.arange(7) - 3
    window = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def mean(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        averaged: np.ndarray[Any, Any] = convolve2d(values, window, mode="valid")
        return averaged

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    m1, m2 = mean(first), mean(second)
    v1, v2 = mean(first**2) - m1**2, mean(second**2) - m2**2
    covariance = mean(first * second) - m1 * m2
    likeness = (2 * m1 * m2 + c1) * (2 * covariance + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))
    return float(likeness.mean())


def test_gdmp_ascends_structural_similarity() -> None:
    shape, sigma, scale = (1, 8, 8), 0.1, 700.0
    middle = torch.full((1, *shape), 0.5, dtype=torch.float64)
    torch.manual_seed(0)
    toy = dp.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 3)
    denoiser = dp.GaussianMixtureDenoiser(middle, torch.tensor([0.01], dtype=torch.float64))
    defense = dp.GDMP(denoiser, toy, likeness="ssim", scale=scale)
    generator = torch.Generator().manual_seed(3)
    images, noisy, normal = (
        torch.rand(2, *shape, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    guide = to_y(images + sigma * normal, sigma).numpy()
    slopes = torch.empty_like(images)
    for place in np.ndindex(2, 8, 8):
        row, width = place[0], 1e-5
        offset = torch.zeros_like(noisy)
        offset[row, 0, place[1], place[2]] = width
        above, below = (
            ssim(to_y(noisy + sign * offset, sigma)[row, 0].numpy(), guide[row, 0]) for sign in (1, -1)
        )
        slopes[row, 0, place[1], place[2]] = (above - below) / (2 * width)
    strength = 2 * sigma / (2 * BUDGET / 3 / scale)
    got = defense.score_shift(noisy, sigma, images, lambda: normal)
    torch.testing.assert_close(got, strength * slopes, rtol=1e-4, atol=1e-6 * float(strength))


@pytest.mark.slow
def test_gdmp_draws_the_purified_image_towards_the_input() -> None:
    digits = dp.load_data("digits", split="test").images[:8]
    denoiser, digit_classifier = dp.load_denoiser("digits"), dp.load_classifier("digits")
    distances = []
    for scale in (1.0, None):
        defense = dp.GDMP(denoiser, digit_classifier, rounds=1, steps=12, scale=scale)
        with torch.no_grad():
            purified = defense.purify(digits, noise_of(8))
        distances.append(float((purified - digits).square().mean()))
    # The first guidance is next to nothing.
    assert distances[1] < 0.7 * distances[0]


def test_gdmp_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytorch_msssim", None)
    with pytest.raises(ValueError, match=r"pytorch_msssim: not installed; pip install 'diffproof\[gdmp\]'"):
        dp.GDMP(one_gaussian(), linear_classifier(), likeness="ssim")


# Gradual noise.


def test_gradual_noise_has_the_papers_levels() -> None:
    defense = dp.GradualNoise(one_gaussian(), linear_classifier())
    timesteps = [30] * 4 + [50] * 2 + [125] * 2
    assert [round(1000 * time) for time in defense.t_star] == list(defense.steps) == timesteps
    assert defense.evaluations == sum(timesteps)
    assert defense.solver is dp.Solver.DDPM
    starts = [levels[0] for levels in defense.levels()]
    assert starts == pytest.approx([level(timestep / 1000) for timestep in timesteps], rel=1e-9)


def test_gradual_noise_takes_other_levels() -> None:
    defense = dp.GradualNoise(one_gaussian(), linear_classifier(), t_star=[0.1, 0.2], steps=[2, 3])
    assert [len(levels) for levels in defense.levels()] == [2, 3]
    with pytest.raises(ValueError, match="steps: expected one number for each of 2 rounds"):
        dp.GradualNoise(one_gaussian(), linear_classifier(), t_star=[0.1, 0.2], steps=[2])


# COUP and AGDM, with linear classifiers.


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def shaped(rows: Tensor) -> Tensor:
    return rows.reshape(-1, *SHAPE)


def log_probability_gradient(z: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    """∇ log softmax(z)[label] with respect to the image z is of: W_y − Σ p_k W_k."""
    return weight[label] - z.softmax(1) @ weight


def test_coup_ascends_the_confidence_of_the_predicted_label() -> None:
    model, weight, bias = strong(5)
    defense = dp.COUP(one_gaussian(), model, t_star=0.2, steps=5, solver="ddpm", scale=3.0)

    def gradient(y: Tensor, root: float) -> Tensor:
        z = flat((y + 1) / 2) @ weight.T + bias
        assert len(z.argmax(1).unique()) == 2
        return shaped(3.0 * 0.5 * log_probability_gradient(z, weight, z.argmax(1)))

    check_step(defense, gradient)


def test_coup_integrates_the_guided_sde() -> None:
    """Euler–Maruyama in y, y + β·(½y + s + λ·∇log max p) + √β·z, with β·dt as its integral over the step."""
    model, weight, bias = strong(5)
    defense = dp.COUP(one_gaussian(), model, t_star=0.2, steps=5, scale=3.0)
    now, then = 0.2, 0.16
    noisy = pictures() + level(now) * direction(7)
    y = to_y(noisy, level(now))
    # Data N(½, 0.01) of x is N(0, 0.04) of y at time 0, and N(0, 0.04ᾱ + 1 − ᾱ) at a later one.
    score = -y / (0.04 * bar(now) + 1 - bar(now))
    z = flat((y + 1) / 2) @ weight.T + bias
    guidance = shaped(0.5 * log_probability_gradient(z, weight, z.argmax(1)))
    beta = math.log(bar(then) / bar(now))
    normal = noise_of().normal(SHAPE, 2, torch.float64)
    following = y + beta * (y / 2 + score + 3.0 * guidance) + math.sqrt(beta) * normal
    expected = from_y(following, level(then))
    assert error(from_y(following - beta * 3.0 * guidance, level(then)), expected) > 1e-3
    torch.testing.assert_close(first_step(defense, noisy, pictures()), expected, rtol=1e-7, atol=1e-8)


def test_coup_starts_from_the_image_itself() -> None:
    model, _, _ = strong(5)
    default, diffusing = (dp.COUP(one_gaussian(), model, diffuse=diffuse) for diffuse in (False, True))
    starts = [defense.chain(noise_of())[0](pictures(), pictures()) for defense in (default, diffusing)]
    torch.testing.assert_close(to_y(starts[0], level(0.1)), 2 * pictures() - 1, rtol=0, atol=1e-9)
    diffpure = dp.DiffPure(one_gaussian(), model, t_star=0.1)
    assert torch.equal(starts[1], diffpure.chain(noise_of())[0](pictures(), pictures()))


def test_coup_has_the_settings_of_its_authors() -> None:
    defense = dp.COUP(one_gaussian(), strong(5)[0])
    assert (defense.t_star, defense.steps, defense.scale) == ((0.1,), (100,), 1.0)
    assert defense.solver is dp.Solver.SDE
    assert {"scale": 1.0, "diffuse": False}.items() <= defense.settings().items()


def test_coup_without_noise_is_not_random() -> None:
    for solver, diffuse, random in (("sde", False, True), ("ode", True, True), ("ode", False, False)):
        model, _, _ = strong(5)
        defense = dp.COUP(one_gaussian(), model, t_star=0.2, steps=2, solver=solver, diffuse=diffuse)
        one, other = (defense(pictures(), noise_of(seed=seed)) for seed in (0, 1))
        assert defense.random is random is not torch.equal(one, other)


def agreement_gradient(seen: Tensor, weight: Tensor, bias: Tensor, label: str, distance: str) -> Tensor:
    """∇ of log p(y|·) − D(f(x'), f(·)) with respect to what the linear guide sees."""
    wanted = flat(pictures()) @ weight.T + bias
    z = flat(seen) @ weight.T + bias
    # D = Σ p'·(log p' − log p) has the gradient p − p' in z.
    towards = wanted.softmax(1) - z.softmax(1) if distance == "kl" else 2 * (wanted - z)
    gradient = towards @ weight
    if label != "none":
        chosen = (wanted if label == "guide" else z).argmax(1)
        gradient = gradient + log_probability_gradient(z, weight, chosen)
    return shaped(gradient)


CHOICES = [(label, distance) for label in ("guide", "step", "none") for distance in ("kl", "l2")]


@pytest.mark.parametrize(("label", "distance"), CHOICES)
@pytest.mark.parametrize("where", ["state", "clean"])
def test_agdm_follows_its_guide(where: str, label: str, distance: str) -> None:
    guide, weight, bias = strong(2)
    defense = dp.AGDM(
        one_gaussian(),
        linear_classifier(),
        guide=guide,
        t_star=0.2,
        steps=5,
        scale=2.0,
        where=where,
        label=label,
        distance=distance,
    )
    sigma = level(0.2)

    def gradient(y: Tensor, root: float) -> Tensor:
        if where == "state":
            return 2.0 * 0.5 * agreement_gradient((y + 1) / 2, weight, bias, label, distance)
        # The posterior mean of N(½, 0.01) under noise sigma; x = (y/√ᾱ + 1)/2.
        shrink = 0.01 / (0.01 + sigma**2)
        clean = 0.5 + shrink * y / root / 2
        assert 0 < float(clean.min()) < float(clean.max()) < 1
        return 2.0 * shrink / root / 2 * agreement_gradient(clean, weight, bias, label, distance)

    check_step(defense, gradient)


def test_the_labels_of_agdm_differ() -> None:
    # Else the test above would not tell "guide" from "step".
    _, weight, bias = strong(2)
    sigma = level(0.2)
    noisy = pictures() + sigma * direction(7)
    with torch.no_grad():
        clean = one_gaussian()(noisy, sigma)
    labels, *at_step = (
        (flat(seen) @ weight.T + bias).argmax(1) for seen in (pictures(), as_image(noisy, sigma), clean)
    )
    assert all(not torch.equal(labels, others) for others in at_step)


def test_agdm_counts_the_evaluations_it_makes() -> None:
    guide, _, _ = strong(2)
    for where, times in (("state", 1), ("clean", 2)):
        denoiser = ToyDenoiser(2)
        defense = dp.AGDM(denoiser, linear_classifier(), guide=guide, t_star=0.2, steps=5, where=where)
        with torch.no_grad():
            defense.purify(pictures(), noise_of())
        assert defense.evaluations == len(denoiser.estimates) == 5 * times


class Failing(nn.Module):
    """A guide of a user's, in which something is wrong."""

    num_classes = 3

    def forward(self, images: Tensor) -> Tensor:
        raise KeyError("size")


class Short(nn.Module):
    """A guide with too few logits."""

    num_classes = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2]


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (Failing(), r"^guide: Failing of .*test_guided failed: KeyError: 'size'"),
        (Short(), r"^guide: expected logits 1×3, got shape \(1, 2\)"),
        (dp.Classifier(Failing(), 3), r"^guide: Failing of .*test_guided failed: KeyError"),
    ],
)
def test_what_fails_in_a_guide_is_one_line_that_names_it(guide: nn.Module, message: str) -> None:
    defense = dp.AGDM(one_gaussian(), linear_classifier(), guide=guide, t_star=0.2, steps=2).eval()
    with pytest.raises(dp.ArgumentError, match=message):
        defense.purify(pictures(1), noise_of(1))


def test_the_guide_is_part_of_the_defence() -> None:
    guide, _, _ = strong(2)
    inner = dp.DiffPure(one_gaussian(), linear_classifier(), t_star=0.1, steps=2)
    with pytest.raises(ValueError, match=r"^guide: expected a plain classifier, got the defence 'diffpure'"):
        dp.AGDM(one_gaussian(), linear_classifier(), guide=inner)
    defense = dp.AGDM(one_gaussian(), linear_classifier(), guide=guide)
    assert any(name.startswith("guide.") for name in defense.state_dict())
    assert "guide" in defense.describe()
    assert defense.t_star == (0.07,)
    assert defense.steps == (70,)
    settings = defense.settings()
    assert {"scale": 1.0, "where": "clean", "label": "guide", "distance": "l2"}.items() <= settings.items()
    defense.guide = nn.Sequential(nn.BatchNorm2d(1), guide)
    with pytest.raises(ValueError, match="guide: BatchNorm2d is in training mode"):
        defense.check_evaluation_mode()


# Gradients.


class Attending(ToyDenoiser):
    """Pixels attend to each other by torch's own function, whose fused kernels have no second derivative."""

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        pixels = noisy.reshape(len(noisy), 1, 9, 1) * torch.linspace(1, 2, 4, dtype=noisy.dtype)
        mixed = nn.functional.scaled_dot_product_attention(pixels.sin(), pixels.cos(), pixels)
        return super().estimate(noisy + 0.1 * mixed.sum(3).reshape(noisy.shape), sigma, label)


def guided(name: str, solver: str) -> dp.Purification:
    denoiser = Attending(2) if name.endswith("attention") else ToyDenoiser(2)
    networks: dict[str, Any] = {"denoiser": denoiser, "classifier": SmoothClassifier()}
    settings: dict[str, dict[str, Any]] = {
        "gdmp": {"rounds": 2, "scale": 0.1},
        "coup": {"scale": 5.0},
        "coup diffusing": {"scale": 5.0, "diffuse": True},
        "agdm state": {"guide": SmoothClassifier(), "where": "state", "distance": "kl", "scale": 5.0},
        "agdm clean": {"guide": SmoothClassifier(), "where": "clean", "scale": 5.0},
        "agdm attention": {"guide": SmoothClassifier(), "where": "clean", "scale": 5.0},
    }
    defense = dp.load_defense(
        name.split()[0], t_star=0.3, steps=3, solver=solver, **networks, **settings[name]
    )
    assert isinstance(defense, dp.Purification)
    return defense


@pytest.mark.parametrize("solver", ["ddpm", "sde", "ode"])
@pytest.mark.parametrize(
    "name", ["gdmp", "coup", "coup diffusing", "agdm state", "agdm clean", "agdm attention"]
)
def test_gradients_are_exact(name: str, solver: str) -> None:
    defense, noise, images, by = guided(name, solver), noise_of(), pictures(), direction(1)
    expected, full = pulled(lambda x: plain(x, defense.chain(noise)), images, by)
    output, gradient = pulled(lambda x: defense.purify(x, noise), images, by)
    assert torch.equal(output, expected)
    assert error(gradient, full) < 1e-12
    width, along = 1e-5, direction(2)
    with torch.no_grad():
        assert torch.equal(defense.purify(images, noise), output)
        above, below = (defense.purify(images + sign * width * along, noise) for sign in (1, -1))
    pushed = (above - below) / (2 * width)
    assert float((pushed * by).sum()) == pytest.approx(float((along * gradient).sum()), rel=1e-6)


# By name.


def three_gaussians() -> dp.GaussianMixtureDenoiser:
    """Three classes, and two noise levels for the sums over them."""
    means = torch.linspace(0.2, 0.8, 3, dtype=torch.float64).reshape(3, 1, 1, 1).expand(3, *SHAPE)
    return dp.GaussianMixtureDenoiser(
        means, torch.full((3,), 0.01), component_labels=[0, 1, 2], sigmas=torch.tensor([0.1, 0.2])
    )


def given(method: str) -> dict[str, Any]:
    """The networks and settings that a method needs."""
    generative = ("dc", "apndc", "epndc", "sbgc", "rdc")
    needed: dict[str, Any] = {} if method in generative else {"classifier": linear_classifier()}
    if method in (*generative, "likelihood"):
        needed["denoiser"] = three_gaussians()
    elif method != "none":
        needed["denoiser"] = one_gaussian()
    if method == "diffpure":
        needed["t_star"] = 0.1
    return needed | ({"guide": strong()[0]} if method == "agdm" else {})


def test_every_method_has_its_name() -> None:
    # A classifier of its own that is neither certified nor purifies.
    assert {*able(DEFENSES, "certify"), *able(DEFENSES, "purify"), "sbgc"} == set(DEFENSES)
    for method in DEFENSES:
        defense = dp.load_defense(method, **given(method))
        assert type(defense) is load_class("defense", method)
        assert defense.settings()["method"] == method


@pytest.mark.parametrize("method", able(DEFENSES, "purify"))
def test_a_missing_network_is_named(method: str) -> None:
    for name in ("denoiser", "guide"):
        needed = given(method)
        if needed.pop(name, None) is not None:
            with pytest.raises(ValueError, match=f"^{name}: the method '{method}' needs one, got None$"):
                dp.load_defense(method, **needed)


@pytest.mark.parametrize("method", sorted(DEFENSES))
def test_a_setting_that_a_method_does_not_take_is_named(method: str) -> None:
    with pytest.raises(ValueError, match=f"^brightness: no setting of the defense '{method}', "):
        dp.load_defense(method, brightness=1.0, **given(method))
    if method != "agdm":
        with pytest.raises(ValueError, match=f"^guide: the method '{method}' takes none$"):
            dp.load_defense(method, guide=strong()[0], **given(method))
    if "classifier" not in given(method):
        with pytest.raises(ValueError, match=f"^classifier: the method '{method}' takes none$"):
            dp.load_defense(method, classifier=linear_classifier(), **given(method))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("gdmp", {"rounds": 0}, "rounds: expected an integer ≥ 1, got 0"),
        ("gdmp", {"scale": 0.0}, "scale: expected a finite number > 0, got 0.0"),
        ("gdmp", {"budget": -1.0}, "budget: expected a finite number > 0"),
        ("gdmp", {"likeness": "lpips"}, "likeness: expected one of mse, ssim, got 'lpips'"),
        ("gdmp", {"t_star": 36}, "t_star: expected a time in .* is t_star = 0.036"),
        ("gradual", {"t_star": ()}, "rounds: expected an integer ≥ 1, got 0"),
        ("coup", {"scale": math.inf}, "scale: expected a finite number > 0, got inf"),
        ("agdm", {"scale": -1.0}, "scale: expected a finite number > 0"),
        ("agdm", {"where": "here"}, "where: expected one of state, clean, got 'here'"),
        ("agdm", {"label": "true"}, "label: expected one of guide, step, none, got 'true'"),
        ("agdm", {"distance": "l1"}, "distance: expected one of kl, l2, got 'l1'"),
        ("agdm", {"guide": nn.Flatten()}, "guide: expected the classifier's 3 classes, got None"),
    ],
)
def test_settings_that_are_refused(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.load_defense(method, **{**given(method), **settings})


def test_a_guide_of_other_images_is_refused() -> None:
    other = dp.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 3, image_shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"guide: takes \(1, 4, 4\) images, but the defence \(1, 3, 3\)"):
        dp.AGDM(one_gaussian(), linear_classifier(), guide=other)
