"""diffproof doctor: what is installed here, and whether it computes what it should."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from diffproof.cli.flags import command, device_option
from diffproof.cli.screen import said

if TYPE_CHECKING:
    from diffproof.doctor import Extra, Library, SelfTest


@command()
@device_option
def doctor(device: str) -> int:
    """Say what is installed here, and certify a digit to see that it computes what it should.

    Printed are the versions of diffproof and of the libraries that it needs, the extras with what they lack
    and the command that installs it, the devices, the folders of downloads, and the outcome of a self-test
    that takes some seconds: a packaged digit is certified, and every count of its draws must be the one that
    it is everywhere. The exit status is 1 if a library is missing or the self-test fails. Who asks for help
    shows this.
    """
    from diffproof.doctor import extras, platform_line, required
    from diffproof.version import version

    libraries = required()
    said(f"diffproof {version()}, {platform_line()}")
    said(f"needs: {_listed(libraries)}")
    for extra in extras():
        said(_of_extra(extra))
    lacking = [library for library in libraries if not library.fits]
    if lacking:
        named = " ".join(f"'{library.name}{library.wanted}'" for library in lacking)
        said(f"not tested: {_listed(lacking)}; pip install {named}")
        return 1
    return _computing(device)


def _computing(device: str) -> int:
    """What can be said once all is there that is needed."""
    from diffproof.doctor import caches, devices, self_test

    said(f"devices: {', '.join(devices())}")
    for cache in caches():
        taken = "nothing yet" if cache.bytes is None else f"{cache.bytes / 1e6:,.1f} MB"
        said(f"{cache.what}: {cache.folder} ({taken})")
    outcome = self_test(device)
    said(_of_test(outcome))
    return 0 if outcome.right else 1


def _listed(libraries: Iterable[Library]) -> str:
    return ", ".join(map(_named, libraries))


def _named(library: Library) -> str:
    if library.version is None:
        return f"{library.name} (missing)"
    return f"{library.name} {library.version}{'' if library.fits else f' (wanted: {library.wanted})'}"


def _of_extra(extra: Extra) -> str:
    how = "" if extra.complete else f"; {extra.install}"
    return f"extra {extra.name}: {_listed(extra.libraries)}{how}"


def _of_test(outcome: SelfTest) -> str:
    told = f"a digit has label {outcome.label} within {outcome.radius:.4f}, counts {outcome.counts}"
    where = f"self-test on {outcome.device} ({outcome.seconds:.1f} s)"
    if outcome.right:
        return f"{where}: passed; {told}, as everywhere"
    return f"{where}: failed; {told}, which is not what it is elsewhere: trust no result of this installation"
