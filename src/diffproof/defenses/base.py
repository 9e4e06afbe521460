"""What every defence is: a module from images to logits; and what a certifiable one offers besides."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffproof.checks import (
    MOST_ROWS,
    check_at_least,
    check_finite,
    check_instance,
    check_pixels,
    check_positive,
    unchanged,
)
from diffproof.classifiers.base import Classifier, check_logits, predicted_labels
from diffproof.defenses.labelling import Batches, Labelled, Labeller
from diffproof.defenses.repeatability import check_repeatable
from diffproof.denoisers.base import Denoiser, check_denoiser
from diffproof.errors import ArgumentError, failing_network
from diffproof.modes import check_evaluation_mode
from diffproof.noise import Noise, Stream
from diffproof.notebooks import table
from diffproof.wording import counted


class Defense(nn.Module):
    """A classifier, perhaps behind a diffusion model. Subclasses write `respond`.

    Args:
        classifier: images N×C×H×W in [0, 1] → logits: a `Classifier`, or another defence; wrap a plain
            module in `Classifier`. None where the denoiser itself classifies.
        denoiser: the diffusion model, or None.
        num_classes: given where there is no classifier to say it, and only there.

    Attributes:
        random: calling it without noise gives another answer each time.

    Raises:
        ValueError: the classifier does not say its number of classes, or the two take different images.
    """

    # What `diffproof.methods` asks a class: what it is, and which words of catalog.Method.can apply.
    kind: ClassVar[str] = "defense"
    can: ClassVar[frozenset[str]] = frozenset()

    method: str
    random = True

    classifier: nn.Module | None

    def __init__(
        self,
        classifier: nn.Module | None,
        denoiser: Denoiser | None = None,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if denoiser is not None:
            check_denoiser(denoiser)
        if classifier is not None:
            if num_classes is not None:
                raise ArgumentError(
                    "num_classes", f"the classifier says it; expected None, got {num_classes}"
                )
            num_classes = getattr(classifier, "num_classes", None)
        part = isinstance(classifier, nn.Module | None) and not isinstance(classifier, Denoiser)
        if not part or not isinstance(num_classes, int):
            raise ArgumentError(
                "classifier",
                "expected a module with num_classes; wrap yours as diffproof.Classifier(module, num_classes)",
            )
        self.classifier = classifier
        self.denoiser = denoiser
        self.num_classes: int = num_classes
        wanted: tuple[int, int, int] | None = getattr(classifier, "image_shape", None)
        given = None if denoiser is None else denoiser.image_shape
        if wanted is not None and given is not None and wanted != given:
            raise ArgumentError("classifier", f"takes {wanted} images, but the denoiser gives {given}")
        channels: int | None = getattr(classifier, "channels", None)
        if channels is not None and given is not None and channels != given[0]:
            raise ArgumentError("classifier", f"takes {channels} channels, but the denoiser gives {given[0]}")
        self.image_shape = wanted or given

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        """N×num_classes logits of valid images under given noise, one row an image. Written by subclasses."""
        raise TypeError(f"{type(self).__name__} does not define respond()")

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits of images.

        Args:
            images: N×C×H×W in [0, 1].
            noise: one row an image; None draws afresh from torch's global generator, so that the defence is
                random. Give the same noise twice to evaluate the same function twice.

        Returns:
            N×num_classes. Gradients flow to the images.

        Raises:
            ValueError: the images are not float32 or float64 in [0, 1], or the noise has not their number of
                rows.
        """
        return self.respond(images, noise_for(images, noise))

    def predict_proba(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Class probabilities, N×num_classes; arguments and errors as in calling the defence.

        Raises:
            ValueError: see `check_networks`.
        """
        noise = noise_for(images, noise)
        self.check_networks(images)
        logits: Tensor = self(images, noise)
        return logits.softmax(1)

    def predict_labels(
        self, images: Tensor, noise: Noise | None = None, batch_size: int | None = None
    ) -> Tensor:
        """The class of the largest logit of each image.

        Args:
            images: N×C×H×W in [0, 1].
            noise: one row an image; None draws afresh.
            batch_size: rows in the networks at once; None for all images together.

        Returns:
            N int64 labels, without gradient.

        Raises:
            ValueError: as calling the defence, see `check_networks`, or batch_size < 1.
        """
        noise = noise_for(images, noise)
        self.check_networks(images)
        size = len(images) if batch_size is None else check_at_least("batch_size", batch_size, 1, MOST_ROWS)
        at_once = max(1, len(images) if batch_size is None else self.images_at_once(size))
        with torch.no_grad():  # a label has no gradient
            parts = zip(images.split(at_once), noise.split(at_once), strict=True)
            return torch.cat([predicted_labels(self(part, own)) for part, own in parts])

    def networks(self) -> list[nn.Module]:
        """Every network that the defence runs, each once: those of its parts, whatever their names."""
        found: list[nn.Module] = []
        for part in self.children():
            if isinstance(part, Defense):
                found += part.networks()
            elif isinstance(network := getattr(part, "network", None), nn.Module):
                found.append(network)
        # A diffusion model may purify and classify.
        return list(dict.fromkeys(found))

    @property
    def rows_per_image(self) -> int:
        """Rows that an image takes in the largest batch that its networks see."""
        return self.classifier.rows_per_image if isinstance(self.classifier, Defense) else 1

    def images_at_once(self, batch_size: int) -> int:
        """How many images its networks take in a batch of at most `batch_size` rows; at least one."""
        return max(1, batch_size // self.rows_per_image)

    def check_evaluation_mode(self) -> None:
        """Raise ValueError for a module in training mode that would make labels depend on batch or chance."""
        check_evaluation_mode(self)

    def check_networks(self, images: Tensor) -> None:
        """Raise ValueError where a network is in training mode, or is no function of an image.

        Modules are looked through, with what they call by name. What they reach otherwise, as a module that a
        plain object holds, shows where a network answers an image in two ways: each is asked once in its
        life, and again after it was certified or attacked. Not seen are chance so rare that it does not show
        in six answers, what changes otherwise after that, and what a network does that takes other images.

        Args:
            images: N×C×H×W that the defence takes.
        """
        self.check_evaluation_mode()
        if len(images):
            check_repeatable(self, images)

    def describe(self) -> str:
        """What defines the function besides its tensors and settings, for the hash in results."""
        parts = (self.classifier, self.denoiser)
        described = [part.describe() for part in parts if isinstance(part, Classifier | Denoiser | Defense)]
        if isinstance(self.classifier, Defense):
            described.append(f"classified by {self.classifier.settings()}")
        return "; ".join(described)

    def classifier_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which the classifier sees an image of height × width, resizing included."""
        part = self.classifier
        if isinstance(part, Defense):
            return part.classifier_size(height, width)
        return part.input_size(height, width) if isinstance(part, Classifier) else (height, width)

    def settings(self) -> dict[str, Any]:
        """What results state of this defence."""
        return {"method": self.method}

    def _repr_html_(self) -> str:
        """Settings, networks and their sizes, for notebooks."""
        sizes = {
            name: counted(sum(one.numel() for one in part.parameters()), "parameter")
            for name, part in self.named_children()
        }
        shape = {} if self.image_shape is None else {"images": "×".join(map(str, self.image_shape))}
        rows = {**self.settings(), "classes": self.num_classes, **shape, **sizes}
        return table(type(self).__name__, rows.items())

    def classifier_logits(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """The classifier's logits, checked for shape.

        Args:
            images: N×C×H×W.
            noise: one row an image, for a classifier that is itself a defence, which draws nested noise.

        Raises:
            ValueError: there is no classifier, or one that needs noise and gets none.
        """
        if self.classifier is None:
            raise ArgumentError("classifier", f"the method {self.method!r} has none")
        if isinstance(self.classifier, Defense):
            # Noise drawn afresh would be another function at each call.
            if noise is None:
                raise ArgumentError("noise", "expected some for a classifier that is a defence, got None")
            token = _inside.set(True)
            try:
                logits: Tensor = self.classifier(images, noise.nested())
            finally:
                _inside.reset(token)
        else:
            with unchanged("classifier", images), failing_network("classifier", self.classifier):
                logits = self.classifier(images)
        return check_logits(logits, len(images), self.num_classes)

    def classifier_labels(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """The classifier's labels, with its logits checked for shape and NaN, and so its images."""
        if not bool(torch.isfinite(images).all()):
            raise ArgumentError("denoiser", "expected finite estimates, got NaN or infinity")
        return predicted_labels(self.classifier_logits(images, noise))


# Whether a defence runs inside another, which gives it noisy images, too.
_inside = ContextVar("inside", default=False)


def noise_for(images: Tensor, noise: Noise | None) -> Noise:
    """The noise on the images' device; fresh from torch's global generator where it is None.

    Raises:
        ValueError: the images are not float32 or float64 in [0, 1], or the noise has another number of rows.
    """
    if _inside.get():
        check_finite(images)
    else:
        check_pixels(images, empty=True)
    if noise is None:
        seed = int(torch.randint(2**62, ()))
        index = torch.arange(len(images))
        noise = Noise.for_rows(seed, Stream.FORWARD, torch.zeros_like(index), index)
    check_instance("noise", noise, Noise, "a diffproof.Noise or None")
    if len(noise) != len(images):
        raise ArgumentError("noise", f"expected one row for each of {len(images)} images, got {len(noise)}")
    return noise.to(images.device)


class CertifiableDefense(Defense):
    """A defence that labels noisy draws, the base classifier of randomized smoothing.

    Subclasses write `classify` and `logits`.

    Args:
        classifier: see Defense.
        denoiser: see Defense.
        sigma: standard deviation of the noise that calling the module adds to its images before purifying
            them, in [0, 1] pixels; None leaves the call unavailable, while `Smoothed` brings its own sigma.
        num_classes: see Defense.
    """

    can = frozenset({"certify"})

    def __init__(
        self,
        classifier: nn.Module | None,
        denoiser: Denoiser | None = None,
        sigma: float | None = None,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(classifier, denoiser, num_classes=num_classes)
        self.sigma = None if sigma is None else check_positive("sigma", sigma)

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """As `labels`, at most `batch_size` images in a network at once. Written by subclasses.

        Args:
            noisy: see `labels`.
            sigma: see `labels`.
            noise: see `labels`.
            batch_size: most rows in a network at once, ≥ 1; changes no label.

        Returns:
            N int64 labels, and the evaluations spent.
        """
        raise TypeError(f"{type(self).__name__} does not define classify()")

    def labeller(self, sigma: float, batch_size: int) -> Labeller:
        """What labels noisy draws as they come; here batch by batch, by `classify`.

        Args:
            sigma: see `labels`.
            batch_size: see `classify`.
        """
        return Batches(lambda noisy, noise, size: self.classify(noisy, sigma, noise, size), batch_size)

    def chosen_labeller(self, sigma: float, batch_size: int) -> Labeller:
        """`labeller`, but that by `classify` where a subclass has changed it alone; same arguments."""
        changed = next(of for of in type(self).__mro__ if {"classify", "labeller"} & vars(of).keys())
        of = type(self) if "labeller" in vars(changed) else CertifiableDefense
        return of.labeller(self, sigma, batch_size)

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Differentiable N×num_classes logits of noisy images. Written by subclasses.

        Args:
            noisy: see `labels`.
            sigma: see `labels`.
            noise: see `labels`.
        """
        raise TypeError(f"{type(self).__name__} does not define logits()")

    def check_sigma(self, sigma: float) -> None:
        """Raise ValueError unless the defence can label images with this noise."""
        check_positive("sigma", sigma)
        if self.denoiser is not None:
            self.denoiser.check_sigma(sigma)

    def labels(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """The label of each noisy image: the base classifier of randomized smoothing.

        Args:
            noisy: N×C×H×W, image + sigma·N(0, I). At most N images go through a network at once.
            sigma: the noise level in [0, 1] pixels.
            noise: where further noise comes from, one row an image; step 0 of vote 0 is in the images.

        Returns:
            N int64 labels, a pure function of the arguments.

        Raises:
            ValueError: the networks cannot take the images or sigma, or the classifier returns NaN.
        """
        return self.classify(noisy, sigma, noise, len(noisy)).labels

    def evaluations_per_draw(self, sigma: float) -> tuple[int, int]:
        """Denoiser and classifier evaluations a draw that a plain implementation would spend."""
        return (0 if self.denoiser is None else 1), 1

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        """Logits of the images under the defence's own noise `sigma`.

        Raises:
            ValueError: the defence was built without sigma.
        """
        if self.sigma is None:
            raise ArgumentError(
                "sigma",
                f"calling {self.method!r} needs its setting sigma, a noise level, as in"
                f" {self.method}:sigma=0.25; got None",
            )
        noisy = images + self.sigma * noise.normal(images.shape[1:], 0, images.dtype)
        return self.logits(noisy, self.sigma, noise.after_first())
