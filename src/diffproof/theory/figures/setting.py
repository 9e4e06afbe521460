"""What the pictures of `diffproof theory` are of: a two-dimensional density and a noise level."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.special import ndtr
from torch import Tensor, nn

from diffproof.checks import check_at_least, loading
from diffproof.classifiers.base import Classifier
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.dds import DDS
from diffproof.defenses.densepure import DensePure
from diffproof.denoisers.base import EXACT_SIGMAS
from diffproof.errors import ArgumentError
from diffproof.files import read_text
from diffproof.noise import Noise, Stream
from diffproof.reverse.levels import vp_sigmas
from diffproof.theory.densities import GaussianMixture
from diffproof.theory.reverse_sde import even_sigmas

# Classes that the pictures have colours for.
MAX_CLASSES = 6
# Share of the mass that may lie outside the unit square: the defences clip their images to it.
_OUTSIDE = 0.05
# The least standard deviation, in pixels, that the grids of the one-dimensional laws resolve.
_SHARPEST = 1e-3
# Steps of DensePure's reverse processes.
_STEPS = 20


@dataclass(frozen=True)
class Setting:
    """What the pictures are of.

    Attributes:
        density: a density with two dimensions and labels.
        sigma: noise level in pixels.
        seed: seed of all noise, in [0, 2^64).
    """

    density: GaussianMixture
    sigma: float
    seed: int

    @property
    def num_classes(self) -> int:
        """How many classes the density has."""
        return int(self.density.check_labels().max()) + 1

    def generator(self, picture: int) -> torch.Generator:
        """One of its own for each picture."""
        return torch.Generator().manual_seed((self.seed + (picture << 32)) % 2**64)

    def of_class(self, label: int) -> GaussianMixture:
        """p(x0 | class)."""
        chosen = self.density.check_labels() == label
        weights = torch.softmax(self.density.log_weights[chosen], 0)
        return GaussianMixture(self.density.means[chosen], self.density.covariances[chosen], weights)

    def marginal(self) -> GaussianMixture:
        """The law of pixel 1."""
        covariances = self.density.covariances
        variances = covariances if covariances.ndim == 1 else covariances[:, 0, 0]
        weights = self.density.log_weights.exp()
        return GaussianMixture(self.density.means[:, :1], variances, weights, self.density.labels)

    def defense(self, votes: int | None) -> CertifiableDefense:
        """DensePure with the exact denoiser and the classifier that is optimal on clean points; None: DDS."""
        levels = torch.tensor(even_sigmas(self.sigma, _STEPS), dtype=torch.float64).flip(0)
        denoiser = self.density.denoiser(sigmas=levels)
        classifier = Classifier(_Bayes(self.density), self.num_classes, image_shape=(1, 1, 2))
        if votes is None:
            return DDS(denoiser, classifier)
        return DensePure(denoiser, classifier, steps=None, votes=votes)

    def defense_labels(self, points: Tensor, votes: int | None) -> Tensor:
        """The defence's labels of noisy points N×2."""
        index = torch.arange(len(points))
        noise = Noise.for_rows(self.seed, Stream.PREDICTION, torch.zeros_like(index), index)
        return self.defense(votes).labels(points.reshape(-1, 1, 1, 2), self.sigma, noise)


class _Bayes(nn.Module):
    """The log probability of each class at a clean point."""

    def __init__(self, density: GaussianMixture) -> None:
        super().__init__()
        self.density = density

    def forward(self, images: Tensor) -> Tensor:
        return self.density.class_shares(images.flatten(1)).log()


def make_setting(density: Path | None, t_star: float, seed: int) -> Setting:
    """Read and check what the pictures are to be of.

    Args:
        density: JSON file, see `load_density`; None for a mixture of three classes.
        t_star: time in (0, 1] of DiffPure's VP-SDE, whose noise level is that of the pictures.
        seed: in [0, 2^64).

    Raises:
        ValueError: an argument is out of range, or as `load_density`.
    """
    sigma = vp_sigmas(t_star, 1)[0]
    if sigma < EXACT_SIGMAS[0]:
        raise ArgumentError("t_star", f"expected a noise level ≥ {EXACT_SIGMAS[0]:g}, got {sigma:g}")
    check_at_least("seed", seed, 0)
    if seed >= 2**64:
        raise ArgumentError("seed", f"expected 0 ≤ seed < 2^64, got {seed}")
    with loading("density"):
        return Setting(_default_density() if density is None else load_density(density), sigma, seed)


def _default_density() -> GaussianMixture:
    """Three classes of two components, one of them small, narrow and between the others."""
    means = [[0.20, 0.72], [0.42, 0.82], [0.76, 0.72], [0.54, 0.52], [0.28, 0.24], [0.73, 0.22]]
    parts = [(45, 30, 18), (16, 16, 0), (35, 45, -15), (6, 6, 0), (50, 20, 0), (25, 25, 10)]
    covariances = [[[a, c], [c, b]] for a, b, c in parts]
    return GaussianMixture(
        torch.tensor(means, dtype=torch.float64),
        torch.tensor(covariances, dtype=torch.float64) * 1e-4,
        [0.20, 0.12, 0.22, 0.10, 0.22, 0.14],
        [0, 0, 1, 1, 2, 2],
    )


def load_density(path: Path) -> GaussianMixture:
    """A Gaussian mixture from JSON, with two pixels and two to six classes.

    {"means": K points, "covariances": K 2×2 matrices or K variances, "weights": K numbers, may be left out
    where they are equal, "labels": K classes}.

    Raises:
        ValueError: no such file, no such JSON, a name is missing or unknown, as `GaussianMixture`, a standard
            deviation below 0.001 pixels, or more than 5% of the mass may lie outside the unit square.
    """
    try:
        fields = json.loads(read_text("density", path))
    except ArgumentError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArgumentError("density", f"cannot read {path}: {reason}") from None
    if not isinstance(fields, dict):
        raise ArgumentError("density", f"expected an object in {path}, got {type(fields).__name__}")
    given = [name for name, value in fields.items() if value is not None]
    for name in ("means", "covariances", "labels"):
        if name not in given:
            raise ArgumentError("density", f"expected {name} in {path}, got {', '.join(given) or 'nothing'}")
    if unknown := set(fields) - {"means", "covariances", "weights", "labels"}:
        raise ArgumentError("density", f"unknown name {sorted(unknown)[0]!r} in {path}")
    means, covariances, weights, labels = (
        _numbers(name, fields.get(name)) for name in ("means", "covariances", "weights", "labels")
    )
    assert means is not None
    assert covariances is not None
    assert labels is not None
    if means.ndim != 2 or means.shape[1] != 2:
        raise ArgumentError("means", f"expected K points of two pixels, got shape {tuple(means.shape)}")
    if not bool((labels == labels.round()).all()):
        raise ArgumentError("labels", "expected integers, got others")
    density = GaussianMixture(means, covariances, weights, labels.long())
    deviations = density.variances.amin(1).sqrt()
    if float(deviations.min()) < _SHARPEST:
        raise ArgumentError(
            "covariances",
            f"expected standard deviations of at least {_SHARPEST:g} pixels, got"
            f" {float(deviations.min()):.2g} in component {int(deviations.argmin())}",
        )
    classes = density.check_labels().unique().tolist()
    if classes != list(range(len(classes))) or not 2 <= len(classes) <= MAX_CLASSES:
        raise ArgumentError("labels", f"expected 2 to {MAX_CLASSES} classes 0, 1, …, got {classes}")
    outside = _mass_outside(density)
    if outside > _OUTSIDE:
        raise ArgumentError(
            "density", f"expected at most {_OUTSIDE:.0%} of its mass outside [0, 1]², got up to {outside:.0%}"
        )
    return density


def _numbers(name: str, value: object) -> Tensor | None:
    """Nested lists of numbers as a float64 tensor."""
    if value is None:
        return None
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(name, "expected lists of numbers, of one length each") from None


def _mass_outside(density: GaussianMixture) -> float:
    """At least the mass outside the unit square: the sum of those beyond its four sides."""
    covariances = density.covariances
    if density.axes is None:
        deviations = covariances.sqrt()[:, None].expand(-1, 2)
    else:
        deviations = covariances.diagonal(dim1=1, dim2=2).sqrt()
    low, high = -density.means / deviations, (density.means - 1) / deviations
    beyond = torch.from_numpy(ndtr(low.numpy()) + ndtr(high.numpy())).sum(1)
    return min(1.0, float(density.log_weights.exp() @ beyond))
