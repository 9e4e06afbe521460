"""diffproof plan: what a run will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from diffproof.cli.attack import attack
from diffproof.cli.certify import certify
from diffproof.cli.flags import Command, Group
from diffproof.cli.run_options import WORKER_FLAGS, tell_layout
from diffproof.cli.screen import said

if TYPE_CHECKING:
    from diffproof.runs.plan import Costs, Plan


_BLANK = "\n\n"


@click.group(cls=Group)
def plan() -> None:
    """Say what a run would take: evaluations of networks, time, disk.

    Put `plan` before the words of a run, and leave out its folder:

    \b
      diffproof plan certify --data digits --denoiser digits \\
          --classifier digits --defense dds --sigma 0.5 --devices 4

    The images are read; then, for a few seconds, the run's networks are called on draws of some of them, in
    its batches and precision. Nothing is written.
    """


def _planned(of: click.Command, does: str) -> Callable[[Callable[..., None]], Command]:
    """A command of `plan` with the flags of another, but for the folder that it would write."""

    def decorate(function: Callable[..., None]) -> Command:
        devices = click.Option(
            ["--devices"], default=1, help="Share the images among this many devices like this one, ≥ 1."
        )
        made = Command(
            of.name,
            params=[*(one for one in of.params if one.name not in ("out", *WORKER_FLAGS)), devices],
            callback=function,
            # With what the flags may name, the second paragraph of every such help.
            help=f"Say what `{does}` with these flags would take.\n\n{(of.help or '').split(_BLANK)[1]}",
            context_settings={"show_default": True},
        )
        plan.add_command(made)
        return made

    return decorate


@_planned(certify, "diffproof certify")
def plan_certify(devices: int, **flags: Any) -> None:
    """Print the plan of a certification run."""
    from diffproof.checks import check_at_least
    from diffproof.runs.certify.job import prepare
    from diffproof.runs.certify.plan import certify_costs
    from diffproof.runs.settings import CertifySettings

    check_at_least("devices", devices, 1)
    started, settings = time.perf_counter(), CertifySettings(**flags)
    job = prepare(settings)
    tell_layout(job.data)
    job.data.fingerprint(job.indices)  # As the run does, whose images must be readable and of one size.
    costs = certify_costs(job, time.perf_counter() - started)
    ends = settings.stop != "fixed"
    _print(costs, devices, f"if no {'draws' if ends else 'vote'} were stopped early")
    if settings.until_half_width is not None:
        said("of all images; the run ends when certified accuracy is known")
    if settings.radii is not None and ends:
        said(f"asked for radii {settings.radii}")
        return
    n = f"{settings.stop} n" if ends else "n"
    radius = f"largest radius that {n} = {settings.n:,} and alpha = {settings.alpha:g} allow"
    said(f"{radius}: {job.largest_radius:.4f}{': n is too small' * (job.largest_radius <= 0)}")


@_planned(attack, "diffproof attack")
def plan_attack(devices: int, **flags: Any) -> None:
    """Print the plan of an attack run."""
    from diffproof.checks import check_at_least
    from diffproof.runs.attack.job import prepare
    from diffproof.runs.attack.plan import attack_costs
    from diffproof.runs.settings import AttackRequest

    check_at_least("devices", devices, 1)
    started = time.perf_counter()
    job = prepare(AttackRequest(**flags))
    tell_layout(job.data)
    job.data.fingerprint(job.indices)  # As the run does, whose images must be readable and of one size.
    costs = attack_costs(job, time.perf_counter() - started)
    _print(costs, devices, "if every image is attacked, to the end")


def _print(costs: Costs, devices: int, most: str) -> None:
    """Evaluations, and time and disk on one device and on several."""
    from diffproof.wording import counted

    alone = costs.on(1)
    rest = f", {alone.most_evaluations:,} {most}" * (alone.evaluations != alone.most_evaluations)
    said(f"{counted(alone.images, 'image')}: {alone.evaluations:,} evaluations of networks{rest}")
    _print_on(alone, "one device")
    shared = costs.on(devices)
    if devices > 1:
        _print_on(
            shared, f"{counted(shared.devices, 'device')}, at most {counted(shared.images, 'image')} each"
        )


def _print_on(plan: Plan, where: str) -> None:
    from diffproof.wording import duration

    low, expected, high = map(duration, plan.seconds)
    said(f"{where}: about {expected} ({low} to {high}), at most {_size(plan.size)} on disk")


def _size(size: int) -> str:
    """Two digits or more: "6.2 MB"."""
    from diffproof.wording import rounded

    unit, length = next((one for one in (("GB", 1e9), ("MB", 1e6)) if size >= one[1]), ("kB", 1e3))
    return f"{rounded(size / length)} {unit}"
