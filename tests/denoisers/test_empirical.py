"""The optimal denoiser of a data set: chunks, precision, memory, all classes in one pass, loading by name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diffproof as dp
from diffproof.cli.main import run
from diffproof.denoisers import empirical
from diffproof.denoisers.empirical import EmpiricalDenoiser
from helpers.images import pictures

SHAPE = (2, 3, 3)


IMAGES = pictures(24, 0, SHAPE)
# No class lies together, and no two have as many images.
LABELS = torch.tensor([2, 0, 1, 2, 2, 0, 1, 2, 2, 0, 2, 2, 1, 2, 0, 2, 2, 1, 2, 0, 2, 2, 1, 0])


def posterior_mean(noisy: Tensor, sigma: float, images: Tensor) -> Tensor:
    """By direct differences in float64, one row at a time."""
    rows = []
    for row in noisy.double():
        distance = (row - images.double()).square().flatten(1).sum(1)
        weight = torch.exp(-(distance - distance.min()) / (2 * sigma**2))
        rows.append(torch.einsum("m,mchw->chw", weight / weight.sum(), images.double()))
    return torch.stack(rows)


@pytest.mark.parametrize("classes", [None, [1], [2, 0], [3], [3, 1, 0, 2], [1, 1]])
@pytest.mark.parametrize("at_once", [1, 50, 2**22])
def test_one_pass_serves_all_classes(
    monkeypatch: pytest.MonkeyPatch, classes: list[int] | None, at_once: int
) -> None:
    monkeypatch.setattr(empirical, "_AT_ONCE", at_once)
    denoiser = EmpiricalDenoiser(IMAGES, LABELS)
    noisy = IMAGES[:4] + 0.2 * pictures(4, 1, SHAPE)
    given = None if classes is None else torch.tensor(classes)
    got = denoiser.per_class(noisy, 0.3, given)
    sets = [IMAGES if k == 3 else IMAGES[k == LABELS] for k in (classes or range(3))]
    expected = torch.stack([posterior_mean(noisy, 0.3, images) for images in sets], dim=1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("label", [[0, 1, 2, 1, 0], [2, 2, 2, 2, 2], [3, 0, 3, 1, 2]])
def test_each_row_has_its_own_label_and_sigma(label: list[int]) -> None:
    denoiser = EmpiricalDenoiser(IMAGES, LABELS)
    noisy = IMAGES[5:10] + 0.2 * pictures(5, 2, SHAPE)
    sigma = torch.tensor([0.1, 0.2, 0.3, 0.5, 1.0], dtype=torch.float64)
    got = denoiser.estimate(noisy, sigma, torch.tensor(label)).clean
    for row, one in enumerate(label):
        images = IMAGES if one == 3 else IMAGES[one == LABELS]
        expected = posterior_mean(noisy[row : row + 1], float(sigma[row]), images)
        torch.testing.assert_close(got[row : row + 1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.005, 0.05])
def test_single_precision_tells_near_images_apart(sigma: float) -> None:
    """3,072 pixels in float32: images so near that several have weight, against differences in float64."""
    generator = torch.Generator().manual_seed(3)
    centre = torch.rand(1, 3, 32, 32, generator=generator)
    images = (centre + 0.02 * sigma * torch.randn(30, 3, 32, 32, generator=generator)).float()
    noisy = images[:4] + sigma * torch.randn(4, 3, 32, 32, generator=generator)
    expected = posterior_mean(noisy, sigma, images)
    distance = (noisy[:, None].double() - images.double()).square().flatten(2).sum(2)
    weight = torch.softmax(-distance / (2 * sigma**2), dim=1)
    assert float(weight.max()) < 0.9
    got = EmpiricalDenoiser(images)(noisy, sigma)
    assert got.dtype == torch.float32
    # Half a unit in the last place of pixels below 1, and a little.
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1.2e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(EmpiricalDenoiser(images)(noisy, sigma), got)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 50, 2**22])
def test_gradients_of_both_orders(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(empirical, "_AT_ONCE", at_once)
    denoiser = EmpiricalDenoiser(IMAGES[:8, :, :2], LABELS[:8])
    noisy = (IMAGES[:2, :, :2] + 0.2 * pictures(2, 4, SHAPE)[:, :, :2]).requires_grad_()
    sigma = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([3, 1])

    def each(x: Tensor, s: Tensor) -> Tensor:
        return denoiser.per_class(x, s, classes)

    assert torch.autograd.gradcheck(each, (noisy, sigma))
    assert torch.autograd.gradgradcheck(each, (noisy, sigma))


def test_the_gradient_is_the_posterior_covariance() -> None:
    """d E[x|noisy] / d noisy = Cov[x|noisy]/sigma² (Tweedie's formula, differentiated)."""
    noisy, sigma = IMAGES[0] + 0.2 * pictures(1, 5, SHAPE)[0], 0.3
    distance = (noisy - IMAGES).square().flatten(1).sum(1)
    weight = torch.softmax(-distance / (2 * sigma**2), dim=0)
    centred = IMAGES.flatten(1) - weight @ IMAGES.flatten(1)
    covariance = centred.T @ (weight[:, None] * centred)
    denoiser = EmpiricalDenoiser(IMAGES)
    jacobian: Any = torch.autograd.functional.jacobian(lambda x: denoiser(x[None], sigma)[0].flatten(), noisy)
    torch.testing.assert_close(jacobian.flatten(1), covariance / sigma**2, rtol=0, atol=1e-11)


def test_a_graph_keeps_weights_and_no_copy_of_the_images() -> None:
    images = torch.rand(1000, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    denoiser = EmpiricalDenoiser(images, torch.arange(1000) % 2)
    own = denoiser.images.untyped_storage().data_ptr()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    noisy = images[:2].clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        means = denoiser.per_class(noisy, 0.3, torch.tensor([0, 1, 2]))
        (slope,) = torch.autograd.grad(means.square().sum(), noisy, create_graph=True)
        slope.square().sum().backward()
    weights = 8 * 2 * len(images)
    assert weights < sum(kept.values()) < 40 * weights < 8 * images.numel() / 5


def test_a_name_reads_the_data() -> None:
    denoiser = dp.load_denoiser("empirical:digits")
    images, labels = dp.load_data("digits", split="train")
    assert isinstance(denoiser, EmpiricalDenoiser)
    assert not denoiser.training
    assert (denoiser.num_classes, denoiser.null_label, denoiser.image_shape) == (10, 10, (1, 8, 8))
    noisy = images[:6] + 0.3 * torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    for label in (None, labels[:6]):
        expected = [
            posterior_mean(
                noisy[row : row + 1], 0.3, images if label is None else images[labels == labels[row]]
            )
            for row in range(6)
        ]
        torch.testing.assert_close(
            denoiser(noisy, 0.3, label).double(), torch.cat(expected), rtol=0, atol=1.2e-7
        )
    # The levels that `diffproof train denoiser` trains at.
    trained = dp.load_denoiser("digits").sigmas
    assert denoiser.sigmas is not None
    assert trained is not None
    assert torch.equal(denoiser.sigmas, trained)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (float(trained[0]), float(trained[-1]))


@pytest.mark.parametrize(("ending", "split", "count"), [(":test", "test", 514), (":train:60", "train", 60)])
def test_a_name_chooses_split_and_number(ending: str, split: str, count: int) -> None:
    denoiser = dp.load_denoiser(f"empirical:digits{ending}")
    assert isinstance(denoiser, EmpiricalDenoiser)
    images, labels = dp.load_data("digits", split=split, indices=f"0:{count}")
    assert denoiser.labels is not None
    assert len(denoiser.images) == len(images) == count
    held = {(int(label), image.numpy().tobytes()) for label, image in zip(labels, images, strict=True)}
    rows = zip(denoiser.labels, denoiser.images, strict=True)
    assert {(int(label), image.numpy().tobytes()) for label, image in rows} == held


def test_a_file_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "two.npz"
    np.savez(path, images=np.zeros((4, 5, 5), dtype=np.uint8), labels=np.array([0, 1, 1, 0]))
    denoiser = dp.load_denoiser(f"empirical:{path}")
    assert (denoiser.num_classes, denoiser.image_shape) == (2, (1, 5, 5))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("empirical:", r"denoiser: expected empirical:DATA\[:SPLIT\[:COUNT\]\], got 'empirical:'"),
        ("empirical:digits:train:many", r"denoiser: expected empirical:DATA"),
        ("empirical:digits:train:9:9", r"denoiser: expected empirical:DATA"),
        ("empirical:digits:train:0", "count: expected an integer ≥ 1"),
        ("empirical:digits:train:5", "denoiser: 'empirical:digits:train:5' has no image of class"),
        ("empirical:digit", "data: unknown name 'digit'; did you mean digits"),
        ("empirical:digits:valid", "split"),
        ("empiric:digits@x", "denoiser: unknown name 'empiric'; did you mean empirical"),
    ],
)
def test_names_that_do_not_fit(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        dp.load_denoiser(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (torch.where(IMAGES < 0.9, IMAGES, torch.nan), {}, "images: expected finite pixels, got NaN or inf"),
        (torch.where(IMAGES < 0.9, IMAGES, torch.inf), {}, "images: expected finite pixels, got NaN or inf"),
        (
            (255 * IMAGES).byte(),
            {},
            r"images: expected floats in .*, got torch.uint8; divide",
        ),
        (
            (255 * IMAGES).long(),
            {},
            r"images: expected floats in .*, got torch.int64; divide",
        ),
        (IMAGES, {"sigmas": []}, "sigmas: expected at least one noise level, got none"),
        (IMAGES, {"sigmas": torch.tensor([])}, "sigmas: expected at least one noise level, got none"),
        (IMAGES, {"sigmas": [0.2, 0.1]}, "sigmas: expected ascending noise levels > 0, got 0.2, 0.1"),
        (IMAGES, {"sigmas": torch.tensor([0.1, 0.1])}, "sigmas: expected ascending noise levels > 0, got"),
        (IMAGES, {"sigmas": [0.0, 0.1]}, "sigmas: expected ascending noise levels > 0, got 0, 0.1"),
        (IMAGES, {"sigmas": [0.1, float("nan")]}, "sigmas: expected ascending noise levels > 0, got 0.1, n"),
        (IMAGES, {"sigmas": [0.1, float("inf")]}, "sigmas: expected ascending noise levels > 0, got 0.1, i"),
    ],
)
def test_what_is_refused(images: Tensor, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        EmpiricalDenoiser(images, LABELS, **settings)
    assert "\n" not in str(error.value)


def test_levels_may_be_a_list() -> None:
    levels = [0.1, 0.3, 0.9]
    one, other = (
        EmpiricalDenoiser(IMAGES, sigmas=given)
        for given in (levels, torch.tensor(levels, dtype=torch.float64))
    )
    assert one.sigmas is not None
    assert other.sigmas is not None
    assert one.sigmas.tolist() == other.sigmas.tolist() == levels
    assert (one.sigma_min, one.sigma_max, one.nearest(0.2501)) == (0.1, 0.9, 0.3)


@pytest.mark.slow
def test_it_attacks_and_purifies_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = "--denoiser empirical:digits:train:80"
    attack = f"attack --data digits --split train --limit 2 {spec} --defense dc:timesteps=uniform:2"
    attack += f" --attack pgd:iterations=3 --threat linf --budget 0.1 --out {tmp_path / 'attack'}"
    assert run(shlex.split(attack)) == 0, capsys.readouterr().err
    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
    purify = f"purify {tmp_path / 'grey.png'} {spec} --defense diffpure:t_star=0.1,steps=2"
    assert run(shlex.split(f"{purify} --out {tmp_path / 'purified'}")) == 0, capsys.readouterr().err
    assert (tmp_path / "purified" / "grey.png").exists()
