"""What classifiers that are to be smoothed, and denoisers, can be trained with: every objective once, as `catalog` has methods."""

from __future__ import annotations

from diffproof.catalog import Method, Setting
from diffproof.values import Choice, Integer, Numbers, Optional, Real

# A row a setting, however long: it is read as a table.
# fmt: off
_WARMUP = Setting("warmup", Real("in [0, 1]"), 0.1, "The search reaches its full strength after this share of the training.")
_BOTH = frozenset({"train", "finetune"})
_FINETUNE = frozenset({"finetune"})
_DENOISER = frozenset({"denoiser"})


def _draws(default: int) -> Setting:
    return Setting("draws", Integer(1), default, "Each image is seen under this many draws of noise in a step.")


def _weight(what: str, default: str) -> Setting:
    return Setting("weight", Optional(Real("≥ 0")), None, f"{what} has this weight; by default {default} at the nearest of σ = 0.25, 0.5, 1.")


def _steps(default: int) -> Setting:
    return Setting("steps", Integer(1), default, "The search takes this many gradient steps.")


OBJECTIVES: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "gaussian",
            "training.objectives.gaussian:Gaussian",
            "Cross-entropy under noise (Cohen et al. 2019).",
            (),
            can=_BOTH,
        ),
        Method(
            "stability",
            "training.objectives.stability:Stability",
            "The clean image's answer is kept under noise (Li et al. 2019).",
            (_weight("The cross-entropy between clean and noisy answer", "2, 2, 1"),),
            can=_BOTH,
        ),
        Method(
            "smoothadv",
            "training.objectives.smoothadv:SmoothAdv",
            "Adversarial training of the smoothed classifier (Salman et al. 2019).",
            (
                Setting("draws", Optional(Integer(1)), None, "Each image is seen under this many draws of noise in a step; by default 4, 8, 2 at the nearest of σ = 0.25, 0.5, 1."),
                Setting("budget", Optional(Real("> 0")), None, "The perturbation of [0, 1] pixels has at most this ℓ2 norm; by default 1, 1, 2 at the nearest of σ = 0.25, 0.5, 1."),
                _steps(10),
                _WARMUP,
            ),
            can=_BOTH,
        ),
        Method(
            "macer",
            "training.objectives.macer:MACER",
            "Raises the certified radius itself, without attacks (Zhai et al. 2020).",
            (
                _draws(16),
                _weight("The radius's shortfall", "12, 4, 12"),
                Setting("beta", Real("> 0"), 16.0, "The logits are multiplied by this for the radius."),
                Setting("gamma", Real("> 0"), 8.0, "Radii are raised up to this times σ."),
                Setting("deferred", Optional(Real("in [0, 1]")), None, "The radius counts after this share of the training; by default 0, 0, 5/11 at the nearest of σ = 0.25, 0.5, 1."),
            ),
            can=_BOTH,
        ),
        Method(
            "consistency",
            "training.objectives.consistency:Consistency",
            "The draws of an image agree with their mean (Jeong & Shin 2020).",
            (
                _draws(2),
                _weight("The divergence of each draw from the mean", "20, 10, 10"),
                Setting("entropy", Real("≥ 0"), 0.5, "The entropy of the mean has this weight."),
            ),
            can=_BOTH,
        ),
        Method(
            "smoothmix",
            "training.objectives.smoothmix:SmoothMix",
            "Mixes images with adversaries of the smoothed classifier (Jeong et al. 2021).",
            (
                _draws(2),
                _steps(4),
                Setting("step", Optional(Real("> 0")), None, "A step has this ℓ2 length in [0, 1] pixels; by default 0.5, 1, 2 at the nearest of σ = 0.25, 0.5, 1."),
                Setting("mix_step", Integer(0), 1, "Images are mixed from this step of the search on, 0 for the image itself; at most steps."),
                Setting("weight", Real("≥ 0"), 5.0, "The divergence at mixed images has this weight."),
                _WARMUP,
            ),
            can=_BOTH,
        ),
        Method(
            "cat-rs",
            "training.objectives.cat_rs:CATRS",
            "Learns as many draws as the network is sure of, and the worst noise (Jeong et al. 2023).",
            (
                _draws(4),
                _weight("The divergence under the worst noise", "0.5, 1, 2"),
                Setting("budget", Real("> 0"), 1.0, "The noise moves by at most this ℓ2 norm, in [0, 1] pixels."),
                _steps(4),
            ),
            can=_BOTH,
        ),
        Method(
            "jem",
            "training.objectives.jem:JEM",
            "A classifier whose logits are an energy of images, too (Grathwohl et al. 2020).",
            (
                Setting("weight", Real("≥ 0"), 1.0, "The contrast of energies between images and samples has this weight."),
                Setting("steps", Integer(1), 20, "A sample moves on by this many steps of Langevin dynamics."),
                Setting("step", Real("> 0"), 0.25, "A step goes this times the gradient, for [0, 1] pixels."),
                Setting("noise", Real("≥ 0"), 0.005, "A step adds noise of this standard deviation to [0, 1] pixels."),
                Setting("buffer", Integer(1), 10_000, "This many samples are kept from step to step."),
                Setting("restart", Real("in [0, 1]"), 0.05, "A sample begins anew, as uniform noise, with this probability."),
            ),
            can=frozenset({"train"}),
        ),
        Method(
            "hybvit",
            "training.objectives.hybvit:HybViT",
            "A vision transformer that is a classifier and a denoiser at once (Yang et al. 2022).",
            (
                Setting("weight", Real("≥ 0"), 100.0, "The mean absolute error of the noise has this weight, the cross-entropy 1."),
                Setting("label_smoothing", Real("in [0, 1)"), 0.1, "This share of a label is spread evenly over the classes."),
                Setting("patch", Integer(1), 4, "The network sees squares of this many pixels a side."),
                Setting("width", Integer(4), 384, "A token has this many numbers, an even multiple of heads."),
                Setting("depth", Integer(1), 9, "The network has this many blocks."),
                Setting("heads", Integer(1), 12, "Attention has this many heads."),
            ),
            can=frozenset({"train"}),
        ),
        Method(
            "ft-cadis",
            "training.objectives.ft_cadis:FTCADIS",
            "Learns the denoised images that keep their label, and the worst change (Jang et al. 2024).",
            (
                _draws(4),
                Setting("weight", Real("≥ 0"), 4.0, "The divergence under the worst change has this weight."),
                Setting("budget", Real("> 0"), 0.125, "The change that noise and denoiser made moves by at most this ℓ2 norm, in [0, 1] pixels."),
                _steps(4),
            ),
            can=_FINETUNE,
        ),
        Method(
            "covariate-shift",
            "training.objectives.covariate_shift:CovariateShift",
            "Learns images denoised of adversarial noise (Hedayatnia et al. 2025).",
            (
                _steps(2),
                Setting("step", Real("> 0"), 0.1, "A step adds or takes this from each pixel of the unit noise."),
            ),
            can=_FINETUNE,
        ),
        Method(
            "mse",
            "training.denoising.mse:MSE",
            "A denoiser restores the noise, and so the pixels (Ho et al. 2020).",
            (
                Setting("levels", Choice("uniform", "log-normal"), "uniform", "Timesteps are uniform on the schedule, or their noise levels of [−1, 1] pixels have a logarithm of mean −1.2 and deviation 1.2 (Karras et al. 2022)."),
            ),
            can=_DENOISER,
        ),
        Method(
            "stab",
            "training.denoising.labels:STAB",
            "A denoiser of one noise level keeps a classifier's label (Salman et al. 2020).",
            (),
            can=_DENOISER,
        ),
        Method(
            "clf",
            "training.denoising.labels:CLF",
            "A denoiser of one noise level keeps the true label, for a classifier (Salman et al. 2020).",
            (),
            can=_DENOISER,
        ),
        Method(
            "atop",
            "training.denoising.labels:ATOP",
            "A denoiser of one noise level restores adversarial images, for a classifier (Lin et al. 2024).",
            (),
            can=_DENOISER,
        ),
        Method(
            "adbm",
            "training.denoising.adbm:ADBM",
            "A denoiser leads from the diffused adversary to the clean image (Li et al. 2025).",
            (
                Setting("t_star", Numbers("in (0, 1]"), [0.1, 0.2], "The adversary is diffused to a time drawn uniformly between these two, or to this one."),
                Setting("budget", Real("in (0, 1]"), 8 / 255, "The adversary differs by at most this ℓ∞ norm, in [0, 1] pixels."),
                _steps(3),
            ),
            can=_DENOISER,
        ),
    )
}
# fmt: on
