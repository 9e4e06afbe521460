"""Evaluation protocols of papers: the attack, its settings, and the score that they report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffproof.attacks.expectation import MeanOf
from diffproof.attacks.losses import Loss
from diffproof.attacks.pgd import Direction
from diffproof.attacks.scoring import Score
from diffproof.attacks.views import GradientMode
from diffproof.checks import check_known
from diffproof.errors import ArgumentError

# Images with a longer side than this are attacked as the papers attack ImageNet's, others as CIFAR-10's.
_LARGEST_SMALL = 64


@dataclass(frozen=True)
class Protocol:
    """How a paper attacks and scores.

    Attributes:
        name: the protocol's name.
        source: the paper.
        attack: name in `diffproof.catalog.ATTACKS`.
        gradient: what it differentiates.
        fixed: settings of the attack that belong to the protocol.
        threats: the threat models that it is for, each with further such settings.
        draws: fresh draws of noise that the attacked image is scored under.
        votes: draws that vote on its label.
        headline: the score that the paper reports.
        note: what a reader of the score must know.
        large: further such settings for images larger than 64 pixels, ImageNet's in the papers.
        fixed_with: further such settings where another has a value: {("version", "rand"): {"eot": 20}}.
        defaults: settings that it suggests.
        attacks: other attacks than `attack`, by threat.
    """

    name: str
    source: str
    attack: str
    gradient: GradientMode
    fixed: Mapping[str, Any]
    threats: Mapping[str, Mapping[str, Any]]
    draws: int
    votes: int
    headline: Score
    note: str
    large: Mapping[str, Any] = field(default_factory=dict)
    fixed_with: Mapping[tuple[str, Any], Mapping[str, Any]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    attacks: Mapping[str, str] = field(default_factory=dict)

    def attack_on(self, threat: str) -> str:
        """The name of the attack within a threat."""
        return self.attacks.get(threat, self.attack)

    def fixed_for(self, given: Mapping[str, Any], threat: str, image_size: int) -> dict[str, Any]:
        """The settings of the attack that the protocol fixes.

        Args:
            given: settings of the attack.
            threat: name of the threat model.
            image_size: longer side of the images, in pixels.

        Raises:
            ValueError: the protocol is not for this threat.
        """
        if threat not in self.threats:
            known = ", ".join(sorted(self.threats))
            raise ArgumentError("threat", f"protocol {self.name} is for {known}, got {threat}")
        fixed = {**self.fixed, **self.threats[threat]}
        if image_size > _LARGEST_SMALL:
            fixed |= self.large
        chosen = {**self.defaults, **given}
        for (setting, value), further in self.fixed_with.items():
            if chosen.get(setting) == value:
                fixed |= further
        return fixed

    def settings(
        self, attack: str | None, given: Mapping[str, Any], threat: str, image_size: int
    ) -> dict[str, Any]:
        """The protocol's settings of the attack with those given.

        Args:
            attack: name of the attack, None for the protocol's.
            given: settings of the attack.
            threat: see `fixed_for`.
            image_size: see `fixed_for`.

        Raises:
            ValueError: something given contradicts the protocol.
        """
        if attack is not None and attack != self.attack_on(threat):
            wanted = self.attack_on(threat)
            raise ArgumentError("attack", f"protocol {self.name} fixes {wanted}, got {attack}")
        fixed = self.fixed_for(given, threat, image_size)
        for setting, wanted in fixed.items():
            if given.get(setting, wanted) != wanted:
                raise ArgumentError(setting, f"protocol {self.name} fixes {wanted}, got {given[setting]}")
        return {**self.defaults, **given, **fixed}


# eval_sde_adv.py and run_scripts/ of NVlabs/DiffPure: `--attack_version` rand and standard, `--eot_iter 20`.
_DIFFPURE = Protocol(
    name="diffpure",
    source="Nie et al. 2022, section 5",
    attack="autoattack",
    gradient=GradientMode.EXACT,
    fixed={},
    fixed_with={("version", "rand"): {"eot": 20}},
    threats={"linf": {}, "l2": {}},
    defaults={"version": "rand"},
    draws=10,
    votes=10,
    headline=Score.FRESH,
    note=(
        "the paper reports the lower of the versions rand and standard, one draw each, with the gradient of"
        " the adjoint SDE; this is one version, ten draws, and the exact gradient"
    ),
)

# attacks/pgd_eot.py, attacks/pgd_eot_l2.py, scripts/ and `predict` of test.py of
# ml-postech/robust-evaluation-of-diffusion-based-purification. No random start: `_random_init` is not called.
_LEE_KIM = Protocol(
    name="lee-kim",
    source="Lee & Kim 2023",
    attack="pgd",
    gradient=GradientMode.EXACT,
    fixed={
        "iterations": 200,
        "eot": 20,
        "step": 0.007,
        "loss": Loss.CE,
        "mean_of": MeanOf.LOSS,
        "random_start": False,
    },
    threats={"linf": {}, "l2": {"direction": Direction.SIGN}},
    large={"iterations": 20},
    draws=10,
    votes=10,
    headline=Score.MAJORITY,
    note=(
        "the paper attacks long purifications through a surrogate of fewer steps, which is weaker than the"
        " exact gradient here; without gradual noise it scores a single draw"
    ),
)

# `pgd_params` and `default_loss` of DiffBreak/utils/registry.py and DiffBreak/attacks/pgd.py of
# andrekassis/DiffBreak; N = 10 copies on CIFAR-10 and 16 for the gradient on ImageNet: section 4.2.
_DIFFBREAK = Protocol(
    name="diffbreak",
    source="Kassis, Hengartner & Yu 2025, sections 3.3 and 4.2",
    attack="pgd",
    gradient=GradientMode.EXACT,
    fixed={
        "iterations": 100,
        "eot": 10,
        "step": 0.008,
        "loss": Loss.CE,
        "mean_of": MeanOf.LOSS,
        "random_start": True,
    },
    threats={"linf": {}},
    large={"eot": 16},
    draws=10,
    votes=10,
    headline=Score.MAJORITY,
    note=(
        "the toolkit's PGD, scored at its last iterate; the paper stops at the first iterate that fails, its"
        " tables 1 and 2 take APGD on the margin, table 3 filters bounded by LPIPS, and ImageNet 8 votes"
    ),
)

# Selection of vulnerable purifications and N-evaluation; its code was not read, and the numbers are ours.
_DIFFHAMMER = Protocol(
    name="diffhammer",
    source="Wang et al. 2024, DiffHammer",
    attack="selective",
    gradient=GradientMode.EXACT,
    fixed={"loss": Loss.CE, "mean_of": MeanOf.LOSS},
    threats={"linf": {}, "l2": {}},
    defaults={"iterations": 100, "eot": 10},
    draws=10,
    votes=10,
    headline=Score.WORST,
    note=(
        "an image counts as robust if it is right under each of N = 10 draws; the draws that a step follows"
        " are those of largest margin, where the paper selects them by expectation and maximisation"
    ),
)

# Its tables 1 to 5; AutoAttack's version rand with EOT 20 as in Nie et al. 2022, whose evaluation it takes.
_AGDM = Protocol(
    name="agdm",
    source="Lin et al. 2024, tables 1 to 5",
    attack="autoattack",
    gradient=GradientMode.EXACT,
    fixed={},
    threats={"linf": {"version": "rand", "eot": 20}, "l2": {"version": "rand", "eot": 20}, "stadv": {}},
    attacks={"stadv": "stadv"},
    draws=10,
    votes=10,
    headline=Score.FRESH,
    note=(
        "AutoAttack of pixels, StAdv of their places; the paper scores one draw, this is the mean of ten, and"
        " its tables 6 and 7 are the protocol lee-kim"
    ),
)

# PGD-80 with EOT 10 against the random defences of its tables.
_RDC = Protocol(
    name="rdc",
    source="Chen et al. 2023",
    attack="pgd",
    gradient=GradientMode.EXACT,
    fixed={"iterations": 80, "eot": 10, "loss": Loss.CE, "mean_of": MeanOf.LOSS},
    threats={"linf": {}, "l2": {}},
    draws=10,
    votes=10,
    headline=Score.FRESH,
    note=(
        "the paper's length of a step is not known here: 2.5·budget/iterations unless --attack pgd:step=…"
        " says otherwise; it scores one draw, this is the mean of ten, and other rows of its tables are"
        " AutoAttack"
    ),
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (_DIFFPURE, _LEE_KIM, _DIFFBREAK, _DIFFHAMMER, _AGDM, _RDC)
}


def load_protocol(name: str) -> Protocol:
    """A protocol by name: "diffpure", "lee-kim", "diffbreak", "diffhammer", "agdm" or "rdc".

    Raises:
        ValueError: unknown name.
    """
    return check_known("protocol", name, PROTOCOLS)
