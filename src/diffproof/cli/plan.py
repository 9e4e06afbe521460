"""diffproof plan: what a run will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from diffproof.cli.attack import attack
from diffproof.cli.certify import certify
from diffproof.cli.flags import Command, Group, json_option
from diffproof.cli.run_options import WORKER_FLAGS, settle_seed, tell_layout
from diffproof.cli.screen import print_json, said
from diffproof.wording import counted, duration, rounded

if TYPE_CHECKING:
    from diffproof.runs.plan import Costs, Plan


_BLANK = "\n\n"


@click.group(cls=Group)
def plan() -> None:
    """Say what a run would take: evaluations of networks, time, disk.

    Put `plan` before the words of a run, and leave out its folder:

    \b
      diffproof plan certify --data digits --denoiser digits \\
          --classifier digits --defense dds --sigma 0.5 --workers 4

    The images are read; then, for a few seconds, the run's networks are called on draws of some of them, in
    its batches and precision. Nothing is written. Each worker is taken to have a device like this one.
    """


def _planned(of: click.Command, does: str) -> Callable[[Callable[..., None]], Command]:
    """A command of `plan` with the flags of another, but for the folder that it would write."""

    def decorate(function: Callable[..., None]) -> Command:
        options: list[click.Parameter] = [
            *(one for one in of.params if one.name not in ("out", *WORKER_FLAGS)),
            next(one for one in certify.params if one.name == "workers"),
            # That of json_option.
            *getattr(function, "__click_params__", ()),
        ]
        made = Command(
            of.name,
            params=options,
            callback=function,
            # With what the flags may name, the second paragraph of every such help.
            help=f"Say what `{does}` with these flags would take.\n\n{(of.help or '').split(_BLANK)[1]}",
            context_settings={"show_default": True},
        )
        plan.add_command(made)
        return made

    return decorate


@_planned(certify, "diffproof certify")
@json_option
def plan_certify(workers: int | str | None, as_json: bool, **flags: Any) -> None:
    """Print the plan of a certification run."""
    began = time.perf_counter()
    from diffproof.runs.certify.job import prepare
    from diffproof.runs.certify.plan import certify_costs
    from diffproof.runs.settings import CertifySettings

    settle_seed(flags)
    settings, asked = CertifySettings(**flags), _number(workers, flags["device"])
    started = time.perf_counter()
    job = prepare(settings)
    tell_layout(job.data)
    job.data.fingerprint(job.indices)  # As the run does, whose images must be readable and of one size.
    costs = certify_costs(job, time.perf_counter() - started, started - began)
    ends = settings.stop != "fixed"
    remarks = []
    if settings.until_half_width is not None:
        remarks.append("of all images; the run ends when certified accuracy is known")
    if settings.radii is not None and ends:
        remarks.append(f"asked for radii {settings.radii}")
    else:
        n = f"{settings.stop} n" if ends else "n"
        radius = f"largest radius that {n} = {settings.n:,} and alpha = {settings.alpha:g} allow"
        small = ": n is too small" * (job.largest_radius <= 0)
        remarks.append(f"{radius}: {job.largest_radius:.4f}{small}")
    most = f"if no {'draws' if ends else 'vote'} were stopped early"
    _tell(costs, asked, most, remarks, as_json, largest_radius=job.largest_radius)


@_planned(attack, "diffproof attack")
@json_option
def plan_attack(workers: int | str | None, as_json: bool, **flags: Any) -> None:
    """Print the plan of an attack run."""
    began = time.perf_counter()
    from diffproof.runs.attack.job import prepare
    from diffproof.runs.attack.plan import attack_costs
    from diffproof.runs.settings import AttackRequest

    settle_seed(flags)
    request, asked = AttackRequest(**flags), _number(workers, flags["device"])
    started = time.perf_counter()
    job = prepare(request)
    tell_layout(job.data)
    job.data.fingerprint(job.indices)  # As the run does, whose images must be readable and of one size.
    costs = attack_costs(job, time.perf_counter() - started, started - began)
    remarks = []
    if asked is not None and costs.on(asked).busy < asked:
        remarks.append(f"images are attacked in {counted(costs.units, 'group')}, --batch-size rows together")
    _tell(costs, asked, "if every image is attacked, to the end", remarks, as_json)


def _number(workers: int | str | None, device: str) -> int | None:
    """How many workers are asked for; `auto` is as many as this machine has places for."""
    from diffproof.scale.cluster import gpus
    from diffproof.scale.workforce import Workforce, cores, places

    if workers is None:
        return None
    asked = Workforce(workers=workers)
    return places(asked, cores(), gpus(), device=device).workers if workers == "auto" else int(workers)


def _tell(
    costs: Costs, workers: int | None, most: str, remarks: list[str], as_json: bool, **more: float
) -> None:
    """Evaluations, and time and disk in one process and on workers."""
    alone = costs.on()
    shared = None if workers is None else costs.on(workers)
    if as_json:
        print_json({"costs": costs, "alone": alone, "shared": shared, **more, "remarks": remarks})
        return
    rest = f", {alone.most_evaluations:,} {most}" * (alone.evaluations != alone.most_evaluations)
    said(f"{counted(costs.images, 'image')}: {alone.evaluations:,} evaluations of networks{rest}")
    _print_on(alone, "one process")
    if shared is not None:
        idle = f", {shared.busy:,} of them with something to do" * (shared.busy != workers)
        _print_on(shared, f"{counted(shared.workers or 0, 'worker')}{idle}")
    for remark in remarks:
        said(remark)


def _print_on(plan: Plan, where: str) -> None:
    low, expected, high = map(duration, plan.seconds)
    said(f"{where}: about {expected} ({low} to {high}), at most {_size(plan.size)} on disk")


def _size(size: int) -> str:
    """Two digits or more: "6.2 MB"."""
    unit, length = next((one for one in (("GB", 1e9), ("MB", 1e6)) if size >= one[1]), ("kB", 1e3))
    return f"{rounded(size / length)} {unit}"
