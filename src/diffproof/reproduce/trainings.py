"""Networks that a table needs and a user may not have: the command that trains each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Members of the ensemble: Horváth et al. 2022 take 10.
_MEMBERS = 10
_OBJECTIVES = ("gaussian", "stability", "smoothadv", "macer", "consistency", "smoothmix", "cat-rs")
_NOISED = re.compile(rf"({'|'.join(_OBJECTIVES)}|boosting|finetuned)@([\d.]+)")
# Salman et al. 2020: before a classifier that may not be known.
_DENOISED = re.compile(r"denoised@([\d.]+)")
_ADVERSARIAL = {
    "at-linf": ("pgd", "linf", "8/255"),
    "at-l2": ("pgd", "l2", "0.5"),
}
_GUIDE = re.compile(r"guide@([\d.]+)")


@dataclass(frozen=True)
class Training:
    """How a network is made.

    Attributes:
        role: which one.
        words: of the command, but for data, output and what `needs` adds.
        needs: roles that it starts from, given as the flags of these names.
        members: how many networks of further seeds answer together; 1 for a single one.
    """

    role: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    members: int = 1

    def _paths(self, folder: Path) -> list[Path]:
        if self.members == 1:
            return [folder / f"{self.role}.safetensors"]
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
            given: the specs of `needs`.
        """
        flags = tuple(word for role, spec in given.items() for word in (f"--{role}", spec))
        return [
            ((*self.words, *flags, *(("--seed", str(seed)) if self.members > 1 else ())), path)
            for seed, path in enumerate(self._paths(folder))
        ]


def training(role: str) -> Training | None:
    """How the network of a role is trained; None for one that a user has to bring."""
    if found := _NOISED.fullmatch(role):
        kind, sigma = found.groups()
        if kind == "finetuned":
            return Training(role, ("finetune", "--sigma", sigma), ("classifier", "denoiser"))
        if kind == "boosting":
            return Training(role, _noised("gaussian", sigma), members=_MEMBERS)
        return Training(role, _noised(kind, sigma))
    if found := _DENOISED.fullmatch(role):
        return Training(role, ("train", "denoiser", "--single-sigma", found[1], "--objective", "mse"))
    if role in _ADVERSARIAL:
        method, norm, budget = _ADVERSARIAL[role]
        words = ("train", "classifier", "--adversarial", method, "--norm", norm, "--budget", budget)
        return Training(role, words)
    if role == "pat":
        return Training(role, ("train", "classifier", "--adversarial", "pat"))
    if role == "jem":
        # Grathwohl et al. add noise of 0.03 to pixels in [−1, 1].
        return Training(role, _noised("jem", "0.015"))
    if role == "guide":
        return Training(role, ("train", "guide"))
    if found := _GUIDE.fullmatch(role):
        return Training(role, ("train", "guide", "--trades-weight", found[1]))
    return None


def _noised(objective: str, sigma: str) -> tuple[str, ...]:
    return ("train", "classifier", "--objective", objective, "--noise-sigma", sigma)
