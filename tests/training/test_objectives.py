"""Objectives of smoothing trainings against formulas written with numpy and scipy, and against ART."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import entr, rel_entr, softmax
from scipy.stats import norm
from torch import Tensor, nn

import diffproof as dp
from diffproof.catalog import able
from diffproof.catalog_objectives import OBJECTIVES
from diffproof.cli.main import run
from diffproof.training.batches import Mixture
from diffproof.training.classifier import accuracy, describe_classifier, train_classifier
from diffproof.training.finetune import finetune
from diffproof.training.loop import Progress, TrainSettings
from diffproof.training.objectives.base import Step, at_sigma
from diffproof.training.objectives.search import ascend, standardised, within
from diffproof.weights import hash_tensors, load_weights

pytestmark = pytest.mark.usefixtures("small_digits")

Array = np.ndarray[Any, np.dtype[np.float64]]

OF_CLASSIFIERS = [*dict.fromkeys(able(OBJECTIVES, "train") + able(OBJECTIVES, "finetune"))]

N, M, CLASSES, SHAPE = 6, 4, 5, (1, 4, 4)
SMALL = 1e-7


class Net(nn.Module):
    """A smooth network without batch statistics, which numpy can repeat."""

    def __init__(self, scale: float = 3.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first = nn.Parameter(torch.randn(16, 12, dtype=torch.float64, generator=generator) / 6)
        self.second = nn.Parameter(scale * torch.randn(12, CLASSES, dtype=torch.float64, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """N×1×4×4 → N×5."""
        return torch.tanh((images.flatten(1) - 0.5) @ self.first) @ self.second


def numpy_net(net: Net, images: Array) -> Array:
    first, second = (one.detach().numpy() for one in (net.first, net.second))
    answers: Array = np.tanh((images.reshape(-1, 16) - 0.5) @ first) @ second
    return answers


def step_of(net: nn.Module, *, draws: int = M, sigma: float = 0.25, done: float = 0.5, **more: Any) -> Step:
    generator = torch.Generator().manual_seed(6)
    images = torch.rand((N, *SHAPE), dtype=torch.float64, generator=generator)
    # Small, so that the draws of some images agree.
    normal = 0.4 * torch.randn((N, draws, *SHAPE), dtype=torch.float64, generator=generator)
    uniform = torch.rand((N, draws), dtype=torch.float64, generator=generator)
    labels = torch.zeros(N, dtype=torch.int64)
    step = replace(Step(images, labels, normal, uniform, sigma, done, net, net, lambda noisy: noisy), **more)
    with torch.no_grad():
        # Labels that are mostly right, so that terms of rightly classified images count.
        labels = step.log_probabilities(images).exp().mean(1).argmax(1)
    labels[0] = (labels[0] + 1) % CLASSES
    return replace(step, labels=labels)


def arrays(step: Step) -> tuple[Array, Array, Array]:
    """Images as N×16, labels, and the logits of each noisy image, N×m×classes."""
    images, normal = step.images.numpy().reshape(N, 16), step.normal.numpy().reshape(N, -1, 16)
    assert isinstance(step.network, Net)
    noisy = images[:, None] + step.sigma * normal
    logits = numpy_net(step.network, noisy).reshape(N, -1, CLASSES)
    return images, step.labels.numpy(), logits


def entropy_with(labels: Array, probabilities: Array) -> Array:
    """Cross-entropies of N×m×classes probabilities, N×m."""
    rows = np.arange(len(labels))
    found: Array = -np.log(probabilities[rows, :, labels] if probabilities.ndim == 3 else 0)
    return found


def test_gaussian() -> None:
    step = step_of(Net(), draws=1)
    _, labels, logits = arrays(step)
    expected = entropy_with(labels, softmax(logits, 2)).mean()
    assert float(dp.load_objective("gaussian").loss(step).detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("sigma", "weight"), [(0.25, 2.0), (1.0, 1.0)])
def test_stability(sigma: float, weight: float) -> None:
    step = step_of(Net(), draws=1, sigma=sigma)
    images, labels, logits = arrays(step)
    assert isinstance(step.network, Net)
    clean = softmax(numpy_net(step.network, images), 1)
    kept = -(clean * np.log(softmax(logits[:, 0], 1))).sum(1)
    expected = (-np.log(clean[np.arange(N), labels]) + weight * kept).mean()
    assert float(dp.load_objective("stability").loss(step).detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("sigma", "weight"), [(0.25, 20.0), (0.5, 10.0)])
def test_consistency(sigma: float, weight: float) -> None:
    step = step_of(Net(), sigma=sigma)
    _, labels, logits = arrays(step)
    draws = softmax(logits, 2)
    mean = draws.mean(1)
    apart = rel_entr(mean[:, None], draws).sum(2).mean()
    expected = entropy_with(labels, draws).mean() + weight * apart + 0.5 * entr(mean).sum(1).mean()
    found = dp.load_objective("consistency:draws=4").loss(step)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("sigma", "weight", "done"), [(0.25, 12.0, 0.0), (0.5, 4.0, 0.0), (1.0, 12.0, 0.5), (1.0, 0.0, 0.4)]
)
def test_macer(sigma: float, weight: float, done: float) -> None:
    # At 0.25 the quantiles of some images are infinite.
    step = step_of(Net(), sigma=sigma, done=done)
    _, labels, logits = arrays(step)
    right = softmax(logits, 2).mean(1)[np.arange(N), labels]
    expected = -np.log(right + 1e-10)
    kinds = []
    for i in range(N):
        sharp = softmax(16 * logits[i], 1).mean(0)
        best, second = np.argsort(-sharp)[:2]
        radius = norm.ppf(sharp[best]) - norm.ppf(sharp[second])
        counts = best == labels[i] and np.isfinite(radius) and radius <= 3
        kinds.append("wrong" if best != labels[i] else "counts" if counts else "beyond")
        expected[i] += weight * sigma / 2 * (3 - radius) if counts else 0
    assert {"wrong", "counts"} <= {*kinds}
    assert sigma > 0.25 or "beyond" in kinds
    found = dp.load_objective("macer:gamma=3").loss(step)
    assert float(found.detach()) == pytest.approx(expected.mean(), rel=1e-10)


def test_infinite_quantiles_of_macer_give_no_gradient() -> None:
    net = Net(scale=1e4)
    step = step_of(net)
    step.labels[0] = net(step.images[:1]).argmax()
    loss = dp.load_objective("macer").loss(step)
    loss.backward()
    assert all(bool(torch.isfinite(one.grad).all()) for one in net.parameters() if one.grad is not None)
    assert net.second.grad is not None


def climbed(
    of: Callable[[Array], Array], start: Array, steps: int, size: float, settle: Callable[[Array], Array]
) -> list[Array]:
    """Gradient ascent by central differences, each point alone."""
    points = [start.copy()]
    for _ in range(steps):
        gradient = np.zeros_like(start)
        for index in np.ndindex(start.shape[1:]):
            moved = np.zeros_like(start)
            moved[(slice(None), *index)] = SMALL * 30
            gradient[(slice(None), *index)] = (of(points[-1] + moved) - of(points[-1] - moved)) / (60 * SMALL)
        length = np.sqrt((gradient**2).reshape(len(start), -1).sum(1))
        unit = gradient / length.reshape(-1, *[1] * (start.ndim - 1))
        points.append(settle(points[-1] + size * unit))
    return points


def pulled(points: Array, centre: Array, radius: float) -> Array:
    axes = tuple(range(1, points.ndim))
    length = np.sqrt(((points - centre) ** 2).sum(axes, keepdims=True))
    found: Array = centre + (points - centre) * np.minimum(1, radius / np.maximum(length, 1e-300))
    return found


def smoothed_loss(step: Step) -> Callable[[Array], Array]:
    """−log of the mean probability of the label over the draws, of N×16 points."""
    normal, labels = step.normal.numpy().reshape(N, -1, 16), step.labels.numpy()
    net = step.network
    assert isinstance(net, Net)

    def of(points: Array) -> Array:
        logits = numpy_net(net, points[:, None] + step.sigma * normal).reshape(N, -1, CLASSES)
        found: Array = -np.log(softmax(logits, 2).mean(1)[np.arange(N), labels])
        return found

    return of


@pytest.mark.parametrize("done", [0.0, 0.05, 0.5])
def test_smoothadv(done: float) -> None:
    step = step_of(Net(scale=1), done=done)
    images, labels, _ = arrays(step)
    budget = 0.6 * min(1.0, done / 0.1)

    def settle(points: Array) -> Array:
        return pulled(points.clip(0, 1), images, budget)

    found = climbed(smoothed_loss(step), images, 3, 2 * budget / 3, settle)[-1] if budget else images
    moved = replace(step, images=torch.from_numpy(found).reshape(N, *SHAPE))
    expected = entropy_with(labels, softmax(arrays(moved)[2], 2)).mean()
    objective = dp.load_objective("smoothadv:draws=4,steps=3,budget=0.6")
    assert float(objective.loss(step).detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mix_step", [0, 2])
def test_smoothmix(mix_step: int) -> None:
    step = step_of(Net(scale=1), done=0.05)
    images, labels, _ = arrays(step)
    assert isinstance(step.network, Net)
    points = climbed(smoothed_loss(step), images, 3, 0.1, lambda points: points.clip(0, 1))
    start, end = pulled(points[mix_step], images, 0.1 * mix_step * 0.5), points[3]
    share = step.uniform.numpy()[:, :1] / 2
    mixed = (1 - share) * start + share * end

    def draws(of: Array) -> Array:
        moved = replace(step, images=torch.from_numpy(of).reshape(N, *SHAPE))
        found: Array = softmax(arrays(moved)[2], 2)
        return found

    mean = draws(start).mean(1)
    target = (1 - share) * mean + share / CLASSES
    apart = rel_entr(target[:, None], draws(mixed)).sum(2).mean(1)
    right = mean.argmax(1) == labels
    assert 0 < right.sum() < N
    expected = entropy_with(labels, draws(start)).mean() + 5 * 0.5 * (right * apart).mean()
    found = dp.load_objective(f"smoothmix:draws=4,steps=3,step=0.1,mix_step={mix_step}").loss(step)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)


def worst_change(
    net: Net, images: Array, changes: Array, target: Array, budget: float, steps: int
) -> tuple[Array, Array]:
    """Changes N×m×16 moved up KL(target ‖ p) and settled, and the divergences there."""
    flat = changes.reshape(-1, 16)
    repeated, targets = np.repeat(images, changes.shape[1], 0), np.repeat(target, changes.shape[1], 0)

    def of(points: Array) -> Array:
        found: Array = rel_entr(targets, softmax(numpy_net(net, repeated + points), 1)).sum(1)
        return found

    def settle(points: Array) -> Array:
        points = pulled(points, flat, budget)
        points = (points - points.mean(1, keepdims=True)) / points.std(1, keepdims=True)
        found: Array = flat.mean(1, keepdims=True) + flat.std(1, keepdims=True) * points
        return found

    found = climbed(of, flat, steps, 2 * budget / steps, settle)[-1]
    return found, of(found).reshape(changes.shape[:2])


def test_cat_rs() -> None:
    net = Net(scale=1)
    step = step_of(net, done=0.5)
    images, labels, logits = arrays(step)
    draws = softmax(logits, 2)
    right = (draws.argmax(2) == labels[:, None]).sum(1)
    assert len({*right.tolist()}) > 2
    changes = step.sigma * step.normal.numpy().reshape(N, M, 16)
    _, high = worst_change(net, images, changes, draws.mean(1), 0.5, 2)
    expected = 0.0
    for i in range(N):
        kept = max(1, sum(step.uniform.numpy()[i] < right[i] / M))
        expected += np.sort(entropy_with(labels, draws)[i])[:kept].sum() / M / N
        expected += 0.5 * high[i].max() / N if kept == M else 0.0
    found = dp.load_objective("cat-rs:budget=0.5,steps=2").loss(step)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)


def shrunk(noisy: Tensor) -> Tensor:
    """A denoiser for tests."""
    return (0.2 + 0.6 * noisy).clamp(0, 1)


def test_ft_cadis() -> None:
    net = Net(scale=1)
    step = step_of(net, denoise=shrunk)
    images, labels, _ = arrays(step)
    noisy = images[:, None] + 0.25 * step.normal.numpy().reshape(N, M, 16)
    denoised = (0.2 + 0.6 * noisy).clip(0, 1)
    draws = softmax(numpy_net(net, denoised).reshape(N, M, CLASSES), 2)
    # One image that no draw gets right.
    labels[1] = draws[1].mean(0).argmin()
    right, entropies = draws.argmax(2) == labels[:, None], entropy_with(labels, draws)
    _, worst = worst_change(net, images, denoised - images[:, None], draws.mean(1), 0.3, 2)
    assert 0 < right.all(1).sum() < N
    assert not right.any(1).all()
    expected = 0.0
    for i in range(N):
        expected += (entropies[i][right[i]].sum() if right[i].any() else entropies[i].min()) / M / N
        expected += 4 * worst[i].max() / N if right[i].all() else 0.0
    found = dp.load_objective("ft-cadis:budget=0.3,steps=2").loss(step)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)


def test_covariate_shift() -> None:
    net = Net(scale=1)
    step = step_of(net, draws=1, sigma=0.5, denoise=shrunk)
    images, labels, _ = arrays(step)
    noise = step.normal.numpy().reshape(N, 16)

    def of(noise: Array) -> Array:
        logits = numpy_net(net, (0.2 + 0.6 * (images + 0.5 * noise)).clip(0, 1))
        found: Array = -np.log(softmax(logits, 1)[np.arange(N), labels])
        return found

    for _ in range(3):
        slope = np.stack([(of(noise + d) - of(noise - d)) / 2e-6 for d in 1e-6 * np.eye(16)], 1)
        noise = noise + 0.2 * np.sign(np.where(abs(slope) < 1e-9, 0, slope))
    found = dp.load_objective("covariate-shift:steps=3,step=0.2").loss(step)
    assert float(found.detach()) == pytest.approx(of(noise).mean(), rel=1e-9)


# The searches.


def test_steps_have_one_length_and_points_stay_where_they_may_be() -> None:
    generator = torch.Generator().manual_seed(1)
    slope, start = (torch.randn((3, 2, 5), dtype=torch.float64, generator=generator) for _ in range(2))
    points = ascend(lambda x: (slope * x).sum((1, 2)), start, steps=2, size=0.3, settle=lambda x: x)
    along = slope / slope.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(points[-1], start + 0.6 * along)
    torch.testing.assert_close(within(points[-1], start, 0.5), start + 0.5 * along)
    assert torch.equal(within(start, start, 0.0), start)


def test_standardised_points_have_the_moments_of_others() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randn((2, 3, 1, 4, 4), dtype=torch.float64, generator=generator) for _ in range(2))
    found = standardised(2 + 3 * first, second)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(found, (2, 3, 4)), moment(second, (2, 3, 4)))
    torch.testing.assert_close(standardised(second, second), second)


# Gradients, and what a search leaves behind.

QUICK = {
    "gaussian": "gaussian",
    "stability": "stability",
    "smoothadv": "smoothadv:draws=4,steps=2,budget=0.3",
    "macer": "macer:draws=4,gamma=3",
    "consistency": "consistency:draws=4",
    "smoothmix": "smoothmix:draws=4,steps=2,step=0.1",
    "cat-rs": "cat-rs:budget=0.3,steps=2",
    "ft-cadis": "ft-cadis:steps=2",
    "covariate-shift": "covariate-shift",
    "jem": "jem:steps=1,step=0.1,noise=0,buffer=9,restart=0",
}


def test_every_objective_is_tested() -> None:
    # That one trains a network of its own: test_hybvit.py.
    assert {*QUICK, "hybvit"} == {*OF_CLASSIFIERS}


@pytest.mark.parametrize("text", QUICK.values(), ids=QUICK)
def test_gradients_are_those_of_the_loss_at_what_was_found(text: str) -> None:
    # What a search finds moves with the weights, and is held still in the gradient: a search of size 0.
    text = text.replace("budget=0.3", "budget=1e-12").replace("step=0.1", "step=1e-12")
    # The target of cat-rs is held still, too.
    text = {
        "cat-rs:budget=1e-12,steps=2": "cat-rs:weight=0",
        "ft-cadis:steps=2": "ft-cadis:budget=1e-12",
        "covariate-shift": "covariate-shift:step=1e-12",
    }.get(text, text)
    net = Net(scale=1)
    objective = dp.load_objective(text).begin(SHAPE, 0, net)
    step = step_of(net, draws=objective.draws_at(0.25))
    (gradient,) = torch.autograd.grad(objective.loss(step), net.second)
    direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values = []
    for sign in (1, -1):
        moved = Net(scale=1)
        with torch.no_grad():
            moved.second.add_(sign * SMALL * direction)
        values.append(float(objective.loss(replace(step, network=moved, forward=moved)).detach()))
    slope = (values[0] - values[1]) / (2 * SMALL)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("text", QUICK.values(), ids=QUICK)
def test_searches_leave_the_network_as_it_was(text: str) -> None:
    torch.manual_seed(0)
    # An energy is of an image alone.
    middle = nn.Dropout(0.1) if text.startswith("jem") else nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), middle, nn.Flatten(), nn.Linear(16, CLASSES)).double()
    middle.eval()
    modes = [module.training for module in net.modules()]
    objective = dp.load_objective(text).begin(SHAPE, 0, net)
    found = objective.loss(step_of(net, draws=objective.draws_at(0.25)))
    assert [module.training for module in net.modules()] == modes
    assert all(one.grad is None for one in net.parameters())
    found.backward()
    assert bool(torch.isfinite(found))
    assert all(one.grad is not None for one in net.parameters())


# MACER, against the Adversarial Robustness Toolbox.


def test_macer_against_art() -> None:
    pytest.importorskip("art")
    from art.estimators.certification.randomized_smoothing.macer.pytorch import PyTorchMACER

    step = step_of(Net(scale=1), draws=16)
    images, labels, counted = step.images.float(), step.labels, 0
    for i in range(N):
        # One image a batch, so that no order of images matters; a step of SGD shows ART's gradient.
        theirs, net = Net(scale=1).float(), Net(scale=1).float()
        art = PyTorchMACER(
            theirs,
            loss=nn.CrossEntropyLoss(),
            input_shape=SHAPE,
            nb_classes=CLASSES,
            optimizer=torch.optim.SGD(theirs.parameters(), lr=1.0),
            scale=step.sigma,
            device_type="cpu",
        )
        torch.manual_seed(i)
        art.fit(images[i : i + 1].numpy(), labels[i : i + 1].numpy(), batch_size=1, nb_epochs=1)
        # ART's own noise, drawn again.
        torch.manual_seed(i)
        list(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images[i : i + 1]), shuffle=True))
        ours = replace(
            step,
            images=images[i : i + 1],
            labels=labels[i : i + 1],
            normal=torch.randn((16, *SHAPE))[None],
            network=net,
            forward=net,
        )
        (gradient,) = torch.autograd.grad(dp.load_objective("macer").loss(ours), net.second)
        torch.testing.assert_close(net.second - theirs.second, gradient, rtol=1e-4, atol=1e-5)
        (plain,) = torch.autograd.grad(dp.load_objective("macer:weight=0").loss(ours), net.second)
        counted += not torch.allclose(plain, gradient)
    assert 0 < counted < N


# Settings.


def test_settings_of_the_papers_are_by_noise_level() -> None:
    usual = {0.25: 1.0, 0.5: 2.0, 1.0: 3.0}
    assert [at_sigma(None, usual, sigma) for sigma in (0.01, 0.3, 0.36, 0.6, 0.8, 9)] == [1, 1, 2, 2, 3, 3]
    assert at_sigma(7.0, usual, 0.25) == 7.0
    assert [dp.load_objective("smoothadv").draws_at(sigma) for sigma in (0.25, 0.5, 1.0)] == [4, 8, 2]
    assert dp.load_objective("smoothadv:draws=3").draws_at(0.5) == 3
    assert dp.load_objective("macer").draws_at(0.25) == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macr", r"objective: unknown name 'macr'; did you mean macer\?"),
        ("gaussian:draws=2", "draws: no setting of the objective 'gaussian', which takes none"),
        ("macer:weight=-1", "weight: expected a number ≥ 0, or none, got '-1'"),
        ("smoothmix:mix_step=5", "mix_step: expected at most steps, 4, got 5"),
    ],
)
def test_wrong_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        dp.load_objective(text)


def test_python_constructors_check_their_settings() -> None:
    from diffproof.training.objectives.macer import MACER

    with pytest.raises(ValueError, match=r"^draws: expected an integer ≥ 1, got '0'$"):
        MACER(draws=0)
    assert MACER(weight=4).describe() == {
        "name": "macer",
        "draws": 16,
        "weight": 4.0,
        "beta": 16.0,
        "gamma": 8.0,
        "deferred": None,
    }


# Trainings.

TINY = {
    "smoothadv": "smoothadv:draws=2,steps=1",
    "macer": "macer:draws=3",
    "smoothmix": "smoothmix:steps=1",
    "cat-rs": "cat-rs:draws=2,steps=1",
    "ft-cadis": "ft-cadis:draws=2,steps=1",
    "covariate-shift": "covariate-shift:steps=1",
    "jem": "jem:steps=1,buffer=20",
    "hybvit": "hybvit:patch=2,width=8,depth=1,heads=2",
}


def tiny(text: str, progress: Progress | None = None) -> str:
    """The hash of a classifier after five steps under noise, denoised for objectives that are of that."""
    data, settings = Mixture(dp.load_data("digits", split="train")), TrainSettings(5, batch_size=4)
    objective = dp.load_objective(text)
    if "train" in objective.can:
        description = objective.described(describe_classifier(data.sources[0], 4), new=True)
        sigma = 0.25 * objective.noisy
        trained = train_classifier(
            data, description, settings, noise_sigma=sigma, objective=objective, progress=progress
        )
    else:
        networks = dp.load_classifier("digits"), dp.load_denoiser("digits")
        trained = finetune(*networks, data, settings, sigma=0.25, objective=objective, progress=progress)
    return hash_tensors(trained.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_a_training_that_continues_ends_as_one_that_was_not_stopped(tmp_path: Path, name: str) -> None:
    text, checkpoint = TINY.get(name, name), tmp_path / "state.checkpoint"
    whole = tiny(text)
    assert tiny(text) == whole

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyError

    with pytest.raises(KeyError):
        tiny(text, Progress(stop, checkpoint, 1e-9))
    assert tiny(text, Progress(checkpoint=checkpoint)) == whole


@pytest.mark.slow
def test_another_objective_does_not_continue(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.checkpoint"
    tiny("consistency", Progress(checkpoint=checkpoint))
    with pytest.raises(
        ValueError, match=r"of another training: objective\.weight \(None, now 5\.0\); delete"
    ):
        tiny("consistency:weight=5", Progress(checkpoint=checkpoint))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_what_was_trained_certifies(tmp_path: Path, name: str) -> None:
    out, folder, text = tmp_path / "w.safetensors", tmp_path / "run", TINY.get(name, name)
    small = f"--data digits --limit 40 --iterations 3 --batch-size 4 --objective {text} --out {out}"
    command = f"train classifier {small}" + " --width 4 --noise-sigma 0.25" * (name != "hybvit")
    networks = f"--defense none --classifier {out}"
    if "train" not in OBJECTIVES[name].can:
        command = f"finetune {small} --classifier digits --denoiser digits --sigma 0.25"
        networks = f"--defense dds --denoiser digits --classifier {out}"
    assert run(shlex.split(command)) == 0
    training = load_weights(out).description["training"]
    assert f"--objective {text}" in training["command"]
    # All settings are written, as a text that reads as the objective again.
    assert dp.load_objective(training["objective"]) == dp.load_objective(text)
    line = f"certify --data digits --indices 0:2 {networks} --sigma 0.25 --n0 5 --n 20 --out {folder}"
    assert run(shlex.split(line)) == 0
    assert run(["verify", str(folder), "--trust"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OF_CLASSIFIERS if name in able(OBJECTIVES, "train")])
def test_mixed_precision_trains(name: str) -> None:
    data = dp.load_data("digits", split="train")
    # With the papers' weights and budgets these learn little in so few steps.
    gentle = {
        "smoothadv": "smoothadv:draws=2,steps=1,budget=0.1",
        "stability": "stability:weight=0.2",
        "jem": "jem:steps=1,buffer=20,weight=0.01",
        "hybvit": "hybvit:patch=2,width=32,depth=1,heads=2,weight=1",
    }
    # Without batch normalisation they learn more slowly.
    steps, rate = {"jem": (80, 0.01), "hybvit": (80, 0.005)}.get(name, (40, 0.02))
    objective = dp.load_objective(gentle.get(name, TINY.get(name, name)))
    trained = train_classifier(
        Mixture(data),
        objective.described(describe_classifier(data, 8), new=True),
        TrainSettings(steps, 32, rate, 0.9, precision="bfloat16"),
        noise_sigma=0.1 * objective.noisy,
        objective=objective,
    )
    # The losses of some grow with what is learned, as radii or perturbations then count.
    assert accuracy(trained, dp.load_data("digits"), 0.1) > 0.3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--objective macr", "--objective: unknown name 'macr'; did you mean macer?"),
        ("--objective macer", "--objective: needs --noise-sigma, above 0"),
        ("--objective macer --noise-sigma 0", "--objective: needs --noise-sigma, above 0"),
        (
            "--objective gaussian:draws=2 --noise-sigma 0.5",
            "--objective: draws: no setting of the objective 'gaussian', which takes none",
        ),
        (
            "--objective macer:draws=0 --noise-sigma 0.5",
            "--objective: draws: expected an integer ≥ 1, got '0' (of objective macer)",
        ),
        (
            "--objective smoothmix:mix_step=5 --noise-sigma 0.5",
            "--objective: mix_step: expected at most steps, 4, got 5",
        ),
        (
            "--objective ft-cadis --noise-sigma 0.5",
            "--objective: 'ft-cadis' is for diffproof finetune",
        ),
        (
            "--objective macer --noise-sigma 0.5 --adversarial pgd",
            "--objective, --adversarial: expected one of them",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    out = tmp_path / "w.safetensors"
    assert run(shlex.split(f"train classifier --data digits --out {out} {flags}")) == 2
    assert capsys.readouterr().err == f"diffproof: error: {message}\n"
    assert list(tmp_path.iterdir()) == []
