"""Adversarial training: the inner maximisation, the losses, and what the real commands make of digits."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor, nn

import diffproof as dp
from diffproof.attacks.threat import L2, Linf, PixelThreat
from diffproof.classifiers.cnn import SmallCNN
from diffproof.cli.main import run
from diffproof.training.adversarial import Adversary, Ascent, Method, kl_divergence, robust_accuracy
from diffproof.training.batches import Batch, Mixture
from diffproof.training.classifier import accuracy, describe_classifier, train_classifier
from diffproof.training.loop import Progress, TrainSettings
from diffproof.weights import hash_tensors, load_weights
from helpers.processes import together
from helpers.training import batch, losses_of

THREATS: list[PixelThreat] = [Linf(0.1), L2(0.4)]
METHODS = pytest.mark.parametrize("method", list(Method))
THREAT = pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])


def network() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(1, 10, 4)


def digits(count: int = 12, split: str = "train") -> tuple[Tensor, Tensor]:
    data = dp.load_data("digits", split=split)
    return data.images[:count], data.labels[:count]


def draws(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.rand(count, generator=generator)


# The inner maximisation.


@THREAT
def test_what_is_found_is_worse_and_in_the_ball(threat: PixelThreat) -> None:
    model = network().eval()
    images, labels = digits()

    def objective(point: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(point), labels, reduction="none")

    ascent = Ascent(threat)
    start = ascent.start(images, *draws())
    found = ascent.maximise(objective, images, start)
    assert not found.requires_grad
    for point in (start, found):
        assert float(threat.norm(point - images).max()) <= threat.budget * (1 + 1e-6)
        assert 0 <= float(point.min()) <= float(point.max()) <= 1
    with torch.no_grad():
        values = [objective(point) for point in (images, start, found)]
    assert bool((values[2] > values[0]).all())
    assert bool((values[2] > values[1]).all())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_maximum_of_a_linear_function_in_linf_is_a_corner() -> None:
    weight = torch.randn(1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    images = digits(5)[0].double()
    ascent = Ascent(Linf(0.1), steps=8)
    start = ascent.start(images, *(draw.double() for draw in draws(5)))
    found = ascent.maximise(lambda point: (weight * point).flatten(1).sum(1), images, start)
    # From anywhere in the ball eight quarters of the budget reach the far side.
    torch.testing.assert_close(found, (images + 0.1 * weight.sign()).clamp(0, 1))


def test_the_maximum_of_a_linear_function_in_l2_is_along_its_gradient() -> None:
    weight = torch.randn(1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    images = torch.full((3, 1, 8, 8), 0.5, dtype=torch.float64)
    ascent = Ascent(L2(0.4), steps=3, step_size=0.2)
    found = ascent.maximise(lambda point: (weight * point).flatten(1).sum(1), images, images)
    torch.testing.assert_close(found, images + 0.4 * weight / weight.norm())


def test_steps_have_the_length_asked_for() -> None:
    images = torch.full((1, 1, 2, 2), 0.5)
    for threat in (Linf(0.4), L2(0.4)):
        for size, expected in ((None, 0.1), (0.05, 0.05)):
            ascent = Ascent(threat, steps=1, step_size=size)
            found = ascent.maximise(lambda point: point.flatten(1).sum(1), images, images)
            assert float(threat.norm(found - images)) == pytest.approx(expected, rel=1e-5)


@METHODS
def test_the_search_leaves_the_network_as_it_was(method: Method) -> None:
    model = network().train()
    model.features[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    Adversary(method).search(model, model, batch(*digits()), *draws())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    # Training afterwards updates its statistics.
    Adversary(method).loss(model, batch(*digits()), batch(*digits()).images)
    assert not torch.equal(model.state_dict()["features.4.running_mean"], before["features.4.running_mean"])


@METHODS
def test_only_the_search_of_pgd_sees_batch_statistics(method: Method) -> None:
    model, adversary = network().train(), Adversary(method, Ascent(Linf(0.1)))
    normal, uniform = draws()
    whole = adversary.search(model, model, batch(*digits()), normal, uniform)
    part = adversary.search(model, model, batch(*digits(4)), normal[:4], uniform[:4])
    same = bool(torch.allclose(whole[:4], part, atol=1e-6))
    assert same == (method is Method.TRADES)


def test_trades_starts_near_the_image_and_pgd_anywhere_in_the_ball() -> None:
    seen: list[Tensor] = []
    model = network()

    def logits(point: Tensor) -> Tensor:
        seen.append(point.detach())
        answer: Tensor = model(point)
        return answer

    images = batch(*digits()).images
    grey = Batch(torch.full_like(images, 0.5), batch(*digits()).labels, torch.zeros(12), 12, torch.arange(12))
    for method, first in ((Method.TRADES, 1), (Method.PGD, 0)):
        seen.clear()
        Adversary(method, Ascent(Linf(0.1))).search(model, logits, grey, *draws())
        offset = (seen[first] - grey.images).flatten()
        if method is Method.TRADES:
            torch.testing.assert_close(offset, 1e-3 * draws()[0].flatten(), rtol=0, atol=1e-6)
        else:
            # |offset| is uniform in [0, 0.1], 768 values: standard error 0.00104; five sigma, one in 10^6.
            assert abs(float(offset.abs().mean()) - 0.05) < 5 * 0.00105


# The losses.


def test_divergence_against_scipy() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = (3 * torch.randn(6, 10, dtype=torch.float64, generator=generator) for _ in range(2))
    expected = rel_entr(softmax(first.numpy(), 1), softmax(second.numpy(), 1)).sum(1)
    np.testing.assert_allclose(kl_divergence(first, second).numpy(), expected, rtol=1e-12)


@METHODS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_against_their_formulas(method: Method, smoothing: float) -> None:
    model = network().double().eval()
    images, labels = digits()
    images = images.double()
    found = (images + 0.1).clamp(max=1)
    whole = Batch(images, labels, torch.zeros_like(labels), 12, torch.arange(12))
    loss = Adversary(method, weight=2.5, label_smoothing=smoothing).loss(model, whole, found)
    with torch.no_grad():
        clean, moved = (model(point).numpy() for point in (images, found))
    wanted = (1 - smoothing) * np.eye(10)[labels.numpy()] + smoothing / 10
    entropies = [-(wanted * log_softmax(z, 1)).sum(1).mean() for z in (clean, moved)]
    if method is Method.PGD:
        expected = entropies[1]
    else:
        expected = entropies[0] + 2.5 * rel_entr(softmax(clean, 1), softmax(moved, 1)).sum(1).mean()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)


def test_gradients_flow_through_both_sides_of_the_divergence() -> None:
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    images, labels = digits(3)
    whole = Batch(images.double(), labels, torch.zeros_like(labels), 3, torch.arange(3))
    found = (whole.images + 0.2).clamp(max=1)
    weight = torch.randn(64, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def loss(value: Tensor) -> Tensor:
        return Adversary("trades").loss(lambda point: value * point.flatten(1) @ weight, whole, found)

    (gradient,) = torch.autograd.grad(loss(scale), scale)
    with torch.no_grad():
        slope = (loss(scale + 1e-6) - loss(scale - 1e-6)) / 2e-6
    assert float(gradient) == pytest.approx(float(slope), rel=1e-6)


# Training.


def trained(adversary: Adversary | None, progress: Progress | None = None, **more: Any) -> dp.Classifier:
    data = dp.load_data("digits", split="train")
    settings = TrainSettings(
        **{"iterations": 60, "batch_size": 48, "learning_rate": 0.02, "ema_decay": 0.95, **more}
    )
    return train_classifier(
        Mixture(data), describe_classifier(data, 8), settings, adversary=adversary, progress=progress
    )


@pytest.mark.slow
def test_adversarial_training_makes_robust() -> None:
    held_out = dp.load_data("digits", split="test").select(range(100))
    attack = Ascent(Linf(0.15), steps=6)
    inner = Ascent(Linf(0.15), steps=2)
    plain = trained(None)
    weak = robust_accuracy(plain, held_out, attack)
    assert accuracy(plain, held_out) > 0.85
    for method in Method:
        model = trained(Adversary(method, inner))
        assert accuracy(model, held_out) > 0.7
        assert robust_accuracy(model, held_out, attack) > weak + 0.25, method


@pytest.mark.slow
@METHODS
def test_mixed_precision_trains(method: Method) -> None:
    curve: list[float] = []
    trained(
        Adversary(method, Ascent(Linf(0.05), steps=1)),
        Progress(lambda _, loss: curve.append(loss)),
        iterations=30,
        precision="bfloat16",
    )
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


@pytest.mark.slow
@METHODS
def test_a_training_that_continues_ends_as_one_that_was_not_stopped(tmp_path: Path, method: Method) -> None:
    adversary = Adversary(method, Ascent(L2(0.3), steps=2))
    whole = trained(adversary, iterations=6)

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise KeyError

    checkpoint = tmp_path / "state.checkpoint"
    with pytest.raises(KeyError):
        trained(adversary, Progress(stop, checkpoint, 1e-9), iterations=6)
    seen: list[int] = []
    continued = trained(adversary, Progress(lambda step, _: seen.append(step), checkpoint), iterations=6)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert hash_tensors(continued.state_dict()) == hash_tensors(whole.state_dict())
    other = Adversary(method, Ascent(L2(0.4), steps=2))
    with pytest.raises(ValueError, match=r"of another training: adversary\.budget \(0\.3, now 0\.4\)"):
        trained(other, Progress(checkpoint=checkpoint), iterations=6)


COMMON = "--data digits --limit 200 --batch-size 12 --iterations 4 --width 4 --inner-steps 2"
COMMANDS = pytest.mark.parametrize(
    "command",
    [f"classifier {COMMON} --adversarial pgd --norm l2 --budget 0.3", f"guide {COMMON} --budget 16/255"],
    ids=["pgd", "guide"],
)


@pytest.mark.slow
@COMMANDS
def test_the_commands_write_a_classifier_and_how_robust_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert run(shlex.split(f"train {command} --out {tmp_path / folder / 'w.safetensors'}")) == 0
    first, second = (tmp_path / folder / "w.safetensors" for folder in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    model, held_out = dp.load_classifier(str(first)), dp.load_data("digits", split="test")
    recorded = load_weights(first).description["training"]
    threat = L2(0.3) if "l2" in command else Linf(16 / 255)
    assert recorded["test"]["accuracy"] == pytest.approx(accuracy(model, held_out), abs=1e-6)
    robust = robust_accuracy(model, held_out, Ascent(threat, 2))
    assert recorded["test"]["robust_accuracy"] == pytest.approx(robust, abs=1e-6)
    assert "--budget" in recorded["command"]
    assert (
        f"after 2 gradient steps within {threat.name} {threat.budget:.4g}: {robust:.2%}"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_classifier_is_trained_further_from_where_it_is(tmp_path: Path) -> None:
    small = "--data digits --iterations 1 --batch-size 32 --inner-steps 1 --ema-decay 0.5"
    held_out = dp.load_data("digits", split="test")
    packaged = dp.load_classifier("digits")
    # A network that is trained anew is near chance after one step; this one is the packaged one still.
    for rate, name in ((1e-9, "still"), (1e-2, "moved")):
        out = tmp_path / f"{name}.safetensors"
        flags = f"train guide {small} --classifier digits --learning-rate {rate} --out {out}"
        assert run(shlex.split(flags)) == 0
        made = dp.load_classifier(str(out))
        assert made.describe() == packaged.describe()
        apart = [
            float((one - other).detach().abs().max())
            for one, other in zip(made.parameters(), packaged.parameters(), strict=True)
        ]
        if name == "still":
            assert max(apart) < 1e-6
            assert accuracy(made, held_out) > 0.9
        else:
            assert max(apart) > 1e-3
    # A copy of it can be trained further again.
    again = f"train guide {small} --classifier {out} --out {tmp_path / 'again.safetensors'}"
    assert run(shlex.split(again)) == 0


def test_a_classifier_of_other_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(
        tmp_path / "twelve.npz",
        images=np.zeros((12, 8, 8), dtype=np.uint8),
        labels=np.arange(12),
    )
    out = tmp_path / "w.safetensors"
    flags = f"train guide --data {tmp_path / 'twelve.npz'} --classifier digits --iterations 1 --out {out}"
    assert run(shlex.split(flags)) == 2
    assert "10 classes" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
@COMMANDS
def test_processes_share_adversarial_training(tmp_path: Path, command: str) -> None:
    # Batch normalisation goes by each process's share, so that two processes are not one; they agree with
    # themselves.
    curves = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.safetensors"
        states, errors = together(f"train {command} --out {out}")
        assert states == [0, 0], errors
        curves.append(losses_of(out))
    assert len(curves[0]) == 4
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("guide --budget 8", "--budget: expected linf in (0, 1], got 8; does 8 mean 8/255?"),
        ("guide --budget 0", "--budget: expected a finite number > 0, got 0.0"),
        ("guide --budget -8/255", "--budget: expected a finite number > 0, got -0.03137254901960784"),
        ("guide --budget lots", "--budget: expected a number or a fraction like 8/255, got 'lots'"),
        (
            "guide --norm l2 --budget 128",
            "--budget: expected l2 below 8 for images (1, 8, 8) in [0, 1], got 128; does 128 mean 128/255?",
        ),
        ("guide --norm l3", "--norm: expected one of linf, l2, got 'l3'; did you mean l2?"),
        ("guide --norm stadv", "--norm: expected one of linf, l2, got 'stadv'"),
        ("guide --inner-steps 0", "--inner-steps: expected an integer ≥ 1, got 0"),
        ("guide --inner-step-size 0", "--inner-step-size: expected a number in (0, 1e+30], got 0.0"),
        ("guide --inner-step-size 1e300", "--inner-step-size: expected a number in (0, 1e+30], got 1e+300"),
        ("guide --trades-weight -1", "--trades-weight: expected a number in (0, 1e+30], got -1.0"),
        ("guide --trades-weight 1e300", "--trades-weight: expected a number in (0, 1e+30], got 1e+300"),
        ("classifier --adversarial fgsm", "--adversarial: expected one of pgd, trades, pat, got 'fgsm'"),
        ("classifier --adversarial pgd --trades-weight 2", "--trades-weight: needs --adversarial trades"),
        ("classifier --norm l2", "--norm: needs --adversarial"),
        ("classifier --budget 8/255", "--budget: needs --adversarial"),
        (
            "classifier --adversarial trades --noise-sigma 0.1",
            "--noise-sigma, --adversarial: expected one of them",
        ),
        (
            "guide --classifier digits --width 8",
            "--width: is for a new network, not with --classifier",
        ),
        (
            "guide --classifier nowhere.safetensors",
            "--classifier: weights: no such file: nowhere.safetensors",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert run(shlex.split(f"train {flags} --data digits --out {tmp_path / 'w.safetensors'}")) == 2
    assert capsys.readouterr().err == f"diffproof: error: {message}\n"
    assert list(tmp_path.iterdir()) == []
