"""What a user brings to a table: data, networks by their roles, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffproof.reproduce.quick import IMAGES
from diffproof.reproduce.trainings import training
from diffproof.wording import counted

# Test images that the papers take, of the data sets that they take them of.
_EVERY = {"cifar10": 10_000, "imagenet": 50_000}


@dataclass(frozen=True)
class Request:
    """What a user brings.

    Attributes:
        data: the data set.
        networks: specs by role: "classifier", "denoiser", "guide", or another that a table names.
        out: the folder of all runs.
        images: flags that choose images; () for as many as the paper takes.
        common: further flags of every certification and attack.
        training: flags of every training; None trains nothing.
        n: draws of a certificate; None for the paper's.
        stop: when draws end, see `diffproof certify --stop`.
        quick: whether sizes are cut down to try a table out.
    """

    data: str
    networks: Mapping[str, str]
    out: Path
    images: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    training: tuple[str, ...] | None = None
    n: int | None = None
    stop: str = "fixed"
    quick: bool = False

    def chosen(self, count: int) -> tuple[str, ...]:
        """Flags that choose the images of a run: those asked for, or evenly as many as the paper takes."""
        if self.images:
            return self.images
        if self.quick:
            return ("--limit", str(IMAGES))
        if self.data in _EVERY:
            images = _EVERY[self.data]
            return ("--indices", f"0:{images}:{images // count}")
        return ("--limit", str(count))

    def spec(self, role: str) -> str | None:
        """The network of a role: the user's, or where its training writes it; None where there is neither."""
        if role in self.networks:
            return self.networks[role]
        if self.training is None:
            return None
        made = training(role)
        return None if made is None else made.spec(self.out / "networks")

    def lacking(self, roles: tuple[str, ...]) -> list[str]:
        """Those of the roles that nothing fills."""
        return [role for role in roles if self.spec(role) is None]

    def trainings(self, roles: tuple[str, ...]) -> list[Step]:
        """The commands that make the networks of these roles that the user does not bring."""
        steps: list[Step] = []
        for role in roles:
            made = None if role in self.networks or self.training is None else training(role)
            if made is None:
                continue
            steps.extend(self.trainings(made.needs))
            given = {name: self.spec(name) or "" for name in made.needs}
            for words, path in made.commands(self.out / "networks", given):
                steps.append(Step((*words, "--data", self.data, *(self.training or ())), path))
        return list(dict.fromkeys(steps))


@dataclass(frozen=True)
class Step:
    """A command of diffproof.

    Attributes:
        words: of the command, but for --out.
        out: the run folder or the weights file that it makes.
    """

    words: tuple[str, ...]
    out: Path

    @property
    def trains(self) -> bool:
        """Whether it makes weights, which are not made again."""
        return self.words[0] in ("train", "finetune")

    @property
    def line(self) -> tuple[str, ...]:
        """All its words."""
        return (*self.words, "--out", str(self.out))


def lacks(roles: list[str]) -> str:
    """What is said of a row whose networks are not there."""
    flags = {"classifier", "denoiser", "guide"}
    told = [f"--{role} SPEC" if role in flags else f"--network {role}=SPEC" for role in roles]
    trained = all(training(role) is not None for role in roles)
    need = (
        f"needs {' and '.join(told)}"
        if len(told) <= 3
        else f"needs {counted(len(told), 'network')}: {', '.join(told)}"
    )
    return need + ", or --train" * trained
