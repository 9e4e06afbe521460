"""What there is: every defence and attack once, with its settings. Imports no torch, so that --help is quick.

`diffproof methods`, the parsing of texts such as "densepure:steps=10,votes=40" and its errors come from these
tables; a test holds them equal to the constructors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffproof.values import Choice, Flag, Integer, Numbers, Optional, Real, Text, Time, Value


@dataclass(frozen=True)
class Setting:
    """One setting of a method.

    Attributes:
        name: of the constructor's argument.
        value: what it takes.
        default: of the constructor; an enum's value in place of its member, a list in place of a tuple.
        meaning: a sentence.
        required: there is no default.
    """

    name: str
    value: Value
    default: Any
    meaning: str
    required: bool = False


@dataclass(frozen=True)
class Method:
    """A defence or an attack.

    Attributes:
        name: in texts.
        home: module below `diffproof` and class, "defenses.dds:DDS".
        line: what it is, in a line.
        settings: in the order of the constructor.
        networks: those that it needs, of denoiser, classifier and guide.
        can: "certify" and "purify", for defences, and "ask" where purifying asks the classifier;
            "gradient-free" for attacks.
        optional: networks that it takes but can do without.
    """

    name: str
    home: str
    line: str
    settings: tuple[Setting, ...]
    networks: tuple[str, ...] = ()
    can: frozenset[str] = frozenset()
    optional: tuple[str, ...] = ()

    @property
    def takes(self) -> tuple[str, ...]:
        """All networks that it has a place for."""
        return self.networks + self.optional

    def setting(self, name: str) -> Setting | None:
        """The setting of this name, None where there is none."""
        return next((one for one in self.settings if one.name == name), None)


_T_STAR = Time()
_STEPS = Setting(
    "steps", Optional(Integer(1)), None, "Denoiser evaluations of a round; one a timestep by default."
)
_SIGMA = Setting(
    "sigma", Optional(Real("> 0")), None, "Noise that calling the defence adds first, in [0, 1] pixels."
)
_DENOISING = ("denoiser", "classifier")


def _solver(default: str) -> Setting:
    return Setting("solver", Choice("ddpm", "sde", "ode"), default, "How the reverse process is integrated.")


def _scale(default: float | None, meaning: str) -> Setting:
    value = Real("> 0") if default is not None else Optional(Real("> 0"))
    return Setting("scale", value, default, meaning)


_GRID = Setting("sigmas", Optional(Numbers()), None, "Ascending noise levels; the denoiser's own by default.")
_TIMESTEPS = Setting("timesteps", Text("all, first:N or uniform:N"), "all", "Noise levels that are summed.")
_WEIGHTING = Setting(
    "weighting", Choice("simple", "vlb", "edm", "edm-authors"), "simple", "Weights of the noise levels."
)
_SAMPLES = Setting("samples", Integer(1), 1, "Draws of noise at each level.")
_CLASSIFYING = (
    Setting("reduction", Choice("norm", "mean"), "norm", "Sum or mean of the squared errors of the pixels."),
    Setting("shared_noise", Flag(), True, "Whether all classes see the same noise."),
    Setting("log_prior", Optional(Numbers()), None, "log p(y) of each class; equal by default."),
    Setting("temperature", Real("> 0"), 1.0, "Divides the losses."),
    Setting(
        "race_error",
        Optional(Real("in (0, 1)")),
        None,
        "Drop classes early, with so much risk of another label.",
    ),
)
_MOVING = (
    Setting("iterations", Optional(Integer(1)), None, "Steps; 10 by default, 5 of the variant authors."),
    Setting(
        "budget",
        Optional(Real("> 0")),
        None,
        "Largest norm of the change; 8/255 (linf), 0.5 (l2) or 100 (authors).",
    ),
    Setting(
        "norm",
        Optional(Choice("linf", "l2")),
        None,
        "Norm of the budget; linf, or l2 of the variant authors.",
    ),
    Setting("step", Optional(Real("> 0")), None, "Length of a step; budget/iterations by default."),
    Setting("momentum", Real("≥ 0"), 1.0, "Decay of the momentum."),
    Setting("variant", Choice("paper", "authors"), "paper", "The paper's algorithm or the released code's."),
)

DEFENSES: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "none",
            "defenses.undefended:Undefended",
            "The classifier alone; certified, plain randomized smoothing (Cohen et al. 2019).",
            (_SIGMA,),
            ("classifier",),
            frozenset({"certify"}),
        ),
        Method(
            "dds",
            "defenses.dds:DDS",
            "One-shot denoising, then the classifier (Carlini et al. 2023).",
            (_SIGMA,),
            _DENOISING,
            frozenset({"certify"}),
        ),
        Method(
            "densepure",
            "defenses.densepure:DensePure",
            "Majority vote over samples of the reverse process (Xiao et al. 2023).",
            (
                Setting(
                    "steps", Optional(Integer(1), "full"), 10, "Denoiser evaluations of a sample; full: all."
                ),
                Setting("votes", Integer(1), 40, "Samples that vote on a draw."),
                Setting("consensus", Optional(Integer(1)), None, "Stop after so many equal votes in a row."),
                Setting(
                    "step_rule",
                    Choice("authors", "paper", "log-sigma"),
                    "authors",
                    "Timesteps that a sample visits.",
                ),
                Setting("eta", Real("in [0, 1]"), 1.0, "1 for ancestral sampling, 0 for DDIM."),
                _SIGMA,
            ),
            _DENOISING,
            frozenset({"certify"}),
        ),
        Method(
            "dc",
            "defenses.diffusion_classifier.classifier:DiffusionClassifier",
            "The class under which the diffusion model explains the image best (Chen et al. 2023).",
            (_GRID, _TIMESTEPS, _WEIGHTING, _SAMPLES, *_CLASSIFYING),
            ("denoiser",),
            frozenset({"certify"}),
        ),
        Method(
            "diffpure",
            "defenses.purifying.diffpure:DiffPure",
            "Diffuse to t*, integrate back, classify (Nie et al. 2022).",
            (
                Setting("t_star", Optional(_T_STAR), None, "Noise level as a time; this or sigma is needed."),
                Setting(
                    "sigma", Optional(Real("> 0")), None, "Noise level in [0, 1] pixels, in place of t_star."
                ),
                _STEPS,
                _solver("sde"),
            ),
            _DENOISING,
            frozenset({"purify"}),
        ),
        Method(
            "gdmp",
            "defenses.purifying.gdmp:GDMP",
            "Several rounds guided by the likeness to the input (Wang et al. 2022).",
            (
                Setting("t_star", _T_STAR, 0.036, "Noise level of each round as a time."),
                Setting("rounds", Integer(1), 4, "How many rounds."),
                _STEPS,
                _solver("ddpm"),
                Setting("likeness", Choice("mse", "ssim"), "mse", "What pulls towards the input."),
                _scale(None, "Strength of the guidance; the authors' of CIFAR-10, by the image's size."),
                Setting("budget", Real("> 0"), 8 / 255, "ℓ∞ bound of the perturbations to remove."),
            ),
            _DENOISING,
            frozenset({"purify"}),
        ),
        Method(
            "gradual",
            "defenses.purifying.gradual:GradualNoise",
            "Several rounds at growing noise levels (Lee & Kim 2023).",
            (
                Setting(
                    "t_star",
                    Numbers("in (0, 1]"),
                    [0.03, 0.03, 0.03, 0.03, 0.05, 0.05, 0.125, 0.125],
                    "Noise level of each round as a time.",
                ),
                Setting(
                    "steps", Optional(Numbers("≥ 1", whole=True)), None, "Denoiser evaluations of each round."
                ),
                _solver("ddpm"),
            ),
            _DENOISING,
            frozenset({"purify"}),
        ),
        Method(
            "coup",
            "defenses.purifying.coup:COUP",
            "The reverse process guided by the classifier's confidence (Zhang et al. 2024).",
            (
                Setting("t_star", _T_STAR, 0.1, "Noise level as a time."),
                _STEPS,
                _solver("sde"),
                _scale(1.0, "Weight of the confidence."),
                Setting("diffuse", Flag(), False, "Whether the image is diffused to t* first."),
            ),
            _DENOISING,
            frozenset({"purify", "ask"}),
        ),
        Method(
            "agdm",
            "defenses.purifying.agdm:AGDM",
            "The reverse process guided by a robust classifier (Lin et al. 2024).",
            (
                Setting("t_star", _T_STAR, 0.07, "Noise level as a time."),
                _STEPS,
                _solver("ddpm"),
                _scale(1.0, "Strength of the guidance."),
                Setting("where", Choice("clean", "state"), "clean", "What the guide sees of a step's state."),
                Setting("label", Choice("guide", "step", "none"), "guide", "The y of log p(y|x_t)."),
                Setting(
                    "distance", Choice("l2", "kl"), "l2", "Between the guide's answers to input and state."
                ),
            ),
            ("denoiser", "classifier", "guide"),
            frozenset({"purify"}),
        ),
        Method(
            "likelihood",
            "defenses.purifying.likelihood:LikelihoodMaximization",
            "Move the image to where the diffusion model finds it likelier (Chen et al. 2023).",
            (*_MOVING, _GRID, _TIMESTEPS, _WEIGHTING, _SAMPLES),
            _DENOISING,
            frozenset({"purify"}),
        ),
        Method(
            "rdc",
            "defenses.diffusion_classifier.rdc:RDC",
            "Likelihood maximisation, then the diffusion classifier (Chen et al. 2023).",
            (
                *_MOVING,
                Setting(
                    "likelihood_timesteps",
                    Text("all, first:N or uniform:N"),
                    "all",
                    "Noise levels whose loss the maximisation lowers.",
                ),
                _GRID,
                _TIMESTEPS,
                _WEIGHTING,
                _SAMPLES,
                *_CLASSIFYING,
            ),
            ("denoiser",),
            frozenset({"purify"}),
        ),
    )
}

_EOT = Setting("eot", Integer(1), 1, "Draws of noise an iteration.")
_ITERATIONS = Setting("iterations", Integer(1), 100, "Gradient steps.")
_PGD = (
    _ITERATIONS,
    _EOT,
    Setting("step", Optional(Real("> 0")), None, "Length of a step; 2.5·budget/iterations by default."),
    Setting("loss", Choice("ce", "dlr", "margin"), "ce", "What is raised."),
    Setting("mean_of", Choice("loss", "logits"), "loss", "What is averaged over the draws."),
    Setting(
        "direction",
        Choice("steepest", "sign"),
        "steepest",
        "Of a step: of the norm, or the sign for any norm.",
    ),
    Setting("random_start", Flag(), False, "Start anywhere in the ball."),
)

ATTACKS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("pgd", "attacks.pgd:PGD", "Projected gradient descent with EOT (Madry et al. 2018).", _PGD),
        Method(
            "autoattack",
            "attacks.autoattack:AutoAttack",
            "The authors' AutoAttack (Croce & Hein 2020); extra diffproof[attacks].",
            (
                Setting("version", Choice("standard", "rand"), "standard", "rand is for random defences."),
                Setting("eot", Optional(Integer(1)), None, "Draws a gradient, of rand; 20 by default."),
            ),
        ),
        Method(
            "stadv",
            "attacks.stadv:StAdv",
            "Moves pixels instead of changing them (Xiao et al. 2018).",
            (
                _ITERATIONS,
                _EOT,
                Setting("learning_rate", Real("> 0"), 0.01, "Of Adam, in the units of the budget."),
                Setting(
                    "smoothness", Real("≥ 0"), 0.0025, "Weight of the total variation, times the budget."
                ),
            ),
        ),
        Method(
            "diffattack",
            "attacks.diffattack:DiffAttack",
            "PGD on the loss and on the deviation of the states (Kang et al. 2023).",
            (*_PGD, Setting("weight", Real("≥ 0"), 1.0, "Of the deviated-reconstruction loss.")),
        ),
        Method(
            "lagrange",
            "attacks.lagrange:Lagrange",
            "PGD on class and unconditional loss of a diffusion classifier (Chen et al. 2023).",
            (
                *_PGD,
                Setting(
                    "weights", Numbers("≥ 0"), [0.0, 1.0, 10.0], "Of the unconditional loss, one by one."
                ),
            ),
        ),
        Method(
            "low-frequency",
            "attacks.low_frequency:LowFrequency",
            "PGD whose perturbation has low frequencies only (Guo et al. 2019).",
            (*_PGD, Setting("share", Real("in (0, 1]"), 0.5, "Of the frequencies that change.")),
        ),
        Method(
            "square",
            "attacks.square:Square",
            "Random squares, without gradients (Andriushchenko et al. 2020); extra diffproof[attacks].",
            (Setting("queries", Integer(1), 5000, "Most evaluations of an image."),),
            can=frozenset({"gradient-free"}),
        ),
    )
}


def able(methods: Mapping[str, Method], can: str) -> list[str]:
    """The names of the methods that can do something."""
    return [name for name, method in methods.items() if can in method.can]
