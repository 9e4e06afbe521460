"""The bridge of ADBM against its paper's formulas in float64, and differences."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.denoisers import openai, score_sde
from diffproof.denoisers.ncsnpp import Architecture
from diffproof.denoisers.openai import Preset
from diffproof.denoisers.schedules import DiscreteSchedule, VariancePreservingSchedule
from diffproof.training.batches import Mixture
from diffproof.training.denoiser import UNetSettings, describe_denoiser, train_denoiser
from diffproof.training.denoising.adbm import ADBM, Draw, bridged
from diffproof.training.loop import Progress, TrainSettings
from diffproof.weights import hash_tensors, load_weights, packaged
from helpers.golden_recipe import recipe_state
from helpers.training import batch

pytestmark = pytest.mark.usefixtures("small_digits")

Array = np.ndarray[Any, np.dtype[np.float64]]
N, SHAPE, CLASSES = 5, (1, 4, 4), 3


class Epsilon(nn.Module):
    """A smooth network that numpy can repeat, of pixels and time."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.matrix = nn.Parameter(torch.randn(16, 16, dtype=torch.float64, generator=generator) / 4)
        self.slope = nn.Parameter(torch.tensor(0.01, dtype=torch.float64))

    def forward(self, scaled: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        """N×1×4×4."""
        assert label is None
        inner = scaled.flatten(1) @ self.matrix + self.slope * timestep[:, None]
        return torch.tanh(inner).reshape(scaled.shape)


class Linear(dp.Classifier):
    """Logits of a fixed matrix."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__(nn.Identity(), num_classes=CLASSES)
        generator = torch.Generator().manual_seed(7)
        self.register_buffer("weight", torch.randn(16, CLASSES, dtype=torch.float64, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """N×3."""
        return images.flatten(1) @ self.weight


def made() -> tuple[Any, Linear, Tensor, Tensor]:
    """A denoiser, a classifier, images and labels."""
    generator = torch.Generator().manual_seed(6)
    denoiser = dp.NetworkDenoiser(Epsilon(), VariancePreservingSchedule(), image_shape=SHAPE)
    images = torch.rand((N, *SHAPE), dtype=torch.float64, generator=generator)
    return denoiser, Linear(), images, torch.arange(N) % CLASSES


def bar(time: Array) -> Array:
    """ᾱ as the authors' code has it."""
    found: Array = np.exp(2 * (-0.25 * time**2 * 19.9 - 0.5 * time * 0.1))
    return found


class PaperNet:
    """The paper's loss in its own coordinates, pixels in [−1, 1], one image a row."""

    def __init__(self, network: Epsilon, classifier: Linear) -> None:
        self.matrix, self.slope = (one.detach().numpy() for one in (network.matrix, network.slope))
        self.weight = classifier.weight.numpy()

    def predicted(self, z: Array, time: Array) -> Array:
        found: Array = np.tanh(z @ self.matrix + self.slope * 999 * time[:, None])
        return found

    def parts(self, x: Array, a: Array, noise: Array, time: Array, last: float) -> tuple[Array, Array]:
        """The network's input, and the target."""
        at, end = bar(time)[:, None], bar(np.array(last))
        z = np.sqrt(at) * x + np.sqrt(1 - at) * noise + a * end * (1 - at) / ((1 - end) * np.sqrt(at))
        return z, noise + a * np.sqrt(1 / at - 1) * end / (1 - end)

    def entropy(self, x: Array, a: Array, noise: Array, time: Array, last: float, labels: Array) -> Array:
        at, (z, _) = bar(time)[:, None], self.parts(x, a, noise, time, last)
        clean = (z - np.sqrt(1 - at) * self.predicted(z, time)) / np.sqrt(at)
        found: Array = -log_softmax((clean + 1) / 2 @ self.weight, 1)[np.arange(len(x)), labels]
        return found


def drawn(seed: int, objective: ADBM) -> tuple[Draw, Tensor]:
    """What a step with this seed draws: times with noise, and the start of the search."""
    denoiser, _, images, labels = made()
    generator = torch.Generator().manual_seed(seed)
    found = objective.draw(denoiser, batch(images, labels), generator)
    return found, torch.randn((N, *SHAPE), generator=generator)


@pytest.mark.parametrize("text", ["adbm", "adbm:t_star=[0.15],steps=1", "adbm:budget=0.1,steps=2"])
def test_the_loss_is_the_papers(text: str) -> None:
    denoiser, classifier, images, labels = made()
    objective: Any = dp.load_objective(text)
    loss = objective.loss_of_batches(denoiser, classifier, 0.0)
    found = loss(denoiser.network, batch(images, labels), torch.Generator().manual_seed(3))

    noise, start = drawn(3, objective)
    paper, budget = PaperNet(denoiser.network, classifier), 2 * objective.budget
    x, epsilon = 2 * images.flatten(1).numpy() - 1, noise.epsilon.flatten(1).numpy().astype(float)
    process = VariancePreservingSchedule()
    time = process.time(2 * noise.sigma.flatten()).numpy()
    last = float(process.time(2 * noise.highest))
    assert objective.t_star[0] - 1e-9 <= last <= objective.t_star[-1] + 1e-9
    assert 1e-5 <= time.min() < time.max() <= last

    uniform = torch.special.ndtr(start).flatten(1).numpy().astype(float)
    adversary = np.clip(x + budget * (2 * uniform - 1), -1, 1)
    for _ in range(objective.steps):
        slope = np.empty_like(x)
        for pixel in range(x.shape[1]):
            step = np.zeros_like(x)
            step[:, pixel] = 1e-6
            up, down = (
                paper.entropy(x, adversary + sign * step - x, epsilon, time, last, labels.numpy())
                for sign in (1, -1)
            )
            slope[:, pixel] = up - down
        adversary = np.clip(np.clip(adversary + budget * np.sign(slope), x - budget, x + budget), -1, 1)
    z, target = paper.parts(x, adversary - x, epsilon, time, last)
    assert np.abs(adversary - x).max() == pytest.approx(budget)
    assert float(found.detach()) == pytest.approx(((paper.predicted(z, time) - target) ** 2).mean(), rel=1e-6)


def test_the_bridge_begins_at_the_diffused_adversary_and_ends_at_the_image() -> None:
    denoiser, _, images, _ = made()
    adversary, epsilon = 1 - images, torch.randn(images.shape, dtype=torch.float64)
    highest = torch.tensor(0.3, dtype=torch.float64)
    for level, expected in ((0.3, adversary + 0.3 * epsilon), (1e-9, images)):
        sigma = torch.full((N, 1, 1, 1), level, dtype=torch.float64)
        noisy, _ = bridged(denoiser, denoiser.network, images, adversary, Draw(epsilon, sigma, highest))
        torch.testing.assert_close(noisy, expected, atol=1e-7, rtol=0)


def test_gradients_are_differences_of_the_loss() -> None:
    denoiser, classifier, images, labels = made()
    # What the search finds moves with the weights, and is held still in the gradient: a search of size 0.
    loss = ADBM(budget=1e-12).loss_of_batches(denoiser, classifier, 0.0)
    network = denoiser.network

    def value() -> Tensor:
        return loss(network, batch(images, labels), torch.Generator().manual_seed(3))

    value().backward()
    assert classifier.weight.grad is None
    for parameter in network.parameters():
        direction = torch.randn(
            parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        assert parameter.grad is not None
        slope = float((parameter.grad * direction).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-5 * direction)
                ends.append(float(value()))
                parameter.sub_(sign * 1e-5 * direction)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.slow
def test_times_are_drawn_as_the_paper_says() -> None:
    # Kolmogorov's distance of 2,000 uniform numbers is above 0.0436 once in a thousand times.
    denoiser, _, images, labels = made()
    generator, process = torch.Generator().manual_seed(11), VariancePreservingSchedule()
    lasts, shares = [], []
    for _ in range(2000):
        found = ADBM().draw(denoiser, batch(images[:1], labels[:1]), generator)
        lasts.append((float(process.time(2 * found.highest)) - 0.1) / 0.1)
        time = float(process.time(2 * found.sigma.flatten()))
        shares.append((time - 1e-5) / (float(process.time(2 * found.highest)) - 1e-5))
    for numbers in (lasts, shares):
        ranks = np.arange(1, 2001) / 2000
        assert np.abs(np.sort(numbers) - ranks).max() < 0.0436 + 1 / 2000


def trained(progress: Progress | None = None, objective: str = "adbm:steps=1") -> str:
    data, start = dp.load_data("digits", split="train"), dp.load_denoiser("digits")
    description = describe_denoiser(data, UNetSettings((8,)), "cosine", 1000)
    made = train_denoiser(
        Mixture(data),
        description,
        TrainSettings(5, 4),
        objective=objective,
        classifier=dp.load_classifier("digits"),
        start=start,  # type: ignore[arg-type]
        progress=progress,
    )
    return hash_tensors(made.state_dict())


@pytest.mark.slow
def test_a_training_that_continues_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    checkpoint, whole = tmp_path / "state.checkpoint", trained()

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyError

    with pytest.raises(KeyError):
        trained(Progress(stop, checkpoint, 1e-9))
    assert trained(Progress(checkpoint=checkpoint)) == whole
    with pytest.raises(ValueError, match=r"of another training: objective\.steps \(1, now 2\)"):
        trained(Progress(checkpoint=checkpoint), "adbm:steps=2")


@pytest.mark.slow
def test_the_bridge_is_trained_from_a_denoiser_and_purifies(tmp_path: Path) -> None:
    out, folder = tmp_path / "w.safetensors", tmp_path / "run"
    words = "--data digits --limit 40 --iterations 3 --batch-size 4 --denoiser digits --classifier digits"
    assert run(shlex.split(f"train denoiser {words} --objective adbm:steps=2 --out {out}")) == 0
    description = load_weights(out).description
    assert description["training"]["objective"] == f"adbm:t_star=[0.1,0.2],budget={8 / 255},steps=2"
    assert description["network"] == load_weights(packaged("denoiser")["digits"]).description["network"]
    defense = "diffpure:t_star=0.1,steps=5,solver=ode"
    networks = f"--defense {defense} --denoiser {out} --classifier digits"
    attack = "--threat linf --budget 8/255 --attack pgd:iterations=2 --diagnose 0"
    line = f"attack --data digits --indices 0:2 {networks} {attack} --out {folder}"
    assert run(shlex.split(line)) == 0
    assert run(["verify", str(folder), "--trust"]) == 0


def published(family: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The spec of a checkpoint of 8×8 images with three channels, as its authors save it."""
    if family == "openai":
        preset = Preset(8, 32, (1, 2), 1, (4,), DiscreteSchedule.cosine(4000), heads=4, timestep_scale=0.25)
        monkeypatch.setitem(openai.PRESETS, "tiny", preset)
        shapes = openai.expected_shapes(preset)
    else:
        architecture = Architecture(8, 16, (1, 2), 1, (4,))
        monkeypatch.setitem(score_sde.PRESETS, "tiny", score_sde.Preset(architecture, score_sde.Process.VP))
        shapes = score_sde.key_shapes(architecture)
    torch.save(recipe_state(shapes, 0), folder / "checkpoint.pt")
    return f"{family}:tiny@{folder / 'checkpoint.pt'}"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["openai", "score_sde"])
def test_published_checkpoints_are_tuned(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if family == "openai":
        pytest.importorskip("diffusers")
    spec, out = published(family, tmp_path, monkeypatch), tmp_path / "w.safetensors"
    images = torch.rand((12, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    np.savez(tmp_path / "data.npz", images=images.numpy(), labels=np.arange(12) % 3)
    small = f"--data {tmp_path / 'data.npz'} --iterations 1 --batch-size 4"
    judge = tmp_path / "judge.safetensors"
    assert run(shlex.split(f"train classifier {small} --width 4 --out {judge}")) == 0
    words = f"train denoiser {small} --denoiser {spec} --classifier {judge}"
    # A learning rate of nothing and an average of one step: the file is the checkpoint in our format.
    still = "--learning-rate 1e-12 --ema-decay 0.001"
    assert run(shlex.split(f"{words} --objective adbm:steps=1 {still} --out {out}")) == 0
    before, after = dp.load_denoiser(spec), dp.load_denoiser(str(out))
    assert load_weights(out).description["checkpoint"] == {"family": family, "preset": "tiny"}
    noisy = images[:3] + 0.4 * torch.randn((3, 3, 8, 8), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(after(noisy, 0.4), before(noisy, 0.4), rtol=1e-4, atol=1e-4)
    assert after.describe() == before.describe()
    # It goes on from its own file, and purifies.
    again, moved = tmp_path / "again.safetensors", words.replace(spec, str(out))
    assert run(shlex.split(f"{moved} --objective adbm:steps=1 --out {again}")) == 0
    with torch.no_grad():
        assert not torch.equal(dp.load_denoiser(str(again))(noisy, 0.4), after(noisy, 0.4))
    purify = f"--defense diffpure:t_star=0.1,steps=2,solver=ode --denoiser {again} --classifier {judge}"
    attack = "--threat linf --budget 8/255 --attack pgd:iterations=1 --diagnose 0 --limit 2"
    line = f"attack --data {tmp_path / 'data.npz'} {purify} {attack} --out {tmp_path / 'run'}"
    assert run(shlex.split(line)) == 0
    capsys.readouterr()
    for flags, told in (
        (
            f"train denoiser {small} --denoiser {spec} --objective mse",
            "--objective: 'mse' is for denoisers of",
        ),
        (
            f"{words} --objective adbm --extra-data {tmp_path / 'data.npz'}",
            "--extra-data: is for denoisers of `diffproof train`, not for a published one",
        ),
    ):
        assert run(shlex.split(f"{flags} --out {tmp_path / 'x.safetensors'}")) == 2
        assert capsys.readouterr().err.startswith(f"diffproof: error: {told}")


def test_published_networks_that_ask_for_a_label_are_refused() -> None:
    _, classifier, *_ = made()
    denoiser = dp.NetworkDenoiser(Epsilon(), VariancePreservingSchedule(), image_shape=SHAPE, num_classes=3)
    with pytest.raises(ValueError, match=r"^denoiser: adbm asks it without a label"):
        ADBM().loss_of_batches(denoiser, classifier, 0.0)


def test_its_purification_is_ddim_from_timestep_100() -> None:
    denoiser, classifier, images, _ = made()
    defense: Any = dp.load_defense(
        "diffpure:t_star=0.1,steps=5,solver=ode", denoiser=denoiser, classifier=classifier
    )
    noise = dp.Noise.for_rows(0, dp.Stream.SCORING, torch.arange(N), torch.zeros(N, dtype=torch.int64))
    with torch.no_grad():
        found = defense.purify(images, noise)
    paper = PaperNet(denoiser.network, classifier)
    epsilon = noise.normal(images.shape[1:], 0, images.dtype).flatten(1).numpy()
    bars = [float(bar(np.array(timestep / 1000))) for timestep in (100, 80, 60, 40, 20)] + [1.0]
    z = np.sqrt(bars[0]) * (2 * images.flatten(1).numpy() - 1) + np.sqrt(1 - bars[0]) * epsilon
    for timestep, at, then in zip((100, 80, 60, 40, 20), bars[:-1], bars[1:], strict=True):
        predicted = paper.predicted(z, np.full(N, timestep / 1000))
        clean = np.clip((z - np.sqrt(1 - at) * predicted) / np.sqrt(at), -1, 1)
        # Where the estimate is clipped, the noise is what is left, as diffusers' DDIM has it on request.
        direction = (z - np.sqrt(at) * clean) / np.sqrt(1 - at)
        z = np.sqrt(then) * clean + np.sqrt(1 - then) * direction
    np.testing.assert_allclose(found.flatten(1).numpy(), (z + 1) / 2, atol=1e-9)
