"""AutoAttack (Croce & Hein 2020), by the authors' own package."""

from __future__ import annotations

from dataclasses import dataclass

from diffproof.attacks.base import MOST_GRADIENTS, Attack, Job, Traits
from diffproof.attacks.losses import Loss
from diffproof.attacks.pyautoattack import NORMS, WatchedDefense, contained, one_row, package, package_seed
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import L2, Linf, PixelThreat, Threat
from diffproof.attacks.views import AttackedDefense
from diffproof.checks import check_at_least, shown
from diffproof.errors import ArgumentError

VERSIONS = ("standard", "rand")


@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack as it is. Returns the image that it found, or the clean one where it found none.

    On a random defence the package's last look at an image is a single draw, and where that is right it hands
    back the clean one. What is returned then is the strongest perturbation within the threat: of all points
    that it took a gradient at, the one of the largest mean margin over that gradient's draws (a single one
    in version standard). Where one of its first looks is wrong, the package does not attack the image: it is
    run again under the next draws, up to ten times in all, and only then is the image returned unchanged.
    The package's own count, for which any failed look is a failure, is the score "while optimising".

    Each image is attacked on its own: the package draws the random starts of a batch together, and an image's
    result would depend on its neighbours. `first_success` counts evaluations of the image.

    Args:
        version: "standard" (APGD-CE, targeted APGD-DLR, targeted FAB, Square) or "rand" (APGD-CE and APGD-DLR
            with EOT, for random defences).
        eot: draws of noise a gradient, of the version rand, 20 by default; evaluated as one batch. Standard
            takes none.

    Raises:
        ValueError: an argument is out of range. Running it raises ValueError for too few classes or where the
            package is not installed, and warns (RuntimeWarning) of what the package finds suspicious.
    """

    version: str = "standard"
    eot: int | None = None

    name = "autoattack"
    threats = (Linf, L2)

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ArgumentError(
                "version", f"expected one of {', '.join(VERSIONS)}, got {shown(self.version)}"
            )
        if self.version == "rand":
            object.__setattr__(
                self, "eot", check_at_least("eot", 20 if self.eot is None else self.eot, 1, MOST_GRADIENTS)
            )
        elif self.eot is not None:
            raise ArgumentError("eot", f"autoattack takes it in its version rand only, got {self.eot}")

    def traits(self) -> Traits:
        """APGD's: it starts with cross-entropy, and takes 100 gradients."""
        return Traits(Loss.CE, self.repeats, 100, "eot, in its version rand", "take its version rand")

    def check(self, view: AttackedDefense, threat: Threat) -> None:
        """As any attack's; besides, there must be classes enough, and the package installed."""
        super().check(view, threat)
        package()
        classes, needed = view.num_classes, 4 if self.version == "standard" else 3
        if classes < needed:
            raise ArgumentError(
                "version",
                f"{self.version} needs {needed} classes, got {classes}; use pgd with the loss margin",
            )

    def most_draws(self, result: AttackResult, num_classes: int) -> int:
        """What the package asks of an image that is never wrong.

        Of rand: 101 gradients each of APGD-CE and APGD-DLR, and 7 looks between. Of standard: 305 of each
        target of APGD and FAB, and 5119 of APGD-CE, Square and the looks between.
        """
        return self.most_evaluations(num_classes)[0]

    def most_evaluations(self, num_classes: int) -> tuple[int, int]:
        """See `most_draws`; each gradient is one forward, and FAB takes 100 a target."""
        if self.version == "rand":
            return 202 * self.repeats + 7, 202 * self.repeats
        targets = min(9, num_classes - 1)
        return 5119 + 305 * targets, 101 + 201 * targets

    def of_fixed_noise(self) -> AutoAttack:
        """The version standard."""
        return AutoAttack()

    def images_at_once(self, batch_size: int) -> int:
        """One: it attacks each image on its own."""
        return 1

    def find(self, job: Job, threat: Threat) -> list[AttackResult]:
        """One run of the package an image, more where a random defence kept it from attacking."""
        assert isinstance(threat, PixelThreat)
        pyautoattack, checks = package(), package("pyautoattack.checks")
        classes = job.view.num_classes
        results = []
        with contained(job):
            for row in range(len(job.images)):
                random = self.version == "rand"
                watched = WatchedDefense(job, row, threat, self.repeats)
                adversary = pyautoattack.AutoAttack(
                    watched,
                    norm=NORMS[threat.name],
                    eps=threat.budget,
                    seed=package_seed(job, row),
                    version=self.version,
                    device=job.images.device,
                )
                if random:
                    adversary.apgd.eot_iter = self.repeats
                # The package's 9 targets are those of 10 classes.
                adversary.apgd_targeted.n_target_classes = min(9, classes - 1)
                adversary.fab.n_target_classes = min(9, classes - 1)
                for _ in range(watched.runs):
                    # Its count of gradients inside a forward pass runs on from model to model.
                    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
                    adversarial, _ = adversary.run_standard_evaluation(*one_row(job, row), batch_size=1)
                    if watched.attacked(adversarial[0]):
                        break
                results.append(watched.result(adversarial[0]))
        return results
