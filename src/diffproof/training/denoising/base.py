"""What every objective of a denoiser is."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from diffproof.checks import check_instance
from diffproof.classifiers.base import Classifier
from diffproof.denoisers.network import NetworkDenoiser, Prediction
from diffproof.errors import ArgumentError
from diffproof.training.loop import LossOfBatch
from diffproof.training.objectives.base import Objective, check_can
from diffproof.training.objectives.named import load_objective


class DenoiserObjective(Objective):
    """A loss that a denoiser's network is trained with. Subclasses write `loss_of_batches`.

    Raises:
        ValueError: a setting out of range.
    """

    can = frozenset({"denoiser"})
    # Whether it is for a classifier behind the denoiser, and needs it; whether it needs true labels.
    classified: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    # Whether it trains networks of published checkpoints, too.
    published: ClassVar[bool] = False

    def loss_of_batches(
        self, denoiser: NetworkDenoiser, classifier: Classifier | None, label_dropout: float
    ) -> LossOfBatch:
        """The loss as `training.loop.fit` takes it. Written by subclasses.

        Args:
            denoiser: says what the network is given and predicts; the network that is trained comes later.
            classifier: behind it, not trained; None where the objective is not for one.
            label_dropout: probability with which a label is replaced by the null label.

        Raises:
            ValueError: the objective is for another kind of denoiser.
        """
        raise TypeError(f"{type(self).__name__} does not define loss_of_batches()")

    def check_predicts_noise(self, denoiser: NetworkDenoiser) -> None:
        """Raise ValueError for a denoiser with EDM's preconditioning, for objectives that train ε."""
        if denoiser.prediction is not Prediction.EPSILON:
            raise ArgumentError("objective", f"{self.name!r} is for a denoiser that predicts the noise")

    def check_classifier(self, given: bool) -> None:
        """Raise ValueError for a classifier that is lacking, or one too many."""
        if self.classified != given:
            told = "needs one" if self.classified else "takes none"
            raise ArgumentError("classifier", f"the objective {self.name!r} {told}")


def denoiser_objective(objective: Objective | str) -> DenoiserObjective:
    """An objective of denoisers, of its text.

    Raises:
        ValueError: unknown name or setting, or an objective of classifiers.
    """
    found = load_objective(objective) if isinstance(objective, str) else objective
    check_can(found, "denoiser")
    return check_instance("objective", found, DenoiserObjective, "an objective of denoisers")


def frozen(classifier: Classifier | None) -> Classifier:
    """The classifier behind a denoiser, as it is in use: in evaluation mode, without gradients of its own."""
    assert classifier is not None
    return classifier.eval().requires_grad_(False)


def bare(network: nn.Module) -> nn.Module:
    """The network itself, for a search that needs no exchange between processes."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
