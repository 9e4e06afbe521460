"""Errors name what the user typed; choices are shown as choices, and shells complete them."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

import diffproof.catalog as catalog
from diffproof.attacks.papers import PROTOCOLS
from diffproof.attacks.threat import THREATS, PixelThreat
from diffproof.attacks.views import GradientMode
from diffproof.cli.main import diffproof as command_group
from diffproof.denoisers.schedules import SCHEDULES
from diffproof.smoothing.bounds import Bound
from diffproof.smoothing.stopping import Stopping
from diffproof.training.adversarial import Method
from helpers.command_line import Refused

CERTIFY = "certify --data digits --classifier digits --out o"
DENSEPURE = f"{CERTIFY} --denoiser digits --sigma 0.5 --limit 1 --defense"
ATTACK = "attack --data digits --classifier digits --denoiser digits --out o --budget 0.1 --limit 1"
DIFFPURE = f"{ATTACK} --threat linf --defense diffpure:t_star=0.1"
TRAIN = "train denoiser --data digits --out o.safetensors"
PURIFY = "purify a.png --denoiser digits --out o"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{CERTIFY} --defense none --sigma 0", "--sigma: expected a finite number > 0"),
        (f"{CERTIFY} --defense none --sigma 1 --denoiser digits", "--denoiser: the method 'none' takes none"),
        (f"{ATTACK} --threat linf --defense none", "--denoiser: the method 'none' takes none"),
        (f"{DIFFPURE} --gradient bpda --attack square", "--gradient: square follows none, so bpda does n"),
        (f"{TRAIN} --extra-share 0.3", "--extra-share: is for --extra-data, which is not given"),
        (f"{CERTIFY} --defense none --sigma 1 --batch-size 0", "--batch-size: expected an integer ≥ 1"),
        (f"{CERTIFY} --defense none --sigma 1 --image-size 0", "--image-size: expected an integer ≥ 1"),
        (f"{CERTIFY} --defense none --sigma 1 --classifier no", "--classifier: unknown name 'no'"),
        (f"{CERTIFY} --defense none --sigma 1 --classifier a/b", "--classifier: weights: no such file: a/b"),
        (f"{DENSEPURE} densepure:steps=0", "--defense: steps: expected an integer ≥ 1, or full, got '0'"),
        (f"{DENSEPURE} densepure:votes=3,consensus=4", "--defense: consensus: expected consensus ≤ votes"),
        (f"{DENSEPURE} densepure:voets=3", "--defense: voets: no setting of the defense 'densepure'"),
        (f"{DENSEPURE} densepure:steps=999", "--defense: steps: the grid has "),
        # The flag --sigma is right here, the setting of that name is not.
        (f"{DENSEPURE} dds:sigma=0.5", "--defense: sigma: this setting of 'dds' does nothing to certify"),
        (f"{DENSEPURE} dss", "--defense: unknown name 'dss'; did you mean dds?"),
        (f"{DENSEPURE} dds --bound two", "--bound: expected one of one-sided, two-sided, pixeldp, got 'two'"),
        (f"{DENSEPURE} dds --denoiser a/b.pt", "--denoiser: weights: no such file: a/b.pt"),
        (
            f"{DIFFPURE} --threat l2f",
            "--threat: expected one of linf, l2, stadv, perceptual, got 'l2f'; did you mean l2",
        ),
        (f"{DIFFPURE} --gradient bdpa", "got 'bdpa'; did you mean bpda?"),
        (f"{DIFFPURE} --protocol lee", f"--protocol: expected one of {', '.join(PROTOCOLS)}, got 'lee'"),
        (f"{DIFFPURE} --majority-of 0", "--majority-of: expected an integer ≥ 1"),
        (f"{DIFFPURE} --surrogate-share 0.5", "--surrogate-share: is for the gradient surrogate"),
        (f"{DIFFPURE} --attack pgd:eot=0", "--attack: eot: expected an integer ≥ 1, got '0' (of attack pgd)"),
        (f"{DIFFPURE} --guide nine", "--guide: the method 'diffpure' takes none"),
        (f"{ATTACK} --threat linf --defense agdm --guide nine", "--guide: unknown name 'nine'"),
        (f"{ATTACK} --threat linf --defense diffpure", "--defense: t_star"),
        (f"{ATTACK} --threat linf --defense dds", "--defense: sigma: calling 'dds' needs its setting sigma"),
        (
            f"{PURIFY} --defense diffpure:t_star=0",
            "--defense: t_star: expected a time in (0, 1], or none, got",
        ),
        (f"{PURIFY} --defense dds", "--defense: expected one that purifies"),
        (f"{PURIFY} --defense diffpure:t_star=0.1 --precision half", "--precision: expected one of float32"),
        ("train denoiser --data digits --out w.safetensors --schedule cosin", "did you mean cosine?"),
        ("train denoiser --data digits --out w.safetensors --channels a", "--channels: expected numbers"),
        ("train guide --data digits --out w.safetensors --norm l1", "--norm: expected one of linf, l2"),
        ("train guide --data digits --out w.safetensors --inner-steps 0", "--inner-steps: expected an"),
        (
            "finetune --data digits --out w.pt --classifier digits --denoiser digits --sigma 1",
            "--out: ",
        ),
        (
            "train classifier --data digits --out w.safetensors --adversarial pgd --noise-sigma 1",
            "--noise-sigma, --adversarial: expected one of them",
        ),
        ("theory --out o --t-star 0", "--t-star: expected"),
        ("theory --out o --t-star 1e-300", "--t-star: expected a noise level ≥ 1e-15, got 1.58114e-151"),
        ("data digits --split left", "--split: unknown name 'left'"),
        (f"{DENSEPURE} dds --config none.yaml", "--config: cannot read none.yaml"),
    ],
)
def test_errors_name_the_flag(refused: Refused, line: str, message: str) -> None:
    assert message in refused(shlex.split(line))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size: 0", "batch_size in c.yaml: expected an integer ≥ 1, got 0"),
        ("n: many", "n in c.yaml: 'many' is not a valid integer."),
        ("bound: two", "bound in c.yaml: expected one of one-sided, two-sided"),
        ("defense: {name: densepure, consensus: 50}", "defense in c.yaml: consensus: expected consensus ≤"),
        ("defense: 'densepure:steps=0'", "defense in c.yaml: steps: expected an integer ≥ 1"),
    ],
)
def test_errors_name_the_key_of_a_configuration(refused: Refused, text: str, message: str) -> None:
    Path("c.yaml").write_text(text)
    line = f"{CERTIFY} --denoiser digits --sigma 0.5 --limit 1 --config c.yaml"
    assert message in refused(shlex.split(line if "defense" in text else f"{line} --defense dds"))


def completions(*words: str) -> list[str]:
    *before, incomplete = words
    complete = ShellComplete(command_group, {}, "diffproof", "_DIFFPROOF_COMPLETE")
    return [item.value for item in complete.get_completions(before, incomplete)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("certify --bound ''", [*Bound]),
        ("certify --precision b", ["bfloat16"]),
        ("certify --device c", ["cpu", "cuda"]),
        ("attack --gradient s", ["surrogate"]),
        ("attack --threat l", ["linf", "l2"]),
        ("attack --protocol ''", [*PROTOCOLS]),
        ("attack --attack s", ["stadv", "selective", "square"]),
        ("attack --defense d", ["dds", "densepure", "dc", "diffpure"]),
        ("certify --defense d", ["dds", "densepure", "dc"]),
        ("purify --defense l", ["likelihood"]),
        ("certify --defense densepure:st", ["densepure:steps=", "densepure:step_rule="]),
        ("certify --defense densepure:steps=2,v", ["densepure:steps=2,votes="]),
        ("methods gd", ["gdmp"]),
        ("methods lo", ["low-frequency"]),
        ("train denoiser --schedule s", ["scaled_linear"]),
    ],
)
def test_shells_complete(words: str, expected: list[str]) -> None:
    assert completions(*shlex.split(words)) == expected


def test_choices_are_those_that_there_are() -> None:
    assert set(catalog.BOUNDS) == set(Bound)
    assert set(catalog.STOPS) == set(Stopping)
    assert set(catalog.GRADIENTS) == set(GradientMode)
    assert set(catalog.PROTOCOLS) == set(PROTOCOLS)
    assert set(catalog.THREATS) == set(THREATS)
    assert set(catalog.NORMS) == {name for name, of in THREATS.items() if issubclass(of, PixelThreat)}
    assert set(catalog.ADVERSARIAL) == {*Method, "pat"}
    assert set(catalog.SCHEDULES) == set(SCHEDULES)


def test_help_shows_choices() -> None:
    certify, attack = command_group.commands["certify"], command_group.commands["attack"]
    shown = certify.get_help(click.Context(certify)) + attack.get_help(click.Context(attack))
    for choice in (
        "|two-sided|pixeldp]",
        "[float32|bfloat16]",
        "[linf|l2|stadv|perceptual]",
        "lee-kim|diffbreak|",
    ):
        assert choice in shown
