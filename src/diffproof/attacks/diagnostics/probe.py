"""What checks of an attack evaluation measure with: frozen noise, slopes, points of the ball."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diffproof.attacks.base import Attack, Job
from diffproof.attacks.features import features_of, pulled
from diffproof.attacks.losses import Loss, loss_values
from diffproof.attacks.scoring import draw_labels
from diffproof.attacks.stadv import identity_grid, warp
from diffproof.attacks.threat import Flow, Perceptual, PixelThreat, Threat
from diffproof.noise import MAX_DRAW, Noise, Stream

# Fresh draws of noise that an adversarial image of a random defence is scored under.
DRAWS = 16
# Draws of noise that no score uses.
FROZEN, ANOTHER = DRAWS, DRAWS + 1

# Logits and labels → N values to differentiate.
Value = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Probe:
    """A defence, an attack on it and the images on which the checks measure them.

    Noise is that of the stream DIAGNOSTICS: draws 0 … DRAWS − 1 score, FROZEN and ANOTHER are for slopes, and
    the last ones of all for points and directions.
    """

    job: Job
    threat: Threat
    attack: Attack

    @property
    def precision(self) -> float:
        """Rounding of the coarsest floats that the defence computes in."""
        tensors = [self.job.images, *self.job.view.defense.parameters()]
        return max(torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point())

    def in_precision(self, dtype: torch.dtype) -> Probe:
        """The same with images and a copy of the defence whose coarser floats are of this dtype."""
        view = copy.deepcopy(self.job.view)
        for tensor in itertools.chain(view.parameters(), view.buffers()):
            if tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < torch.finfo(dtype).bits:
                tensor.data = tensor.data.to(dtype)
        images = self.job.images.to(torch.promote_types(self.job.images.dtype, dtype))
        return replace(self, job=replace(self.job, view=view, images=images))

    @property
    def rounding(self) -> float:
        """Change of logits, relative to the largest, that rounding may explain."""
        return math.sqrt(self.precision)

    def noise(self, draw: int) -> Noise:
        """One row an image, on their device."""
        index = self.job.image_indices
        rows = Noise.for_rows(self.job.seed, Stream.DIAGNOSTICS, index, torch.full_like(index, draw))
        return rows.to(self.job.images.device)

    def normals(self, number: int, shape: torch.Size, step: int) -> Tensor:
        """number×N×`shape` standard normals; `step` tells purposes apart."""
        dtype = self.job.images.dtype
        return torch.stack([self.noise(MAX_DRAW - i).normal(shape, step, dtype) for i in range(number)])

    def points(self, number: int) -> Tensor:
        """number×N×C×H×W random points at the edge of the ball around each image, within [0, 1]."""
        images, threat = self.job.images, self.threat
        if isinstance(threat, PixelThreat):
            normals = self.normals(number, images.shape[1:], step=0)
            edge = [threat.clip(images + threat.budget * threat.steepest(n), images) for n in normals]
        elif isinstance(threat, Perceptual):
            features = features_of(self.job.view.defense)
            # Grey noise has no features of the image left.
            far = [0.5 + 0.5 * n for n in self.normals(number, images.shape[1:], step=0)]
            edge = [pulled(features, one.clamp(0.0, 1.0), images, threat.budget)[0] for one in far]
        else:
            assert isinstance(threat, Flow)
            grid = identity_grid(images)
            signs = self.normals(number, grid.shape[1:], step=0).sign()
            # As StAdv, no pixel is taken from beyond the image's edges, and rounding is clamped off.
            flows = [(grid + threat.budget * s).clamp(-1.0, 1.0) - grid for s in signs]
            edge = [warp(images, flow).clamp(0.0, 1.0) for flow in flows]
        return torch.stack(edge)

    def longest_features(self) -> float:
        """The largest norm of the images' features, whose distances a threat may bound."""
        features = features_of(self.job.view.defense)
        with torch.no_grad():  # only its size is asked for
            return float(torch.linalg.vector_norm(features(self.job.images), dim=1).max())

    def beside(self, distance: float) -> Tensor:
        """The images with each pixel moved at random by less than a distance, and as far from 0 and 1."""
        images = self.job.images
        away = distance * torch.tanh(self.normals(1, images.shape[1:], step=2)[0])
        return images.clamp(2 * distance, 1 - 2 * distance) + away

    def logits(self, module: nn.Module, points: Tensor, draw: int | None) -> Tensor:
        """P×N×K float64 logits of points P×N×C×H×W, all points of an image under the same noise.

        Args:
            module: called with rows of images and their noise.
            points: P×N×C×H×W, P points of each of the N images.
            draw: which draw of the noise; None gives the module none.
        """
        number, rows = len(self.job.images), points.flatten(0, 1)
        noise = None if draw is None else self.noise(draw)
        logits = []
        with torch.no_grad():  # slopes are told by differences here
            for part in self._parts(len(rows)):
                image = part % number
                given = None if noise is None else noise.rows(image, torch.zeros_like(image))
                logits.append(module(rows[part], given).double())
        stacked: Tensor = torch.cat(logits).unflatten(0, points.shape[:2])
        return stacked

    def gradient(self, module: nn.Module, points: Tensor, value: Value) -> Tensor:
        """∇ of a value of the logits at N points under the FROZEN noise, by autograd; 0 where it has none."""
        noise, gradients = self.noise(FROZEN), []
        for part in self._parts(len(points)):
            with torch.enable_grad():
                rows = points[part].detach().requires_grad_()
                logits = module(rows, noise.rows(part, torch.zeros_like(part)))
                total = value(logits, self.job.labels[part]).sum()
            gradient = torch.zeros_like(rows)
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total, rows, materialize_grads=True)
            gradients.append(gradient)
        return torch.cat(gradients)

    def slopes(self, module: nn.Module, at: Tensor, weights: Tensor, moves: Tensor) -> Tensor:
        """Central differences of weights·logits along moves, S×N float64, a unit of length; 0 for no move.

        Args:
            module: called with rows of images and their noise, which is FROZEN.
            at: N×C×H×W, where the slopes are measured.
            weights: N×K factors of the logits.
            moves: S×N×C×H×W, half of each difference.
        """
        rise = (self.logits(module, torch.cat([at + moves, at - moves]), FROZEN) * weights).sum(-1)
        length = moves.double().flatten(2).norm(dim=2)
        slopes: Tensor = (rise[: len(moves)] - rise[len(moves) :]) / (2 * length)
        return torch.where(length > 0, slopes, 0.0)

    def run(self, budget: float) -> Tensor:
        """The attack's images at another budget, its steps scaled with it."""
        job, factor = self.job, budget / self.threat.budget
        sizes = {name: getattr(self.attack, name, None) for name in ("step", "learning_rate")}
        scaled = {name: factor * size for name, size in sizes.items() if size is not None}
        results = replace(self.attack, **scaled).run(
            job.view,
            job.images,
            job.labels,
            threat=replace(self.threat, budget=budget),
            seed=job.seed,
            image_indices=job.image_indices.tolist(),
            batch_size=job.batch_size,
        )
        return torch.stack([result.adversarial for result in results])

    def wrong(self, images: Tensor) -> Tensor:
        """N×draws booleans: wrong answers of the defence under fresh noise; one draw if it is not random."""
        job, defense = self.job, self.job.view.defense
        drawn = draw_labels(
            defense,
            images,
            draws=DRAWS if defense.random else 1,
            seed=job.seed,
            image_indices=job.image_indices.tolist(),
            batch_size=job.batch_size,
            stream=Stream.DIAGNOSTICS,
        )
        return drawn != job.labels.cpu()[:, None]

    def _parts(self, rows: int) -> Iterator[Tensor]:
        return iter(torch.arange(rows, device=self.job.images.device).split(self.job.images_at_once))


def ascent(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where a loss grows fastest among the logits: N×K float64 of unit length, and N slopes along it.

    Where the loss is flat to the last bit of float64, the direction is that of the margin.
    """

    def slope(kind: Loss) -> Tensor:
        with torch.enable_grad():
            at = logits.detach().double().requires_grad_()
            (gradient,) = torch.autograd.grad(loss_values(kind, at, labels).sum(), at)
        return gradient

    steepest = slope(loss)
    flat = (steepest == 0).all(1, keepdim=True)
    direction = torch.where(flat, slope(Loss.MARGIN), steepest)
    # Divided by its largest entry first, whose square could underflow.
    direction = direction / direction.abs().amax(1, keepdim=True)
    direction = direction / direction.norm(dim=1, keepdim=True)
    return direction, (steepest * direction).sum(1)
