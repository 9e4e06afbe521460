"""Diffusion classifiers against formulas of papers, one image, class and step at a time, and closed forms."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.defenses.diffusion_classifier.levels import Weighting, edm_sigmas
from diffproof.defenses.diffusion_classifier.loss import CLASSIFIER_VOTE
from diffproof.defenses.named import set_precision
from diffproof.denoisers.base import Estimate
from diffproof.denoisers.edm import EDMSchedule
from diffproof.methods import parse
from diffproof.noise import Noise
from diffproof.runs.defense import with_levels
from diffproof.weights import hash_tensors
from helpers.images import SHAPE, pictures
from helpers.noise import noise_of

CLASSES = 3
STEPS = 12
SCHEDULE = dp.DiscreteSchedule.linear(STEPS, 0.01, 0.3)


class Toy(nn.Module):
    """A smooth random network that depends on its timestep and its label, the null label included."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 1, 3, padding=1)
        self.embedding = nn.Embedding(CLASSES + 1, 4)
        self.rows: list[int] = []
        self.peak = 0
        self._alive: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        hidden = torch.tanh(2 * self.first(x) + 0.1 * timestep[:, None, None, None])
        hidden = torch.tanh(hidden + self.embedding(label)[:, :, None, None])
        self.rows.append(len(x))
        self._alive = [one for one in self._alive if one() is not None] + [weakref.ref(hidden)]
        self.peak = max(self.peak, len(self._alive))
        output: Tensor = self.last(hidden)
        return output


def toy(schedule: Any = SCHEDULE, null: bool = True) -> dp.NetworkDenoiser:
    return dp.NetworkDenoiser(
        Toy().double(),
        schedule,
        image_shape=SHAPE,
        num_classes=CLASSES,
        null_label=CLASSES if null else None,
    )


def network(denoiser: dp.NetworkDenoiser) -> Toy:
    assert isinstance(denoiser.network, Toy)
    return denoiser.network


def image_noise(rows: int = 2, seed: int = 0) -> Noise:
    return noise_of(rows, seed, image=7, first=3)


def epsilon(noise: Noise, row: int, vote: int, step: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """The noise tensor of one row by its indices alone."""
    own = Noise(
        noise.seed,
        noise.stream,
        noise.image_index[row : row + 1],
        noise.draw[row : row + 1],
        torch.tensor([vote]),
    )
    return own.normal(shape, step, torch.float64)[0]


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# Against the papers' formulas.


def alphas() -> tuple[list[float], list[float]]:
    """β and ᾱ of the schedule, by timestep 1…T at index t."""
    betas = [0.0, *(0.01 + (0.3 - 0.01) * index / (STEPS - 1) for index in range(STEPS))]
    bars = [1.0]
    for beta in betas[1:]:
        bars.append(bars[-1] * (1 - beta))
    return betas, bars


def papers_errors(images: Tensor, noise: Noise, *, shared: bool, samples: int) -> dict[int, Tensor]:
    """By t, N×K of ‖ε_θ(√ᾱ·x' + √(1−ᾱ)·ε, t, y) − ε‖² (Chen et al. 2023, eq. 6) with x' = 2x − 1."""
    net, (_, bars) = Toy().double(), alphas()
    found = {}
    for t in range(1, STEPS + 1):
        errors = torch.zeros(len(images), CLASSES, dtype=torch.float64)
        for row in range(len(images)):
            for label in range(CLASSES):
                for sample in range(samples):
                    vote = 2**15 if shared else 2**15 + 1 + label
                    z = epsilon(noise, row, vote, (t - 1) * samples + sample)
                    x = math.sqrt(bars[t]) * (2 * images[row] - 1) + math.sqrt(1 - bars[t]) * z
                    out = net(x[None], torch.tensor([t - 1]), torch.tensor([label]))[0]
                    errors[row, label] += (out - z).square().sum() / samples
        found[t] = errors.detach()
    return found


def papers_weight(weighting: str, t: int) -> float:
    """w_t so that the loss is Σ_t w_t·error_t / T, from the papers' formulas in β and ᾱ."""
    betas, bars = alphas()
    if weighting == "simple":
        return 1.0
    if weighting == "vlb":
        # Ho et al. 2020, eq. 12 with σ_t² = β̃_t; L_0 with a Gaussian decoder of variance β_1 (section 3.3).
        variance = betas[t] * (1 - bars[t - 1]) / (1 - bars[t]) if t > 1 else betas[1]
        return STEPS * betas[t] ** 2 / (2 * variance * (1 - betas[t]) * (1 - bars[t]))
    levels = [math.sqrt(1 / bar - 1) for bar in bars[1:]]
    widths = [high - low for low, high in itertools.pairwise(levels)]
    level, width = levels[t - 1], [*widths, widths[-1]][t - 1]
    density = float(scipy.stats.lognorm(s=1.2, scale=math.exp(-1.2)).pdf(level))
    if weighting == "edm-authors":
        density = math.exp(-((math.log(level) + 1.2) ** 2) * 1.2**2 / 2) / (
            level * 1.2 * math.sqrt(2 * math.pi)
        )
    # ‖D − x'‖² = σ'²·‖ε_θ − ε‖².
    return STEPS * (level**2 + 0.25) / (level * 0.5) ** 2 * density * width * level**2


@pytest.mark.parametrize("reduction", ["norm", "mean"])
@pytest.mark.parametrize("weighting", list(Weighting))
@pytest.mark.parametrize("shared", [True, False])
def test_loss_is_the_papers(shared: bool, weighting: str, reduction: str) -> None:
    images, noise = pictures(), image_noise()
    errors = papers_errors(images, noise, shared=shared, samples=1)
    expected = sum(papers_weight(weighting, t) * errors[t] for t in errors) / STEPS
    assert isinstance(expected, Tensor)
    if reduction == "mean":
        expected = expected / 9
    defense = dp.DiffusionClassifier(toy(), weighting=weighting, reduction=reduction, shared_noise=shared)
    close(defense(images, noise), -expected)
    assert float(expected.std(1).min()) > 1e-3, "classes differ"


def test_samples_of_noise_are_averaged() -> None:
    images, noise = pictures(), image_noise()
    errors = papers_errors(images, noise, shared=True, samples=3)
    defense = dp.DiffusionClassifier(toy(), samples=3)
    close(defense(images, noise), -sum(errors.values(), torch.zeros(())) / STEPS)


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ("all", list(range(1, 13))),
        ("first:1", [1]),
        ("first:5", [1, 2, 3, 4, 5]),
        ("uniform:12", list(range(1, 13))),
        ("uniform:4", [2, 5, 8, 11]),
        ("uniform:3", [3, 7, 11]),
        ("uniform:5", [2, 4, 7, 9, 11]),
        ("uniform:1", [7]),
    ],
)
def test_rules_for_timesteps(rule: str, chosen: list[int]) -> None:
    images, noise = pictures(), image_noise()
    loss = dp.DiffusionLoss(toy(), timesteps=rule, weighting="vlb")
    _, bars = alphas()
    assert loss.levels == pytest.approx([math.sqrt(1 / bars[t] - 1) / 2 for t in chosen], rel=1e-12)
    assert loss.weights == pytest.approx([papers_weight("vlb", t) for t in chosen], rel=1e-9)
    # Each level's own error under its noise, the step of which is its place among the chosen ones.
    net, expected = Toy().double(), torch.zeros(2, CLASSES, dtype=torch.float64)
    for place, t in enumerate(chosen):
        for row in range(2):
            z = epsilon(noise, row, 2**15, place)
            x = math.sqrt(bars[t]) * (2 * images[row] - 1) + math.sqrt(1 - bars[t]) * z
            for label in range(CLASSES):
                out = net(x[None], torch.tensor([t - 1]), torch.tensor([label]))[0]
                error = papers_weight("vlb", t) * (out - z).square().sum() / len(chosen)
                expected[row, label] += error.detach()
    close(loss.losses(images, noise), expected)
    parts = [loss.level_losses(images, noise, index) for index in range(len(chosen))]
    close(torch.stack(parts).sum(0), expected)


def test_sums_of_the_published_edm_weights() -> None:
    # Of w in w·‖D − x‖², over the authors' 1000 levels: the log-normal's, and what their code multiplies by.
    denoiser = gaussians()
    for weighting, total in (("edm", 196.4), ("edm-authors", 33.5)):
        loss = dp.DiffusionLoss(denoiser, sigmas=edm_sigmas(1000), weighting=weighting)
        levels = zip(loss.levels, loss.weights, strict=True)
        assert sum(weight / (2 * sigma) ** 2 for sigma, weight in levels) / 1000 == pytest.approx(
            total, abs=0.05
        )
    assert edm_sigmas(4) == pytest.approx([5e-5, 0.3750375, 0.750025, 1.1250125], rel=1e-9)


class Zero(nn.Module):
    """Predicts nothing, whatever it is asked."""

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        """Like x."""
        return 0 * x


def of_edm() -> dp.NetworkDenoiser:
    """A denoiser with the levels and the pixels of EDM's networks."""
    how: dict[str, Any] = {"prediction": "v_prediction", "data_range": (-2.0, 2.0)}
    return dp.NetworkDenoiser(
        Zero(), EDMSchedule(), image_shape=(1, 8, 8), num_classes=3, null_label=3, **how
    )


def test_the_authors_levels_by_name() -> None:
    denoiser = of_edm()
    method = "rdc:variant=authors,sigmas=edm:125,weighting=edm-authors,reduction=mean"
    defense: Any = dp.load_defense(method, denoiser=denoiser)
    loss = defense.classifier.loss
    # In [-1, 1] pixels EDM's networks begin at 0.002: the first of 1e-4, 0.0241, ... is left out.
    assert loss.levels == edm_sigmas(125)[1:]
    levels = [2 * sigma for sigma in loss.levels]
    whole = dp.DiffusionLoss(gaussians(), sigmas=edm_sigmas(125), weighting="edm-authors")
    for weight, own in zip(loss.weights, whole.weights[1:], strict=True):
        assert weight / len(loss.grid) == pytest.approx(own / 125, rel=1e-12)
    for weighting in ("edm", "edm-authors"):
        whole = dp.DiffusionLoss(gaussians(), sigmas=edm_sigmas(125), weighting=weighting)
        assert whole.weights[0] / sum(whole.weights) < 1e-7
    assert levels[-1] == pytest.approx(3 - 3 / 125, abs=1e-4)
    assert dp.DiffusionClassifier(denoiser, sigmas="edm:1000").loss.grid == edm_sigmas(1000)[1:]
    for text, message in (
        ("edm:0", "count: expected an integer ≥ 1, got 0"),
        ("edm:x", "sigmas: expected levels or edm:N, got 'edm:x'"),
        ("vp:9", "sigmas: expected levels or edm:N, got 'vp:9'"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            dp.DiffusionClassifier(denoiser, sigmas=text)
    with pytest.raises(ValueError, match=r"^sigmas: edm:N is for a continuous denoiser, and this one has"):
        dp.load_defense("rdc:sigmas=edm:125", denoiser=toy())
    with pytest.raises(ValueError, match=r"in brackets, such as \[1,2\], or edm:N, or none, got 'edm:0'"):
        dp.load_defense("rdc:sigmas=edm:0", denoiser=denoiser)


@pytest.mark.slow
def test_commands_find_levels_for_edm() -> None:
    denoiser = of_edm()
    method = with_levels(parse("defense", "dc:weighting=edm"), denoiser)
    defense = dp.load_defense(method, denoiser=denoiser)
    with torch.no_grad():
        assert torch.isfinite(defense(torch.full((1, 1, 8, 8), 0.3))).all()
    assert len(method.settings["sigmas"]) == 999


def test_null_label_gives_the_unconditional_loss() -> None:
    images, noise, denoiser = pictures(), image_noise(), toy()
    loss = dp.DiffusionLoss(denoiser)
    net, (_, bars) = Toy().double(), alphas()
    expected = torch.zeros(2, dtype=torch.float64)
    for row in range(2):
        for t in range(1, STEPS + 1):
            z = epsilon(noise, row, 99, t - 1)
            x = math.sqrt(bars[t]) * (2 * images[row] - 1) + math.sqrt(1 - bars[t]) * z
            out = net(x[None], torch.tensor([t - 1]), torch.tensor([CLASSES]))[0]
            expected[row] += ((out - z).square().sum() / STEPS).detach()
    close(loss.unconditional(images, noise, vote=99), expected)
    # With classes, in one batch.
    network(denoiser).rows.clear()
    both = loss.losses(images, noise, torch.tensor([1, CLASSES]), vote=99)
    close(both[:, 1], expected)
    close(both[:, 0], loss.losses(images, noise, vote=99)[:, 1])
    assert network(denoiser).rows[:STEPS] == [4] * STEPS
    # Its gradient alone, for what follows it.
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.unconditional(leaf, noise, vote=99).sum(), leaf)
    assert torch.equal(loss.unconditional_gradient(images, noise, vote=99), gradient)
    # An unconditional denoiser needs no label.
    plain = dp.DiffusionLoss(gaussians(labelled=False, sigmas=torch.tensor([0.2, 0.5])))
    assert plain.unconditional(images, noise).shape == (2,)


# Against closed forms on Gaussian data.

VARIANCE = 0.04


def means(scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return scale * torch.rand(CLASSES, *SHAPE, dtype=torch.float64, generator=generator)


def gaussians(
    sigmas: Tensor | None = None, *, labelled: bool = True, scale: float = 1.0
) -> dp.GaussianMixtureDenoiser:
    """Class y is N(μ_y, VARIANCE)."""
    variances = torch.full((CLASSES,), VARIANCE, dtype=torch.float64)
    labels = list(range(CLASSES)) if labelled else None
    return dp.GaussianMixtureDenoiser(means(scale), variances, component_labels=labels, sigmas=sigmas)


def log_likelihoods(images: Tensor, variance: float, scale: float = 1.0) -> Tensor:
    """log N(x; μ_y, variance) up to a constant, N×K."""
    return -(images[:, None] - means(scale)).flatten(2).square().sum(2) / (2 * variance)


LADDER = torch.logspace(-3, 3, 600, dtype=torch.float64)
DELTA = math.log(10) * 6 / 599
ROWS = 48


def tolerance(differences: Tensor, variance: float, scale: float = 1.0) -> Tensor:
    """Of differences of logits, averaged over ROWS rows of noise, against those of log-likelihoods.

    Levels √variance·LADDER sum the integral ½∫(‖x − μ_a‖² − ‖x − μ_b‖²)/(1 + v/σ²)² dσ⁻² = (…)/(2v) to a
    relative error of DELTA. The noise of a row adds N(0, 2·DELTA·‖μ_a − μ_b‖²/(3v)): 5 standard deviations of
    the mean are exceeded with probability 6e-7.
    """
    farthest = max(float((one - other).norm()) for one in means(scale) for other in means(scale))
    deviation = farthest * math.sqrt(2 * DELTA / (3 * variance) / ROWS)
    return 1.5 * DELTA * differences.abs() + 5 * deviation


def test_loss_of_gaussian_classes_in_closed_form() -> None:
    # D(x_σ) = μ + c·(x_σ − μ), c = v/(v + σ²), so ε_θ − ε = ((1 − c)·(x − μ) − c·σ·ε)/σ.
    images, noise, sigmas = pictures(), image_noise(), [0.1, 0.3, 1.0]
    expected = torch.zeros(2, CLASSES, dtype=torch.float64)
    for index, sigma in enumerate(sigmas):
        c = VARIANCE / (VARIANCE + sigma**2)
        z = torch.stack([epsilon(noise, row, 2**15, index) for row in range(2)])[:, None]
        error = ((1 - c) * (images[:, None] - means()) - c * sigma * z) / sigma
        expected += error.flatten(2).square().sum(2) / 3
    close(dp.DiffusionClassifier(gaussians(), sigmas=sigmas)(images, noise), -expected)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.0, 0.25])
def test_bound_on_the_likelihood_of_clean_and_noisy_gaussians(tau: float) -> None:
    # An exact denoiser attains the bound: differences of logits are those of log p_τ(x_τ|y).
    variance = VARIANCE + tau**2
    sigmas = torch.sqrt(variance * LADDER**2 + tau**2).tolist()
    defense = dp.DiffusionClassifier(gaussians(), sigmas=sigmas, weighting="vlb")
    generator = torch.Generator().manual_seed(1)
    offsets = math.sqrt(variance) * torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    images = means()[:2] + offsets
    many, noise = images.repeat_interleave(ROWS, 0), image_noise(2 * ROWS)
    # Gaussians leave the pixel range, which a defence that is called refuses.
    logits = defense.logits(many, tau, noise) if tau else defense.respond(many, noise)
    got = logits.reshape(2, ROWS, CLASSES).mean(1)
    expected = log_likelihoods(images, variance)
    differences = expected[:, 1:] - expected[:, :1]
    allowed = tolerance(differences, variance)
    assert float(allowed.max()) < 0.1 * float(differences.abs().max())
    assert bool(((got[:, 1:] - got[:, :1] - differences).abs() < allowed).all())


def conditional(near: float, far: float, at: Tensor, origin: Tensor | float) -> tuple[Tensor, float]:
    """Of z_near given z_far = at, for z_near = origin + N(0, near) and z_far = z_near + N(0, far)."""
    gain = near / (near + far)
    return origin + gain * (at - origin), near - gain * near


@pytest.mark.parametrize("tau", [0.0, 0.15, 0.35])
def test_terms_are_divergences_of_gaussians(tau: float) -> None:
    """KL(q(x_{t−1}|x_t, x_τ) ‖ q(x_{t−1}|x_t, E[x_τ|x_t])); at the lowest level the decoder's density."""
    sigmas = [0.1, 0.2, 0.3, 0.5, 0.9]
    loss = dp.DiffusionLoss(gaussians(), sigmas=sigmas, weighting="vlb")
    images, noise = pictures(), image_noise()
    used = [index for index, sigma in enumerate(sigmas) if sigma > tau]
    assert loss.above(tau) == used
    total = torch.zeros(2, CLASSES, dtype=torch.float64)
    for index in used:
        far = sigmas[index] ** 2 - tau**2
        expected = torch.zeros(2, CLASSES, dtype=torch.float64)
        for row in range(2):
            x = images[row]
            noisy = x + math.sqrt(far) * epsilon(noise, row, 2**15, index)
            for label in range(CLASSES):
                guess, _ = conditional(VARIANCE + tau**2, far, noisy, means()[label])
                if index == used[0]:
                    # β̃'s place is taken by one step of the [−1, 1] process: s²/(1 + 4s²) in [0, 1] pixels.
                    divergence = (x - guess).square().sum() / (2 * far / (1 + 4 * far))
                else:
                    near = sigmas[index - 1] ** 2 - tau**2
                    mean, variance = conditional(near, far - near, noisy, x)
                    other, _ = conditional(near, far - near, noisy, guess)
                    divergence = (mean - other).square().sum() / (2 * variance)
                expected[row, label] = divergence
        close(loss.level_losses(images, noise, index, sigma=tau), expected)
        total += expected
    close(loss.losses(images, noise, sigma=tau), total)


@pytest.mark.parametrize("weighting", list(Weighting))
def test_loss_of_noisy_images_tends_to_that_of_clean_ones(weighting: str) -> None:
    images, noise = pictures(), image_noise()
    loss = dp.DiffusionLoss(toy(), weighting=weighting)
    clean = loss.losses(images, noise)
    gaps = [float((loss.losses(images, noise, sigma=tau) - clean).abs().max()) for tau in (1e-3, 1e-4, 1e-5)]
    assert gaps[0] > 0
    assert gaps[1] < gaps[0] / 50
    assert gaps[2] < 1e-6 * float(clean.abs().max())


@pytest.mark.slow
def test_posterior_of_the_class_of_gaussian_data() -> None:
    # Bayes's, with the prior of the classes, from the mean logits of many rows.
    prior, scale = [0.6, 0.3, 0.1], 0.25
    defense = dp.DiffusionClassifier(
        gaussians(scale=scale),
        sigmas=(math.sqrt(VARIANCE) * LADDER).tolist(),
        weighting="vlb",
        log_prior=[math.log(share) for share in prior],
    )
    image = 0.5 * means(scale)[:1] + 0.5 * means(scale)[1:2]
    logits = defense(image.repeat(ROWS, 1, 1, 1), image_noise(ROWS)).mean(0)
    likelihoods = log_likelihoods(image, VARIANCE, scale)[0]
    joint = likelihoods.exp() * torch.tensor(prior)
    # A probability changes by at most half of what the differences of logits do.
    allowed = float(tolerance(likelihoods - likelihoods[0], VARIANCE, scale).max()) / 2
    assert allowed < 0.08
    assert float((logits.softmax(0) - joint / joint.sum()).abs().max()) < allowed


# Logits, labels and probabilities.


def test_prior_and_temperature() -> None:
    images, noise = pictures(), image_noise()
    losses = dp.DiffusionLoss(toy()).losses(images, noise)
    prior = [-1.0, 0.5, 2.0]
    defense = dp.DiffusionClassifier(toy(), log_prior=prior, temperature=2.5)
    expected = torch.tensor(prior, dtype=torch.float64) - losses / 2.5
    close(defense(images, noise), expected)
    close(defense.predict_proba(images, noise), expected.exp() / expected.exp().sum(1, keepdim=True))
    assert defense.predict_labels(images, noise).equal(expected.argmax(1))
    assert defense.logits(images, 0.2, noise).isfinite().all()
    close(
        defense.logits(images, 0.2, noise),
        torch.tensor(prior) - dp.DiffusionLoss(toy()).losses(images, noise, sigma=0.2) / 2.5,
    )


@pytest.mark.parametrize("settings", [{}, {"shared_noise": False}, {"race_error": 0.1}])
def test_no_images_have_no_answers(settings: dict[str, Any]) -> None:
    images, none = pictures()[:0], torch.arange(0)
    noise = image_noise().rows(none, none)
    optimal = dp.EmpiricalDenoiser(pictures(3), torch.arange(3), sigmas=[0.1, 0.2])
    for denoiser in (toy(), optimal):
        defense = dp.DiffusionClassifier(denoiser, **settings)
        for given in (None, noise):
            assert defense(images, given).shape == defense.predict_proba(images, given).shape == (0, CLASSES)
            labels = defense.predict_labels(images, given)
            assert (labels.shape, labels.dtype) == ((0,), torch.int64)
        assert defense.classify(images, 0.15, noise, 4).labels.shape == (0,)
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(defense(leaf, noise).sum(), leaf)
        assert gradient.shape == images.shape


class Blind(dp.GaussianMixtureDenoiser):
    """Takes labels and does not look at them."""

    def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Estimate:
        return super().estimate(noisy, sigma, None)


def test_shared_noise_tells_nothing_between_classes_and_fresh_noise_does() -> None:
    blind = Blind(means(), torch.full((CLASSES,), VARIANCE), component_labels=[0, 1, 2])
    images, noise = pictures(), image_noise()
    shared, fresh = (
        dp.DiffusionClassifier(blind, sigmas=[0.1, 0.5], shared_noise=way)(images, noise)
        for way in (True, False)
    )
    assert torch.equal(shared, shared[:, :1].expand(-1, CLASSES))
    assert float(fresh.std(1).min()) > 1e-3
    # A class's fresh noise is its own, whichever classes are asked.
    loss = dp.DiffusionLoss(blind, sigmas=[0.1, 0.5])
    one = loss.losses(images, noise, torch.tensor([2]), shared=False)[:, 0]
    close(-one, fresh[:, 2])
    close(one, loss.losses(images, noise, vote=CLASSIFIER_VOTE + 3)[:, 0])


def test_rows_of_a_batch_do_not_meet() -> None:
    images, noise = pictures(4), image_noise(4)
    for shared in (True, False):
        defense = dp.DiffusionClassifier(toy(), shared_noise=shared, timesteps="uniform:3")
        together = defense(images, noise)
        alone = torch.cat([defense(*part) for part in zip(images.split(1), noise.split(1), strict=True)])
        close(together, alone, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 100])
def test_classify_respects_the_batch_size_and_counts(batch_size: int, shared: bool) -> None:
    denoiser = toy()
    defense = dp.DiffusionClassifier(denoiser, shared_noise=shared, samples=2)
    images, noise, sigma = pictures(2), image_noise(2), 0.2
    above = sum(level > sigma for level in defense.loss.levels)
    assert 0 < above < STEPS
    expected = defense.logits(images, sigma, noise).argmax(1)
    rows = network(denoiser).rows
    rows.clear()
    labelled = defense.classify(images, sigma, noise, batch_size)
    assert labelled.labels.equal(expected)
    assert max(rows) <= batch_size
    assert sum(rows) == labelled.denoiser_evaluations == 2 * CLASSES * above * 2
    assert labelled.classifier_evaluations == 0
    assert defense.evaluations_per_draw(sigma) == (CLASSES * above * 2, 0)
    rows.clear()
    assert defense.predict_labels(images, noise, batch_size).equal(defense(images, noise).argmax(1))
    assert max(rows[: len(rows) // 2]) <= max(batch_size, 0)
    assert len(expected.unique()) > 1


def test_noise_of_its_own_makes_it_random() -> None:
    defense = dp.DiffusionClassifier(toy())
    assert defense.random
    torch.manual_seed(0)
    first, second = defense(pictures()), defense(pictures())
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(defense(pictures()), first)


def test_as_the_base_classifier_of_randomized_smoothing() -> None:
    defense = dp.DiffusionClassifier(gaussians(), sigmas=[0.05, 0.3, 0.6, 1.2, 2.4])
    certificate = dp.Smoothed(defense, 0.25).certify(means()[1], n0=10, n=100, image_index=0, seed=0)
    assert certificate.label == 1
    assert certificate.radius > 0


# Gradients.


@pytest.mark.parametrize("shared", [True, False])
def test_prediction_and_attack_evaluate_one_function(shared: bool) -> None:
    defense = dp.DiffusionClassifier(toy(), shared_noise=shared)
    images, noise, labels = pictures(), image_noise(), torch.tensor([0, 2])
    view = AttackedDefense(defense)

    def loss(x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(view(x, noise), labels, reduction="none")

    leaf = images.clone().requires_grad_()
    before = loss(leaf)
    with torch.no_grad():
        assert torch.equal(view(images, noise), defense(images, noise))
        assert torch.equal(loss(images), before)
    assert defense.predict_labels(images, noise).equal(defense(images, noise).argmax(1))
    (gradient,) = torch.autograd.grad(before.sum(), leaf)
    direction = gradient.sign()
    slope = (gradient * direction).flatten(1).sum(1)
    gaps = []
    for step in (1e-3, 1e-4):
        with torch.no_grad():
            observed = loss(images + step * direction) - before
        gaps.append(float((observed / (step * slope) - 1).abs().max()))
    assert float(slope.min()) > 0.01
    # What is left is of second order.
    assert gaps[0] < 0.05
    assert gaps[1] < 0.11 * gaps[0]


@pytest.mark.parametrize("sigma", [0.0, 0.2])
@pytest.mark.parametrize("shared", [True, False])
def test_first_and_second_gradients_are_those_of_the_full_graph(shared: bool, sigma: float) -> None:
    images, noise = pictures(), image_noise()
    loss = dp.DiffusionLoss(toy(), weighting="vlb")

    def full(x: Tensor) -> Tensor:
        # The public term of each level, whose sum autograd keeps in full.
        parts = [loss.level_losses(x, noise, i, sigma=sigma, shared=shared) for i in loss.above(sigma)]
        return torch.stack(parts).sum(0)

    def whole(x: Tensor) -> Tensor:
        return loss.losses(x, noise, sigma=sigma, shared=shared)

    results = []
    for function in (full, whole):
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf)[:, 0].sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
        results.append((gradient.detach(), second))
    for got, expected in zip(*results, strict=True):
        close(got, expected)


@pytest.mark.parametrize("order", [1, 2])
def test_memory_does_not_grow_with_the_number_of_levels(order: int) -> None:
    peaks = []
    for count in (3, 12):
        denoiser = toy()
        loss = dp.DiffusionLoss(denoiser, timesteps=f"first:{count}")
        leaf = pictures().requires_grad_()
        value = loss.losses(leaf, image_noise()).sum()
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=order == 2)
        if order == 2:
            torch.autograd.grad(gradient.square().sum(), leaf)
        assert len(network(denoiser).rows) == (1 + order) * count
        peaks.append(network(denoiser).peak)
    assert peaks == [1, 1]


# In the place of a classifier.


def purified(**settings: Any) -> tuple[dp.DiffPure, dp.DiffusionClassifier]:
    denoiser = toy()
    classifier = dp.DiffusionClassifier(denoiser, timesteps="first:4", **settings)
    return dp.DiffPure(denoiser, classifier, sigma=0.2, steps=3, solver="ddpm"), classifier


def test_purification_before_a_diffusion_classifier() -> None:
    defense, classifier = purified()
    images, noise = pictures(), image_noise()
    expected = classifier(defense.purify(images, noise), noise.nested())
    assert torch.equal(defense(images, noise), expected)
    assert not torch.equal(defense(images, noise), defense(images, image_noise(seed=1)))
    assert defense.num_classes == CLASSES
    assert defense.classifier_size(3, 3) == (3, 3)
    with pytest.raises(ValueError, match="noise: expected some for a classifier that is a defence, got None"):
        defense.classifier_logits(images)
    # Attacks see the same noise in both parts.
    for mode in (GradientMode.EXACT, GradientMode.BPDA):
        assert torch.equal(AttackedDefense(defense, mode)(images, noise), expected)
    blind = AttackedDefense(defense, GradientMode.BLIND)
    assert torch.equal(blind(images, noise), classifier(images, noise.nested()))
    assert blind.random


def test_results_tell_diffusion_classifiers_apart() -> None:
    def hashed(defense: dp.Defense) -> str:
        return hash_tensors(defense.state_dict(), defense.describe())

    settings: list[dict[str, Any]] = [{}, {"temperature": 2.0}, {"weighting": "vlb"}, {"shared_noise": False}]
    assert len({hashed(purified(**one)[0]) for one in settings}) == len(settings)
    assert hashed(purified()[0]) == hashed(purified()[0])
    classifiers = [purified(**one)[1] for one in settings]
    assert len({str(one.settings()) for one in classifiers}) == len(settings)


def test_defenses_that_label_noisy_images_by_a_diffusion_classifier() -> None:
    denoiser = toy()
    classifier = dp.DiffusionClassifier(denoiser, timesteps="first:4")
    images, noise = pictures(5), image_noise(5)
    dds = dp.DDS(denoiser, classifier)
    expected = classifier(dp.one_shot(denoiser, images, 0.4), noise.nested())
    assert torch.equal(dds.logits(images, 0.4, noise), expected)
    assert dds.classify(images, 0.4, noise, 2).labels.equal(expected.argmax(1))
    undefended = dp.Undefended(classifier)
    assert undefended.random
    assert torch.equal(undefended(images, noise), classifier(images, noise.nested()))
    assert undefended.classify(images, 0.4, noise, 2).labels.equal(
        classifier(images, noise.nested()).argmax(1)
    )
    votes = dp.DensePure(denoiser, classifier, steps=2, votes=3, step_rule="log-sigma")
    labels = votes.classify(images, 0.4, noise, 4).labels
    assert labels.equal(votes.vote_shares(images, 0.4, noise).argmax(1))
    with pytest.raises(
        ValueError, match="classifier: coup needs a plain one to guide it, got the defence 'dc'"
    ):
        dp.COUP(denoiser, classifier)


def test_training_mode_of_its_network_is_refused() -> None:
    class Dropping(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout2d()

    denoiser = dp.NetworkDenoiser(
        Dropping().double(), SCHEDULE, image_shape=SHAPE, num_classes=CLASSES, null_label=CLASSES
    )
    for defense in (
        dp.DiffusionClassifier(denoiser),
        dp.Undefended(dp.DiffusionClassifier(denoiser)),
    ):
        with pytest.raises(ValueError, match="Dropout2d is in training mode"):
            defense.check_evaluation_mode()
        defense.eval().check_evaluation_mode()
        defense.train()


def test_precision_reaches_its_network() -> None:
    defense = dp.Undefended(dp.DiffusionClassifier(toy()))
    images, noise = pictures(), image_noise()
    exact = defense(images, noise)
    set_precision(defense, torch.float32)
    assert {parameter.dtype for parameter in defense.parameters()} == {torch.float32}
    rounded = defense(images, noise)
    assert rounded.dtype == torch.float64
    close(rounded, exact, 1e-4)
    assert not torch.equal(rounded, exact)


# Denoisers under several labels.


def test_per_class_is_one_label_at_a_time() -> None:
    noisy = pictures(4)
    sigma = torch.tensor([0.1, 0.2, 0.4, 0.3], dtype=torch.float64)
    for denoiser in (toy(), gaussians()):
        for level in (0.3, sigma):
            got = denoiser.per_class(noisy, level)
            assert got.shape == (4, CLASSES, *SHAPE)
            for label in range(CLASSES):
                close(got[:, label], denoiser(noisy, level, torch.full((4,), label)))
            mixed = denoiser.per_class(noisy, level, torch.tensor([2, CLASSES, 0, 2]))
            close(mixed[:, 0], got[:, 2])
            close(mixed[:, 1], denoiser(noisy, level))
            close(mixed[:, 2], got[:, 0])
            close(mixed[:, 3], got[:, 2])


def test_one_batch_serves_all_classes_of_a_level() -> None:
    denoiser = toy()
    dp.DiffusionClassifier(denoiser)(pictures(), image_noise())
    assert network(denoiser).rows == [2 * CLASSES] * STEPS


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (torch.tensor([0, 4]), r"classes: expected 0 ≤ class < 3 or the null label 3, got \[4\]"),
        (torch.tensor([-1]), r"classes: expected 0 ≤ class < 3 or the null label 3, got \[-1\]"),
        (torch.tensor([[0]]), r"classes: expected K ≥ 1 int64 labels, got shape \(1, 1\), torch.int64"),
        (torch.tensor([0.0]), r"classes: expected K ≥ 1 int64 labels, got shape \(1,\), torch.float32"),
        (torch.tensor([], dtype=torch.int64), r"classes: expected K ≥ 1 int64 labels, got shape \(0,\)"),
    ],
)
def test_classes_that_are_refused(classes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy().per_class(pictures(), 0.3, classes)
    with pytest.raises(ValueError, match=message):
        dp.DiffusionLoss(toy()).losses(pictures(), image_noise(), classes)


def test_what_per_class_refuses_besides() -> None:
    with pytest.raises(ValueError, match=r"classes: expected 0 ≤ class < 3, got \[3\]"):
        toy(null=False).per_class(pictures(), 0.3, torch.tensor([3]))
    with pytest.raises(ValueError, match="classes: this denoiser is unconditional and has none"):
        gaussians(labelled=False).per_class(pictures(), 0.3)
    with pytest.raises(ValueError, match=r"sigma: expected 0.0502519 ≤ sigma ≤ "):
        toy().per_class(pictures(), 0.01)
    with pytest.raises(ValueError, match="images: the denoiser takes 1×3×3"):
        toy().per_class(torch.zeros(2, 1, 4, 4), 0.3)
    with pytest.raises(ValueError, match="sigma: expected one or 2 values"):
        toy().per_class(pictures(), torch.tensor([0.3, 0.3, 0.3]))


# By name, and what is refused.


def test_by_name() -> None:
    defense = dp.load_defense("dc", denoiser=toy(), timesteps="uniform:5", temperature=2.0)
    assert isinstance(defense, dp.DiffusionClassifier)
    assert (len(defense.loss.levels), defense.temperature) == (5, 2.0)
    assert defense.settings() == {
        "method": "dc",
        "sigmas": None,
        "timesteps": "uniform:5",
        "weighting": "simple",
        "samples": 1,
        "reduction": "norm",
        "shared_noise": True,
        "log_prior": None,
        "temperature": 2.0,
        "race_error": None,
    }
    assert dp.DiffusionClassifier(toy(), sigmas=[0.2, 0.4]).settings()["sigmas"] == [0.2, 0.4]
    with pytest.raises(ValueError, match=r"^classifier: the method 'dc' takes none$"):
        dp.load_defense("dc", denoiser=toy(), classifier=nn.Identity())
    with pytest.raises(ValueError, match=r"^denoiser: the method 'dc' needs one, got None$"):
        dp.load_defense("dc")
    with pytest.raises(ValueError, match="classifier: the method 'dc' has none"):
        defense.classifier_logits(pictures(), image_noise())


REFUSED: list[tuple[Callable[[], object], str]] = [
    (
        lambda: dp.DiffusionClassifier(gaussians(labelled=False)),
        "denoiser: expected a class-conditional one, got one without classes",
    ),
    (
        lambda: dp.DiffusionClassifier(gaussians()),
        "sigmas: this denoiser is continuous, expected noise levels, got None",
    ),
    (lambda: dp.DiffusionClassifier(toy(), sigmas=[]), "sigmas: expected at least one noise level, got none"),
    (
        lambda: dp.DiffusionClassifier(toy(), sigmas=[0.4, 0.2]),
        "sigmas: expected ascending noise levels > 0, got 0.4, 0.2",
    ),
    (lambda: dp.DiffusionClassifier(toy(), sigmas=[0.3, 0.3]), "sigmas: expected ascending noise levels"),
    (
        lambda: dp.DiffusionClassifier(toy(), sigmas=[0.3, math.nan]),
        "sigmas: expected ascending noise levels",
    ),
    (lambda: dp.DiffusionClassifier(toy(), sigmas=[0.01, 0.3]), "sigma: expected 0.0502519 ≤ sigma ≤ "),
    (
        lambda: dp.DiffusionClassifier(gaussians(), sigmas=[0.0, 0.3]),
        r"sigmas: expected ascending noise levels > 0, got 0, 0.3",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), timesteps="first:13"),
        r"timesteps: expected 1 ≤ N ≤ 12 \(the number of noise levels\), got 'first:13'",
    ),
    (lambda: dp.DiffusionClassifier(toy(), timesteps="uniform:13"), "timesteps: expected 1 ≤ N ≤ 12"),
    (lambda: dp.DiffusionClassifier(toy(), timesteps="first:0"), "timesteps: expected 1 ≤ N ≤ 12"),
    (
        lambda: dp.DiffusionClassifier(toy(), timesteps="first:-1"),
        "timesteps: expected all, first:N or uniform:N, got 'first:-1'",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), timesteps="last:2"),
        "timesteps: expected all, first:N or uniform:N",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), timesteps="first"),
        "timesteps: expected all, first:N or uniform:N",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), timesteps="all:2"),
        "timesteps: expected all, first:N or uniform:N",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), weighting="snr"),
        "weighting: expected one of simple, vlb, edm, edm-authors, got 'snr'",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), sigmas=[0.3], weighting="edm"),
        "sigmas: the weightings of EDM need at least two noise levels",
    ),
    (lambda: dp.DiffusionClassifier(toy(), samples=0), "samples: expected an integer ≥ 1, got 0"),
    (
        lambda: dp.DiffusionClassifier(toy(), samples=5462),
        r"samples: expected levels·samples ≤ 65536, got 12·5462",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), reduction="sum"),
        "reduction: expected one of norm, mean, got 'sum'",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), temperature=0.0),
        "temperature: expected a finite number > 0, got 0",
    ),
    (lambda: dp.DiffusionClassifier(toy(), temperature=-1.0), "temperature: expected a finite number > 0"),
    (lambda: dp.DiffusionClassifier(toy(), log_prior=[0.0, 1.0]), "log_prior: expected 3 values, got 2"),
    (
        lambda: dp.DiffusionClassifier(toy(), log_prior=[0.0, 1.0, -math.inf]),
        "log_prior: expected finite values, got",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), race_error=0.0),
        r"race_error: expected a number in \(0, 1\), got 0",
    ),
    (
        lambda: dp.DiffusionClassifier(toy(), race_error=0.1, shared_noise=False),
        "^race_error: racing compares classes under the same noise; expected shared_noise=True, got False$",
    ),
    (
        lambda: dp.RDC(toy(), race_error=0.1, shared_noise=False),
        "^race_error: racing compares classes under the same noise",
    ),
    (
        lambda: dp.DiffusionLoss(toy(null=False)).unconditional(pictures(), image_noise()),
        "denoiser: the unconditional loss needs a null label, and this one has none",
    ),
    (
        lambda: dp.DiffusionLoss(toy()).losses(pictures(), image_noise(), sigma=5.0),
        r"sigma: expected 0 ≤ sigma < 1.\d+ \(the highest noise level\), got 5.0",
    ),
    (
        lambda: dp.DiffusionLoss(toy()).losses(pictures(), image_noise(), sigma=-0.1),
        "sigma: expected 0 ≤ sigma < ",
    ),
    (
        lambda: dp.DiffusionLoss(toy()).level_losses(pictures(), image_noise(), 0, sigma=0.2),
        r"index: expected that of a level above sigma = 0\.2, got 0",
    ),
    (
        lambda: dp.DiffusionLoss(toy()).level_losses(pictures(), image_noise(), STEPS),
        "index: expected that of a level above sigma = 0, got 12",
    ),
    (lambda: dp.DiffusionClassifier(toy()).check_sigma(0.0), "sigma: expected a finite number > 0, got 0"),
    (lambda: dp.Smoothed(dp.DiffusionClassifier(toy()), 3.0), "sigma: expected 0 ≤ sigma < "),
    (
        lambda: dp.DiffusionClassifier(toy()).classify(pictures(), 0.2, image_noise(), 0),
        "batch_size: expected an integer ≥ 1, got 0",
    ),
    (
        lambda: dp.DiffusionClassifier(toy())(torch.zeros(2, 1, 4, 4), image_noise()),
        "images: the denoiser takes 1×3×3",
    ),
    (
        lambda: dp.DiffusionClassifier(toy())(pictures(), image_noise(3)),
        "noise: expected one row for each of 2",
    ),
    (lambda: edm_sigmas(0), "count: expected an integer ≥ 1, got 0"),
]


@pytest.mark.parametrize(("action", "message"), REFUSED)
def test_what_is_refused(action: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)
