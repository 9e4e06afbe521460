"""Networks that a table needs and a user may not have: the command that trains each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Members of the ensemble: Horváth et al. 2022 take 10.
_MEMBERS = 10
_OBJECTIVES = ("gaussian", "stability", "smoothadv", "macer", "consistency", "smoothmix", "cat-rs")
_NOISED = re.compile(rf"({'|'.join(_OBJECTIVES)}|boosting|finetuned)@([\d.]+)")
# Salman et al. 2020: for pixels first, then for the classifier's labels.
_DENOISED = re.compile(r"(mse|denoised)@([\d.]+)")
_GUIDE = re.compile(r"guide@([\d.]+)")
_LINF, _L2 = ("linf", "8/255"), ("l2", "0.5")
# Laidlaw et al. 2021, whose rows AGDM's table 5 has.
_ADVERSARIAL = {"at-linf": _LINF, "at-l2": ("l2", "1.0")}
# Wang et al. 2023: from the table's diffusion model, or from EDM's.
_GENERATED = {
    "at-ddpm": ("generated", *_LINF),
    "at-ddpm-l2": ("generated", *_L2),
    "at-edm": ("generated-edm", *_LINF),
    "at-edm-l2": ("generated-edm", *_L2),
}
_SHARE = "0.7"
# Grathwohl et al. 2020 add noise of 0.03 to pixels in [−1, 1].
_JEM_SIGMA = "0.015"


@dataclass(frozen=True)
class Training:
    """How a network, or a set of images to train one on, is made.

    Attributes:
        role: which one.
        words: of the command, but for data, output and what `needs` adds.
        needs: roles that it starts from, by the flag that each is given as.
        members: how many networks of further seeds answer together; 1 for a single one.
    """

    role: str
    words: tuple[str, ...]
    needs: Mapping[str, str] = field(default_factory=dict)
    members: int = 1

    @property
    def generates(self) -> bool:
        """Whether it makes images, not a network."""
        return self.words[0] == "sample"

    def _paths(self, folder: Path) -> list[Path]:
        if self.members == 1:
            return [folder / f"{self.role}{'.npz' if self.generates else '.safetensors'}"]
        return [folder / f"{self.role}-{seed}.safetensors" for seed in range(self.members)]

    def spec(self, folder: Path) -> str:
        """The network's spec once it is trained.

        Args:
            folder: where its weights are written.
        """
        paths = [str(path) for path in self._paths(folder)]
        return paths[0] if self.members == 1 else f"ensemble:{','.join(paths)}"

    def commands(self, folder: Path, given: Mapping[str, str]) -> list[tuple[tuple[str, ...], Path]]:
        """The commands, but for data and output, and the files that they write.

        Args:
            folder: where.
            given: the specs of `needs` by their flags.
        """
        flags = tuple(word for name, spec in given.items() for word in (f"--{name}", spec))
        return [
            ((*self.words, *flags, *(("--seed", str(seed)) if self.members > 1 else ())), path)
            for seed, path in enumerate(self._paths(folder))
        ]


def training(role: str) -> Training | None:
    """How the network of a role is trained; None for one that a user has to bring."""
    if found := _NOISED.fullmatch(role):
        kind, sigma = found.groups()
        if kind == "finetuned":
            both = {"classifier": "classifier", "denoiser": "denoiser"}
            return Training(role, ("finetune", "--sigma", sigma), both)
        if kind == "boosting":
            return Training(role, _noised("gaussian", sigma), members=_MEMBERS)
        return Training(role, _noised(kind, sigma))
    if found := _DENOISED.fullmatch(role):
        kind, sigma = found.groups()
        if kind == "mse":
            return Training(role, ("train", "denoiser", "--single-sigma", sigma, "--objective", "mse"))
        start = {"denoiser": f"mse@{sigma}", "classifier": "classifier"}
        return Training(role, ("train", "denoiser", "--objective", "stab"), start)
    if found := _GUIDE.fullmatch(role):
        return Training(role, ("train", "guide", "--trades-weight", found[1]))
    if role in _GENERATED:
        extra, norm, budget = _GENERATED[role]
        return Training(role, _on_generated(norm, budget), {"extra-data": extra})
    if role in _ADVERSARIAL:
        norm, budget = _ADVERSARIAL[role]
        return Training(role, ("train", "classifier", *_against("pgd", norm, budget)))
    return _NAMED.get(role)


def _noised(objective: str, sigma: str) -> tuple[str, ...]:
    return ("train", "classifier", "--objective", objective, "--noise-sigma", sigma)


def _against(method: str, norm: str, budget: str) -> tuple[str, ...]:
    return ("--adversarial", method, "--norm", norm, "--budget", budget)


def _on_generated(norm: str, budget: str) -> tuple[str, ...]:
    trades = (*_against("trades", norm, budget), "--trades-weight", "5", "--label-smoothing", "0.1")
    return ("train", "classifier", *trades, "--extra-share", _SHARE, "--ema-decay", "0.995")


_NAMED = {
    made.role: made
    for made in (
        Training("generated", ("sample",), {"denoiser": "denoiser"}),
        Training("generated-edm", ("sample",), {"denoiser": "edm"}),
        Training("pat", ("train", "classifier", "--adversarial", "pat")),
        Training("jem", _noised("jem", _JEM_SIGMA)),
        Training("hybvit", ("train", "classifier", "--objective", "hybvit")),
        Training("multi-head", ("train", "denoiser", "--multi-head")),
        Training("guide", ("train", "guide")),
    )
}


def with_starts(roles: Iterable[str]) -> list[str]:
    """Roles, and those that their trainings start from."""
    found: list[str] = []
    for role in roles:
        made = training(role)
        found += [role, *(with_starts(made.needs.values()) if made else ())]
    return list(dict.fromkeys(found))


def images_seen(iterations: int, batch_size: int = 128) -> int:
    """How many generated images a training on them draws: more would not be seen."""
    return round(float(_SHARE) * iterations * batch_size)
