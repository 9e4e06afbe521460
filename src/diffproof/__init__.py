"""diffproof: certified and empirical robustness of image classifiers with diffusion models.

Everything a user needs is in this namespace and loads on first use, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffproof.classifiers.named import load_classifier as load_classifier
    from diffproof.classifiers.preprocessing import Resize as Resize
    from diffproof.classifiers.protocol import Classifier as Classifier
    from diffproof.data.images import ImageData as ImageData
    from diffproof.data.named import load_data as load_data
    from diffproof.defenses.dds import DDS as DDS
    from diffproof.defenses.densepure import DensePure as DensePure
    from diffproof.defenses.named import load_defense as load_defense
    from diffproof.defenses.protocol import Defense as Defense
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
    from diffproof.reverse import StepRule as StepRule
    from diffproof.reverse import one_shot as one_shot
    from diffproof.reverse import posterior_sample as posterior_sample
    from diffproof.reverse import select_sigmas as select_sigmas
    from diffproof.smoothing.bounds import Bound as Bound
    from diffproof.smoothing.certificate import Certificate as Certificate
    from diffproof.smoothing.smoothed import Smoothed as Smoothed

_HOMES = {
    "Bound": "smoothing.bounds",
    "Certificate": "smoothing.certificate",
    "Classifier": "classifiers.protocol",
    "DDS": "defenses.dds",
    "Defense": "defenses.protocol",
    "Denoiser": "denoisers.protocol",
    "DensePure": "defenses.densepure",
    "DiscreteSchedule": "denoisers.schedules",
    "EmpiricalDenoiser": "denoisers.empirical",
    "GaussianMixtureDenoiser": "denoisers.gaussian_mixture",
    "ImageData": "data.images",
    "NetworkDenoiser": "denoisers.network",
    "Noise": "noise",
    "Resize": "classifiers.preprocessing",
    "Smoothed": "smoothing.smoothed",
    "StepRule": "reverse",
    "Stream": "noise",
    "Undefended": "defenses.undefended",
    "VarianceExplodingSchedule": "denoisers.schedules",
    "VariancePreservingSchedule": "denoisers.schedules",
    "from_unet": "denoisers.diffusers",
    "load_classifier": "classifiers.named",
    "load_data": "data.named",
    "load_defense": "defenses.named",
    "load_denoiser": "denoisers.named",
    "one_shot": "reverse",
    "posterior_sample": "reverse",
    "select_sigmas": "reverse",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffproof' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffproof.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
