"""diffproof: certified and empirical robustness of image classifiers with diffusion models.

Everything a user needs is in this namespace and loads on first use, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffproof.attacks.autoattack import AutoAttack as AutoAttack
    from diffproof.attacks.base import Attack as Attack
    from diffproof.attacks.base import Job as Job
    from diffproof.attacks.base import Traits as Traits
    from diffproof.attacks.diagnostics.diagnose import diagnose as diagnose
    from diffproof.attacks.diagnostics.finding import Finding as Finding
    from diffproof.attacks.diffattack import DiffAttack as DiffAttack
    from diffproof.attacks.evaluation import Evaluated as Evaluated
    from diffproof.attacks.evaluation import Evaluation as Evaluation
    from diffproof.attacks.evaluation import scores as scores
    from diffproof.attacks.expectation import Expectation as Expectation
    from diffproof.attacks.fast_lpa import FastLPA as FastLPA
    from diffproof.attacks.lagrange import Lagrange as Lagrange
    from diffproof.attacks.losses import Loss as Loss
    from diffproof.attacks.low_frequency import LowFrequency as LowFrequency
    from diffproof.attacks.named import attack as attack
    from diffproof.attacks.named import evaluate as evaluate
    from diffproof.attacks.named import load_attack as load_attack
    from diffproof.attacks.papers import load_protocol as load_protocol
    from diffproof.attacks.pgd import PGD as PGD
    from diffproof.attacks.result import AttackResult as AttackResult
    from diffproof.attacks.selective import Selective as Selective
    from diffproof.attacks.similarity import gradient_similarity as gradient_similarity
    from diffproof.attacks.square import Square as Square
    from diffproof.attacks.stadv import StAdv as StAdv
    from diffproof.attacks.threat import L2 as L2
    from diffproof.attacks.threat import Flow as Flow
    from diffproof.attacks.threat import Linf as Linf
    from diffproof.attacks.threat import Perceptual as Perceptual
    from diffproof.attacks.threat import PixelThreat as PixelThreat
    from diffproof.attacks.threat import Threat as Threat
    from diffproof.attacks.threat import load_threat as load_threat
    from diffproof.attacks.views import AttackedDefense as AttackedDefense
    from diffproof.attacks.views import GradientMode as GradientMode
    from diffproof.calibration.diagram import save_reliability as save_reliability
    from diffproof.calibration.measures import Reliability as Reliability
    from diffproof.calibration.measures import fit_temperature as fit_temperature
    from diffproof.calibration.measures import reliability as reliability
    from diffproof.classifiers.base import Classifier as Classifier
    from diffproof.classifiers.ensemble import EnsembleClassifier as EnsembleClassifier
    from diffproof.classifiers.named import load_classifier as load_classifier
    from diffproof.classifiers.preprocessing import Resize as Resize
    from diffproof.data.classes import match_classes as match_classes
    from diffproof.data.images import ImageData as ImageData
    from diffproof.data.named import load_data as load_data
    from diffproof.defenses.base import CertifiableDefense as CertifiableDefense
    from diffproof.defenses.base import Defense as Defense
    from diffproof.defenses.base import noise_for as noise_for
    from diffproof.defenses.dds import DDS as DDS
    from diffproof.defenses.densepure import DensePure as DensePure
    from diffproof.defenses.diffusion_classifier.classifier import DiffusionClassifier as DiffusionClassifier
    from diffproof.defenses.diffusion_classifier.loss import DiffusionLoss as DiffusionLoss
    from diffproof.defenses.diffusion_classifier.noised import APNDC as APNDC
    from diffproof.defenses.diffusion_classifier.noised import EPNDC as EPNDC
    from diffproof.defenses.diffusion_classifier.rdc import RDC as RDC
    from diffproof.defenses.labelling import Labelled as Labelled
    from diffproof.defenses.named import load_defense as load_defense
    from diffproof.defenses.purifying.adp import ADP as ADP
    from diffproof.defenses.purifying.agdm import AGDM as AGDM
    from diffproof.defenses.purifying.base import Purifier as Purifier
    from diffproof.defenses.purifying.coup import COUP as COUP
    from diffproof.defenses.purifying.diffpure import DiffPure as DiffPure
    from diffproof.defenses.purifying.gdmp import GDMP as GDMP
    from diffproof.defenses.purifying.gradual import GradualNoise as GradualNoise
    from diffproof.defenses.purifying.likelihood import LikelihoodMaximization as LikelihoodMaximization
    from diffproof.defenses.purifying.reverse_process import Purification as Purification
    from diffproof.defenses.score_classifier import SBGC as SBGC
    from diffproof.defenses.undefended import Undefended as Undefended
    from diffproof.denoisers.base import Denoiser as Denoiser
    from diffproof.denoisers.base import Estimate as Estimate
    from diffproof.denoisers.diffusers import from_unet as from_unet
    from diffproof.denoisers.empirical import EmpiricalDenoiser as EmpiricalDenoiser
    from diffproof.denoisers.gaussian_mixture import GaussianMixtureDenoiser as GaussianMixtureDenoiser
    from diffproof.denoisers.named import load_denoiser as load_denoiser
    from diffproof.denoisers.network import NetworkDenoiser as NetworkDenoiser
    from diffproof.denoisers.schedules import DiscreteSchedule as DiscreteSchedule
    from diffproof.denoisers.schedules import VarianceExplodingSchedule as VarianceExplodingSchedule
    from diffproof.denoisers.schedules import VariancePreservingSchedule as VariancePreservingSchedule
    from diffproof.errors import ArgumentError as ArgumentError
    from diffproof.noise import Noise as Noise
    from diffproof.noise import Stream as Stream
    from diffproof.reverse.levels import StepRule as StepRule
    from diffproof.reverse.levels import select_sigmas as select_sigmas
    from diffproof.reverse.sampling import one_shot as one_shot
    from diffproof.reverse.sampling import posterior_sample as posterior_sample
    from diffproof.reverse.solvers import Solver as Solver
    from diffproof.runs.opened import open_run as open_run
    from diffproof.smoothing.bounds import Bound as Bound
    from diffproof.smoothing.certificate import Certificate as Certificate
    from diffproof.smoothing.certification import Certification as Certification
    from diffproof.smoothing.certifier import certify as certify
    from diffproof.smoothing.scaled import DualSmoothed as DualSmoothed
    from diffproof.smoothing.scaled import MultiScale as MultiScale
    from diffproof.smoothing.smoothed import Smoothed as Smoothed
    from diffproof.training.objectives.base import Objective as Objective
    from diffproof.training.objectives.named import load_objective as load_objective

_HOMES = {
    "ADP": "defenses.purifying.adp",
    "AGDM": "defenses.purifying.agdm",
    "APNDC": "defenses.diffusion_classifier.noised",
    "ArgumentError": "errors",
    "Attack": "attacks.base",
    "AttackResult": "attacks.result",
    "AttackedDefense": "attacks.views",
    "AutoAttack": "attacks.autoattack",
    "Bound": "smoothing.bounds",
    "COUP": "defenses.purifying.coup",
    "CertifiableDefense": "defenses.base",
    "Certificate": "smoothing.certificate",
    "Certification": "smoothing.certification",
    "Classifier": "classifiers.base",
    "DDS": "defenses.dds",
    "Defense": "defenses.base",
    "Denoiser": "denoisers.base",
    "DensePure": "defenses.densepure",
    "DiffAttack": "attacks.diffattack",
    "DiffPure": "defenses.purifying.diffpure",
    "DiffusionClassifier": "defenses.diffusion_classifier.classifier",
    "DiffusionLoss": "defenses.diffusion_classifier.loss",
    "DiscreteSchedule": "denoisers.schedules",
    "DualSmoothed": "smoothing.scaled",
    "EPNDC": "defenses.diffusion_classifier.noised",
    "EmpiricalDenoiser": "denoisers.empirical",
    "EnsembleClassifier": "classifiers.ensemble",
    "Estimate": "denoisers.base",
    "Evaluated": "attacks.evaluation",
    "Evaluation": "attacks.evaluation",
    "Expectation": "attacks.expectation",
    "FastLPA": "attacks.fast_lpa",
    "Finding": "attacks.diagnostics.finding",
    "Flow": "attacks.threat",
    "GDMP": "defenses.purifying.gdmp",
    "GaussianMixtureDenoiser": "denoisers.gaussian_mixture",
    "GradientMode": "attacks.views",
    "GradualNoise": "defenses.purifying.gradual",
    "ImageData": "data.images",
    "Job": "attacks.base",
    "L2": "attacks.threat",
    "Labelled": "defenses.labelling",
    "noise_for": "defenses.base",
    "Lagrange": "attacks.lagrange",
    "LikelihoodMaximization": "defenses.purifying.likelihood",
    "Linf": "attacks.threat",
    "Loss": "attacks.losses",
    "LowFrequency": "attacks.low_frequency",
    "NetworkDenoiser": "denoisers.network",
    "MultiScale": "smoothing.scaled",
    "Noise": "noise",
    "Objective": "training.objectives.base",
    "PGD": "attacks.pgd",
    "Perceptual": "attacks.threat",
    "PixelThreat": "attacks.threat",
    "Purification": "defenses.purifying.reverse_process",
    "Purifier": "defenses.purifying.base",
    "RDC": "defenses.diffusion_classifier.rdc",
    "Reliability": "calibration.measures",
    "Resize": "classifiers.preprocessing",
    "SBGC": "defenses.score_classifier",
    "Selective": "attacks.selective",
    "Smoothed": "smoothing.smoothed",
    "Solver": "reverse.solvers",
    "Square": "attacks.square",
    "StAdv": "attacks.stadv",
    "StepRule": "reverse.levels",
    "Stream": "noise",
    "Threat": "attacks.threat",
    "Traits": "attacks.base",
    "Undefended": "defenses.undefended",
    "VarianceExplodingSchedule": "denoisers.schedules",
    "VariancePreservingSchedule": "denoisers.schedules",
    "attack": "attacks.named",
    "certify": "smoothing.certifier",
    "diagnose": "attacks.diagnostics.diagnose",
    "evaluate": "attacks.named",
    "fit_temperature": "calibration.measures",
    "from_unet": "denoisers.diffusers",
    "gradient_similarity": "attacks.similarity",
    "load_attack": "attacks.named",
    "load_classifier": "classifiers.named",
    "load_data": "data.named",
    "load_defense": "defenses.named",
    "load_denoiser": "denoisers.named",
    "load_objective": "training.objectives.named",
    "load_protocol": "attacks.papers",
    "load_threat": "attacks.threat",
    "match_classes": "data.classes",
    "one_shot": "reverse.sampling",
    "open_run": "runs.opened",
    "posterior_sample": "reverse.sampling",
    "reliability": "calibration.measures",
    "save_reliability": "calibration.diagram",
    "scores": "attacks.evaluation",
    "select_sigmas": "reverse.levels",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffproof' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffproof.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
