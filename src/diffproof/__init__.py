"""diffproof: certified and empirical robustness of image classifiers with diffusion models.

Everything a user needs is in this namespace and loads on first use, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffproof.attacks.autoattack import AutoAttack as AutoAttack
    from diffproof.attacks.diagnostics import diagnose as diagnose
    from diffproof.attacks.diffattack import DiffAttack as DiffAttack
    from diffproof.attacks.evaluation import Evaluated as Evaluated
    from diffproof.attacks.evaluation import evaluate as evaluate
    from diffproof.attacks.evaluation import scores as scores
    from diffproof.attacks.finding import Finding as Finding
    from diffproof.attacks.lagrange import Lagrange as Lagrange
    from diffproof.attacks.low_frequency import LowFrequency as LowFrequency
    from diffproof.attacks.named import attack as attack
    from diffproof.attacks.named import load_attack as load_attack
    from diffproof.attacks.pgd import PGD as PGD
    from diffproof.attacks.protocols import load_protocol as load_protocol
    from diffproof.attacks.result import AttackResult as AttackResult
    from diffproof.attacks.similarity import gradient_similarity as gradient_similarity
    from diffproof.attacks.square import Square as Square
    from diffproof.attacks.stadv import StAdv as StAdv
    from diffproof.attacks.threat import L2 as L2
    from diffproof.attacks.threat import Flow as Flow
    from diffproof.attacks.threat import Linf as Linf
    from diffproof.attacks.threat import load_threat as load_threat
    from diffproof.attacks.views import AttackedDefense as AttackedDefense
    from diffproof.attacks.views import GradientMode as GradientMode
    from diffproof.calibration import Reliability as Reliability
    from diffproof.calibration import fit_temperature as fit_temperature
    from diffproof.calibration import reliability as reliability
    from diffproof.classifiers.named import load_classifier as load_classifier
    from diffproof.classifiers.preprocessing import Resize as Resize
    from diffproof.classifiers.protocol import Classifier as Classifier
    from diffproof.data.images import ImageData as ImageData
    from diffproof.data.named import load_data as load_data
    from diffproof.defenses.agdm import AGDM as AGDM
    from diffproof.defenses.coup import COUP as COUP
    from diffproof.defenses.dds import DDS as DDS
    from diffproof.defenses.densepure import DensePure as DensePure
    from diffproof.defenses.diffpure import DiffPure as DiffPure
    from diffproof.defenses.diffusion_classifier import DiffusionClassifier as DiffusionClassifier
    from diffproof.defenses.diffusion_loss import DiffusionLoss as DiffusionLoss
    from diffproof.defenses.gdmp import GDMP as GDMP
    from diffproof.defenses.gradual import GradualNoise as GradualNoise
    from diffproof.defenses.likelihood import LikelihoodMaximization as LikelihoodMaximization
    from diffproof.defenses.named import load_defense as load_defense
    from diffproof.defenses.protocol import CertifiableDefense as CertifiableDefense
    from diffproof.defenses.protocol import Defense as Defense
    from diffproof.defenses.purification import Purification as Purification
    from diffproof.defenses.purifier import Purifier as Purifier
    from diffproof.defenses.rdc import RDC as RDC
    from diffproof.defenses.undefended import Undefended as Undefended
    from diffproof.denoisers.diffusers import from_unet as from_unet
    from diffproof.denoisers.empirical import EmpiricalDenoiser as EmpiricalDenoiser
    from diffproof.denoisers.gaussian_mixture import GaussianMixtureDenoiser as GaussianMixtureDenoiser
    from diffproof.denoisers.named import load_denoiser as load_denoiser
    from diffproof.denoisers.network import NetworkDenoiser as NetworkDenoiser
    from diffproof.denoisers.protocol import Denoiser as Denoiser
    from diffproof.denoisers.schedules import DiscreteSchedule as DiscreteSchedule
    from diffproof.denoisers.schedules import VarianceExplodingSchedule as VarianceExplodingSchedule
    from diffproof.denoisers.schedules import VariancePreservingSchedule as VariancePreservingSchedule
    from diffproof.noise import Noise as Noise
    from diffproof.noise import Stream as Stream
    from diffproof.reverse import Solver as Solver
    from diffproof.reverse import StepRule as StepRule
    from diffproof.reverse import one_shot as one_shot
    from diffproof.reverse import posterior_sample as posterior_sample
    from diffproof.reverse import select_sigmas as select_sigmas
    from diffproof.runs.reliability import save_reliability as save_reliability
    from diffproof.smoothing.bounds import Bound as Bound
    from diffproof.smoothing.certificate import Certificate as Certificate
    from diffproof.smoothing.smoothed import Smoothed as Smoothed

_HOMES = {
    "AGDM": "defenses.agdm",
    "AttackResult": "attacks.result",
    "AttackedDefense": "attacks.views",
    "AutoAttack": "attacks.autoattack",
    "Bound": "smoothing.bounds",
    "COUP": "defenses.coup",
    "CertifiableDefense": "defenses.protocol",
    "Certificate": "smoothing.certificate",
    "Classifier": "classifiers.protocol",
    "DDS": "defenses.dds",
    "Defense": "defenses.protocol",
    "Denoiser": "denoisers.protocol",
    "DensePure": "defenses.densepure",
    "DiffAttack": "attacks.diffattack",
    "DiffPure": "defenses.diffpure",
    "DiffusionClassifier": "defenses.diffusion_classifier",
    "DiffusionLoss": "defenses.diffusion_loss",
    "DiscreteSchedule": "denoisers.schedules",
    "EmpiricalDenoiser": "denoisers.empirical",
    "Evaluated": "attacks.evaluation",
    "Finding": "attacks.finding",
    "Flow": "attacks.threat",
    "GDMP": "defenses.gdmp",
    "GaussianMixtureDenoiser": "denoisers.gaussian_mixture",
    "GradientMode": "attacks.views",
    "GradualNoise": "defenses.gradual",
    "ImageData": "data.images",
    "L2": "attacks.threat",
    "Lagrange": "attacks.lagrange",
    "LikelihoodMaximization": "defenses.likelihood",
    "Linf": "attacks.threat",
    "LowFrequency": "attacks.low_frequency",
    "NetworkDenoiser": "denoisers.network",
    "Noise": "noise",
    "PGD": "attacks.pgd",
    "Purification": "defenses.purification",
    "Purifier": "defenses.purifier",
    "RDC": "defenses.rdc",
    "Reliability": "calibration",
    "Resize": "classifiers.preprocessing",
    "Smoothed": "smoothing.smoothed",
    "Solver": "reverse",
    "Square": "attacks.square",
    "StAdv": "attacks.stadv",
    "StepRule": "reverse",
    "Stream": "noise",
    "Undefended": "defenses.undefended",
    "VarianceExplodingSchedule": "denoisers.schedules",
    "VariancePreservingSchedule": "denoisers.schedules",
    "attack": "attacks.named",
    "diagnose": "attacks.diagnostics",
    "evaluate": "attacks.evaluation",
    "fit_temperature": "calibration",
    "from_unet": "denoisers.diffusers",
    "gradient_similarity": "attacks.similarity",
    "load_attack": "attacks.named",
    "load_classifier": "classifiers.named",
    "load_data": "data.named",
    "load_defense": "defenses.named",
    "load_denoiser": "denoisers.named",
    "load_protocol": "attacks.protocols",
    "load_threat": "attacks.threat",
    "one_shot": "reverse",
    "posterior_sample": "reverse",
    "reliability": "calibration",
    "save_reliability": "runs.reliability",
    "scores": "attacks.evaluation",
    "select_sigmas": "reverse",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffproof' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffproof.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
