"""What a user brings to a table: data, networks by their roles, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffproof.reproduce.quick import BATCH, CHANNELS, IMAGES, MEMBERS, quick
from diffproof.reproduce.trainings import Training, training, with_starts
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
        common: those that every certification and attack gets besides.
        training: flags of every training; None trains nothing.
        samples: images that are generated for the trainings on such.
        n: draws of a certificate; None for the paper's.
        stop: when draws end, see `diffproof certify --stop`.
        attack: in place of the paper's attacks on pixels; None for those.
        quick: whether sizes are cut down to try a table out.
    """

    data: str
    networks: Mapping[str, str]
    out: Path
    images: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    training: tuple[str, ...] | None = None
    samples: int = 1_000_000
    n: int | None = None
    stop: str = "fixed"
    attack: str | None = None
    quick: bool = False

    @property
    def seeded(self) -> tuple[str, ...]:
        """Flags of every certification and attack; of one seed, so that images see the same noise in all."""
        return ("--seed", "0", *self.common)

    def chosen(self, count: int) -> tuple[str, ...]:
        """Flags that choose the images of a run: those asked for, or evenly as many as the paper takes."""
        if self.images:
            return self.images
        if self.quick:
            return ("--limit", str(IMAGES))
        if self.data in _EVERY:
            step = _EVERY[self.data] // count
            return ("--indices", f"0:{count * step}:{step}")
        return ("--limit", str(count))

    @property
    def made(self) -> Path:
        """Where networks are written; those of small sizes are not taken for others."""
        return self.out / ("networks-quick" if self.quick else "networks")

    def spec(self, role: str) -> str | None:
        """The network of a role: the user's, or where its training writes it; None where there is neither."""
        if role in self.networks:
            return self.networks[role]
        made = self._training(role)
        return None if made is None or self.lacking((role,)) else made.spec(self.made)

    def lacking(self, roles: Iterable[str]) -> list[str]:
        """Those of the roles, and of what their trainings start from, that nothing fills."""
        found: list[str] = []
        for role in roles:
            made = training(role)
            if role in self.networks:
                continue
            found += [role] if made is None or self.training is None else self.lacking(made.needs.values())
        return list(dict.fromkeys(found))

    def lacks(self, roles: Sequence[str]) -> str:
        """What is said of a row whose networks are not there.

        Args:
            roles: of these.
        """
        told = [flag(role) for role in roles]
        some = " and ".join(told) if len(told) <= 3 else f"{counted(len(told), 'network')}: {', '.join(told)}"
        if any(training(role) is None for role in roles):
            return f"needs {some}"
        starts = [role for role in with_starts(roles) if training(role) is None and role not in self.networks]
        return f"needs {some}, or --train" + f" with {' and '.join(map(flag, starts))}" * bool(starts)

    def trainings(self, roles: Iterable[str]) -> list[Step]:
        """The commands that make the networks of these roles that the user does not bring."""
        steps: list[Step] = []
        for role in roles:
            made = None if role in self.networks or self.training is None else self._training(role)
            if made is None:
                continue
            steps.extend(self.trainings(made.needs.values()))
            given = {name: self.spec(start) or "" for name, start in made.needs.items()}
            for words, path in made.commands(self.made, given):
                steps.append(Step(self._sized(words), path))
        return list(dict.fromkeys(steps))

    def _training(self, role: str) -> Training | None:
        made = training(role)
        return replace(made, members=min(made.members, MEMBERS)) if made and self.quick else made

    def _sized(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """The words of a training with its data and sizes."""
        assert self.training is not None
        if words[0] == "sample":
            at = self.training.index("--device")
            steps = ("--steps", "2") if self.quick else ()
            return (*words, "--n", str(self.samples), *steps, *self.training[at : at + 2])
        if self.quick and words[1] == "classifier" and "--objective" in words:
            at = words.index("--objective") + 1
            words = (*words[:at], quick("objective", words[at]), *words[at + 1 :])
        sizes = ("--batch-size", str(BATCH)) if self.quick else ()
        if self.quick and words[1] == "denoiser" and "--denoiser" not in words:
            sizes = (*sizes, "--channels", CHANNELS)
        return (*words, "--data", self.data, *sizes, *self.training)


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
        """Whether it makes weights, or images for them, which are not made again."""
        return self.words[0] in ("train", "finetune", "sample")

    @property
    def line(self) -> tuple[str, ...]:
        """All its words."""
        return (*self.words, "--out", str(self.out))


def flag(role: str) -> str:
    """The flag that gives the network of a role."""
    return f"--{role} SPEC" if role in ("classifier", "denoiser", "guide") else f"--network {role}=SPEC"
