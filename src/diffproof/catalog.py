"""What there is: every defence once, with its settings; what other tables say it in. Imports no torch, so that --help is quick.

`diffproof methods`, the parsing of texts such as "densepure:steps=10,votes=40" and its errors come from these
tables; a test holds them equal to the constructors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffproof.values import Choice, Flag, Integer, Levels, Numbers, Optional, Real, Text, Time, Value


@dataclass(frozen=True)
class Setting:
    """One setting of a method.

    Attributes:
        name: name of the constructor's argument.
        value: what it takes.
        default: the constructor's; an enum's value in place of its member, a list in place of a tuple.
        meaning: a sentence.
        required: there is no default.
        idle: words of Method.can: where it does nothing, and giving it is a mistake.
    """

    name: str
    value: Value
    default: Any
    meaning: str
    required: bool = False
    idle: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Method:
    """A defence, an attack or an objective of a training.

    Attributes:
        name: in texts.
        home: module below `diffproof` and class, "defenses.dds:DDS".
        line: what it is, in a line.
        settings: in the order of the constructor.
        networks: those that it needs, of denoiser, classifier and guide.
        can: "certify" and "purify", for defences, "ask" where purifying asks the classifier, and "optimise"
            where it moves the image by an optimisation of its own; "gradient-free" for attacks; "train",
            "finetune" and "denoiser" for objectives, the trainings that take them.
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


# The word of Method.can of which reports of attacks warn.
OPTIMISES = "optimise"

# What flags choose from beside methods; each is told of where it is made.
BOUNDS = ("one-sided", "two-sided", "pixeldp")
NOISES = ("grid", "continuous")
STOPS = ("fixed", "sequential")
GRADIENTS = ("exact", "bpda", "surrogate", "blind", "adjoint")
PROTOCOLS = ("diffpure", "lee-kim", "diffbreak", "diffhammer", "agdm", "rdc")
THREATS = ("linf", "l2", "stadv", "perceptual")
NORMS = ("linf", "l2")
ADVERSARIAL = ("pgd", "trades", "pat")
SCHEDULES = ("cosine", "linear", "scaled_linear")
PRECONDITIONINGS = ("none", "edm")
PRECISIONS = ("float32", "bfloat16")

# A row a setting, however long: it is read as a table.
# fmt: off
_T_STAR = Time()
_STEPS = Setting("steps", Optional(Integer(1)), None, "A round takes this many denoiser evaluations; by default one a timestep.")
_SIGMA = Setting("sigma", Optional(Real("> 0")), None, "Called outside certification, the defence adds noise of this standard deviation to [0, 1] pixels first.", idle=frozenset({"certify"}))
_DENOISING = ("denoiser", "classifier")


def _solver(default: str) -> Setting:
    return Setting("solver", Choice("ddpm", "sde", "ode"), default, "This solver integrates the reverse process.")


def _scale(default: float | None, meaning: str) -> Setting:
    value = Real("> 0") if default is not None else Optional(Real("> 0"))
    return Setting("scale", value, default, meaning)


_GRID = Setting("sigmas", Optional(Levels()), None, "These are the noise levels of [0, 1] pixels, ascending, or the N of the authors for EDM; by default the denoiser's own.")
_TIMESTEPS = Setting("timesteps", Text("all, first:N or uniform:N"), "all", "The loss sums these noise levels: all, the N lowest, or N evenly apart.")
_WEIGHTING = Setting("weighting", Choice("simple", "vlb", "edm", "edm-authors"), "simple", "The noise levels have these weights in the loss.")
_SAMPLES = Setting("samples", Integer(1), 1, "Each noise level is seen under this many draws of noise.")
_CLASSIFYING = (
    Setting("reduction", Choice("norm", "mean"), "norm", "The pixels' squared errors are summed (norm) or averaged (mean).", idle=frozenset({"purify"})),
    Setting("shared_noise", Flag(), True, "All classes see the same noise.", idle=frozenset({"purify"})),
    Setting("log_prior", Optional(Numbers()), None, "The classes have these log p(y), up to a constant; by default equal ones.", idle=frozenset({"purify"})),
    Setting("temperature", Real("> 0"), 1.0, "The losses are divided by this.", idle=frozenset({"certify", "purify"})),
    Setting("race_error", Optional(Real("in (0, 1)")), None, "Classes are dropped early, at this risk of another label an image; by default none is.", idle=frozenset({"purify"})),
)
_NOISED = (
    Setting("levels", Integer(2), 126, "The loss sums so many noise levels, from that of the image to 1.5 in equal steps."),
    Setting("weighting", Choice("edm", "edm-authors"), "edm", "The noise levels have these weights in the loss."),
    Setting("race_error", Optional(Real("in (0, 1)")), None, "Classes are dropped early, at this risk of another label an image; by default none is."),
    _SIGMA,
)
_MOVING = (
    Setting("iterations", Optional(Integer(1)), None, "The image moves in this many steps; by default 10, of the variant authors 5."),
    Setting("budget", Optional(Real("> 0")), None, "The change of [0, 1] pixels has at most this norm; by default 8/255 or 0.5 (l2), 100 (authors)."),
    Setting("norm", Optional(Choice("linf", "l2")), None, "The budget bounds this norm; by default linf, of the variant authors l2."),
    Setting("step", Optional(Real("> 0")), None, "A step has this length in [0, 1] pixels; by default budget/iterations, of the variant authors 0.05."),
    Setting("momentum", Real("≥ 0"), 1.0, "The momentum is multiplied by this at each step."),
    Setting("variant", Choice("paper", "authors"), "paper", "The algorithm is the paper's or the released code's (authors)."),
)

DEFENSES: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "none",
            "defenses.undefended:Undefended",
            "The classifier alone; certified, plain randomized smoothing (Cohen et al. 2019).",
            (
                Setting("votes", Optional(Integer(1)), None, "This many passes of the classifier, its dropout and drop-path layers active, vote on each draw of noise; by default one, without."),
                _SIGMA,
            ),
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
                Setting("steps", Optional(Integer(1), "full"), 10, "A sample takes this many denoiser evaluations; full takes every trained level."),
                Setting("votes", Integer(1), 40, "This many samples vote on each draw of noise."),
                Setting("consensus", Optional(Integer(1)), None, "Voting also ends after this many equal votes in a row; by default it does not."),
                Setting("step_rule", Choice("authors", "paper", "log-sigma"), "authors", "This rule chooses the timesteps that a sample visits."),
                Setting("eta", Real("in [0, 1]"), 1.0, "The reverse process is ancestral at 1 and deterministic DDIM at 0."),
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
            "apndc",
            "defenses.diffusion_classifier.noised:APNDC",
            "One-shot denoising, then the diffusion classifier (Chen et al. 2024).",
            _NOISED,
            ("denoiser",),
            frozenset({"certify"}),
        ),
        Method(
            "epndc",
            "defenses.diffusion_classifier.noised:EPNDC",
            "The diffusion classifier of noisy images, by their exact posterior (Chen et al. 2024).",
            _NOISED,
            ("denoiser",),
            frozenset({"certify"}),
        ),
        Method(
            "sbgc",
            "defenses.score_classifier:SBGC",
            "The class that gives the image the largest likelihood, by the probability-flow ODE (Zimmermann et al. 2021).",
            (
                Setting("steps", Integer(1), 50, "The ODE is solved in this many steps, of four denoiser evaluations a class each."),
                Setting("temperature", Real("> 0"), 1.0, "The log-likelihoods are divided by this."),
            ),
            ("denoiser",),
        ),
        Method(
            "diffpure",
            "defenses.purifying.diffpure:DiffPure",
            "Diffuse to t*, integrate back, classify (Nie et al. 2022).",
            (
                Setting("t_star", Optional(_T_STAR), None, "The image is diffused to this time; either this or sigma is needed."),
                Setting("sigma", Optional(Real("> 0")), None, "The image is diffused to this noise level of [0, 1] pixels, in place of t_star."),
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
                Setting("t_star", _T_STAR, 0.036, "Each round diffuses the image to this time."),
                Setting("rounds", Integer(1), 4, "The image goes through this many rounds."),
                _STEPS,
                _solver("ddpm"),
                Setting("likeness", Choice("mse", "ssim"), "mse", "This likeness pulls the image towards the input."),
                _scale(None, "The guidance has this strength; by default the authors', by the image's size."),
                Setting("budget", Real("> 0"), 8 / 255, "The guidance is for perturbations of up to this ℓ∞ norm, of [0, 1] pixels."),
                Setting("variance", Choice("posterior", "large"), "posterior", "The steps of the solver ddpm have the learned variance or β̃ (posterior), or β as the authors' (large)."),
            ),
            _DENOISING,
            frozenset({"purify"}),
        ),
        Method(
            "gradual",
            "defenses.purifying.gradual:GradualNoise",
            "Several rounds at growing noise levels (Lee & Kim 2023).",
            (
                Setting("t_star", Numbers("in (0, 1]"), [0.03, 0.03, 0.03, 0.03, 0.05, 0.05, 0.125, 0.125], "The rounds diffuse the image to these times, one after the other."),
                Setting("steps", Optional(Numbers("≥ 1", whole=True)), None, "The rounds take these numbers of denoiser evaluations; by default one a timestep."),
                _solver("ddpm"),
            ),
            _DENOISING,
            frozenset({"purify"}),
        ),
        Method(
            "adp",
            "defenses.purifying.adp:ADP",
            "Noise, then adaptive steps along the score, several times (Yoon et al. 2021).",
            (
                Setting("sigma", Real("≥ 0"), 0.25, "Noise of this standard deviation is added to [0, 1] pixels first."),
                Setting("score_sigma", Real("> 0"), 0.25, "The steps follow the score of this noise level of [0, 1] pixels."),
                Setting("steps", Integer(1), 10, "An image takes at most this many steps, of two denoiser evaluations each."),
                Setting("rate", Real("> 0"), 0.05, "A step goes this share of the way to the mode of a Gaussian."),
                Setting("samples", Integer(1), 10, "The logits of this many purifications are averaged.", idle=frozenset({"purify"})),
            ),
            _DENOISING,
            frozenset({"purify"}),
        ),
        Method(
            "coup",
            "defenses.purifying.coup:COUP",
            "The reverse process guided by the classifier's confidence (Zhang et al. 2024).",
            (
                Setting("t_star", _T_STAR, 0.1, "The reverse process starts at this time."),
                _STEPS,
                _solver("sde"),
                _scale(1.0, "The confidence has this weight."),
                Setting("diffuse", Flag(), False, "The image is diffused to t_star first."),
            ),
            _DENOISING,
            frozenset({"purify", "ask"}),
        ),
        Method(
            "agdm",
            "defenses.purifying.agdm:AGDM",
            "The reverse process guided by a robust classifier (Lin et al. 2024).",
            (
                Setting("t_star", _T_STAR, 0.07, "The image is diffused to this time."),
                _STEPS,
                _solver("ddpm"),
                _scale(1.0, "The guidance has this strength."),
                Setting("variant", Choice("measured", "paper"), "measured", "The choices are those that withstood most when measured, or the paper's."),
                Setting("where", Optional(Choice("clean", "state")), None, "The guide sees the denoised image of a step (clean) or its state; by default clean, of the variant paper state."),
                Setting("distance", Optional(Choice("l2", "kl")), None, "The guide's answers to input and state are compared by squared ℓ2 or by KL; by default l2, of the variant paper kl."),
                Setting("guide_last", Optional(Flag()), None, "The guide moves the last step of the solver ddpm, too; by default false, of the variant paper true."),
                Setting("label", Choice("guide", "step", "none"), "guide", "The guide's label is raised: that of the input (guide), that of the step, or none."),
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
            frozenset({"purify", OPTIMISES}),
        ),
        Method(
            "rdc",
            "defenses.diffusion_classifier.rdc:RDC",
            "Likelihood maximisation, then the diffusion classifier (Chen et al. 2023).",
            (
                *_MOVING,
                Setting("likelihood_timesteps", Text("all, first:N or uniform:N"), "all", "The maximisation lowers the loss of these levels: all, the N lowest, or N evenly apart."),
                _GRID,
                _TIMESTEPS,
                _WEIGHTING,
                _SAMPLES,
                *_CLASSIFYING,
            ),
            ("denoiser",),
            frozenset({"purify", OPTIMISES}),
        ),
    )
}
# fmt: on


def able(methods: Mapping[str, Method], can: str) -> list[str]:
    """The names of the methods that can do something."""
    return [name for name, method in methods.items() if can in method.can]
