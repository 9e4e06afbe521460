"""Runs of defences whose diffusion model classifies: attack, certify, purify, report, verify, resume."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffproof as dp
from diffproof.attacks.evaluation import evaluate
from diffproof.cli.main import run
from diffproof.denoisers.diffusers import UNet
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.store import CertifyStore
from diffproof.weights import load_weights, packaged, save_weights
from helpers.command_line import Refused, words
from helpers.networks import packaged_again
from helpers.processes import exit_status, forked, until
from helpers.runs import attacked_rows, certify_flags, change, rows

pytestmark = pytest.mark.usefixtures("small_digits")

# Few levels of few images: a row of the digits denoiser is an evaluation for each level and class.
DC: dict[str, object] = {
    "data": "digits",
    "indices": "0:6:2",
    "denoiser": "digits",
    "defense": "dc",
    "timesteps": "uniform:3",
    "threat": "linf",
    "budget": "0.2",
    "iterations": 2,
    "step": 0.1,
    "draws": 2,
    "majority-of": 2,
    "diagnose": 0,
    "seed": 5,
}
UNDEFENDED: dict[str, object] = {
    "defense": "none",
    "denoiser": None,
    "timesteps": None,
    "classifier": "digits",
}
RDC: dict[str, object] = {
    "defense": "rdc",
    "likelihood-timesteps": "uniform:2",
    "likelihood-iterations": 2,
    "purify-budget": "0.1",
}
LIKELIHOOD: dict[str, object] = {
    **RDC,
    "defense": "likelihood",
    "classifier": "digits",
    "timesteps": "uniform:2",
    "likelihood-timesteps": None,
}
CERTIFY: dict[str, object] = {
    "indices": "0:4:2",
    "defense": "dc",
    "classifier": None,
    "denoiser": "digits",
    "timesteps": "uniform:4",
    "steps": None,
    "votes": None,
    "n0": 4,
    "n": 12,
    "sigma": 0.2,
}


def attack(out: Path | str, **changes: object) -> list[str]:
    return words("attack", **{**DC, **changes, "out": out})


def dc() -> dp.Defense:
    return dp.load_defense("dc", denoiser=dp.load_denoiser("digits"), timesteps="uniform:3")


def rdc() -> dp.Defense:
    return dp.load_defense(
        "rdc",
        denoiser=dp.load_denoiser("digits"),
        timesteps="uniform:3",
        likelihood_timesteps="uniform:2",
        iterations=2,
        budget=0.1,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished PGD run on DC; read only."""
    folder = tmp_path_factory.mktemp("dc") / "small"
    assert run(attack(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished certification run of DC; read only."""
    folder = tmp_path_factory.mktemp("dc") / "certified"
    with packaged_again():
        assert run(certify_flags(folder, **CERTIFY)) == 0
    return folder


# Attack runs.


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "make", "view", "threat", "method"),
    [
        ({}, dc, "exact", dp.Linf(0.2), dp.PGD(iterations=2, step=0.1)),
        ({**RDC, "gradient": "bpda"}, rdc, "bpda", dp.Linf(0.2), dp.PGD(iterations=2, step=0.1)),
        (
            {**RDC, "attack": "lagrange", "weights": "0,5"},
            rdc,
            "exact",
            dp.Linf(0.2),
            dp.Lagrange(iterations=2, step=0.1, weights=(0.0, 5.0)),
        ),
        (
            {"attack": "stadv", "threat": "stadv", "budget": 0.05, "step": None},
            dc,
            "exact",
            dp.Flow(0.05),
            dp.StAdv(iterations=2),
        ),
        (
            {"attack": "square", "queries": 3, "iterations": None, "step": None},
            dc,
            "exact",
            dp.Linf(0.2),
            dp.Square(queries=3),
        ),
    ],
    ids=["pgd on dc", "bpda on rdc", "lagrange on rdc", "stadv on dc", "square on dc"],
)
def test_a_run_holds_what_the_library_finds(
    tmp_path: Path, changes: dict[str, object], make: Any, view: str, threat: Any, method: dp.PGD
) -> None:
    if changes.get("attack") == "square":
        pytest.importorskip("pyautoattack")
    # Of several images once.
    indices = [4] if changes else [0, 4]
    assert run(attack(tmp_path / "run", indices=",".join(map(str, indices)), **changes)) == 0
    data = dp.load_data("digits")
    expected = evaluate(
        dp.AttackedDefense(make(), view),
        torch.stack([data.pixels[index] for index in indices]),
        data.labels[indices],
        attack=method,
        threat=threat,
        draws=2,
        votes=2,
        seed=5,
        image_indices=indices,
    ).images
    assert any(one.result is not None for one in expected)
    with AttackStore.reading(tmp_path / "run") as store:
        results = store.results()
    for image, one in zip(results, expected, strict=True):
        assert (image.evaluated.clean_labels, image.evaluated.labels) == (one.clean_labels, one.labels)
        assert image.evaluated.control_wrong == one.control_wrong
        if image.evaluated.result is None or one.result is None:
            assert image.evaluated.result is one.result is None
            continue
        assert torch.allclose(image.evaluated.result.adversarial, one.result.adversarial, atol=1e-5)
        assert image.evaluated.result.first_success == one.result.first_success
        assert image.evaluated.result.forwards == one.result.forwards
        # Only what purifies has a purified picture.
        assert (image.purified is None) == (make is dc)
    assert run(["verify", str(tmp_path / "run"), "--resample", "1", "--trust"]) == 0


@pytest.mark.slow
def test_likelihood_before_a_classifier(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(attack(folder, **{**LIKELIHOOD, "indices": "0", "likelihood-norm": "l2"})) == 0
    with AttackStore.reading(folder) as store:
        (image,) = store.results()
    assert image.evaluated.result is not None
    assert image.purified is not None
    change_made = image.purified - image.evaluated.result.adversarial
    # The flag is the defence's own budget.
    assert 0 < float(change_made.norm()) <= 0.1 + 1e-5


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_a_batch_is_of_rows_and_changes_nothing(tmp_path: Path) -> None:
    largest: list[int] = []
    for size in (20, 65):
        batches: list[int] = []
        forward = UNet.forward

        def counted(self: Any, x: Any, *about: Any, of: Any = forward, to: Any = batches) -> Any:
            to.append(len(x))
            return of(self, x, *about)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(UNet, "forward", counted)
            given = {"eot": 3, "iterations": 1, "indices": "0,4", "timesteps": "uniform:2"}
            assert run(attack(tmp_path / str(size), batch_size=size, **given)) == 0
        largest.append(max(batches))
    # Ten rows an image and draw of noise: at most two of these, and at most six.
    assert largest == [20, 60]
    with AttackStore.reading(tmp_path / "20") as a, AttackStore.reading(tmp_path / "65") as b:
        for one, other in zip(a.results(), b.results(), strict=True):
            assert one.evaluated.labels == other.evaluated.labels
            assert one.evaluated.clean_labels == other.evaluated.clean_labels
            assert one.evaluated.result is not None
            assert other.evaluated.result is not None
            assert one.evaluated.result.first_success == other.evaluated.result.first_success
            assert torch.allclose(
                one.evaluated.result.adversarial, other.evaluated.result.adversarial, atol=1e-5
            )


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {**RDC, "gradient": "bpda", "iterations": 1}], ids=["dc", "rdc"])
def test_a_killed_run_continues_to_the_same_results(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = tmp_path / "run"
    # A batch of ten rows is one image, which is stored when it is finished.
    pid = forked(lambda: run(attack(folder, batch_size=10, **changes)))
    until(lambda: (folder / "results.sqlite").exists() and len(attacked_rows(folder)) > 0)
    os.kill(pid, signal.SIGKILL)
    exit_status(pid)
    begun = attacked_rows(folder)
    assert 0 < len(begun) < 3
    assert run(attack(folder, batch_size=10, **changes)) == 0
    assert attacked_rows(folder)[: len(begun)] == begun
    labels = dp.load_data("digits").labels
    assert [row[:2] for row in attacked_rows(folder)] == [(index, int(labels[index])) for index in (0, 2, 4)]


@pytest.mark.slow
def test_settings_repeat_a_run_and_others_are_refused(small: Path, tmp_path: Path, refused: Refused) -> None:
    text = (small / "settings.yaml").read_text()
    assert "classifier" not in text
    assert "defense: dc:timesteps=uniform:3\n" in text
    before = (small / "results.sqlite").read_bytes()
    assert run(["attack", "--config", str(small / "settings.yaml"), "--out", str(small)]) == 0
    assert (small / "results.sqlite").read_bytes() == before
    line = refused(attack(small, timesteps="uniform:4"))
    assert "defense (dc:timesteps=uniform:3, now dc:timesteps=uniform:4)" in line
    assert ", now dc:timesteps=uniform:3,weighting=vlb)" in refused(attack(small, weighting="vlb"))


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_reports_name_what_differs(small: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "lagrange"
    given = {**RDC, "attack": "lagrange", "weights": "0,5", "indices": "0"}
    assert run(attack(other, **given)) == 0
    # Numbers written otherwise are the same run.
    assert run(attack(other, **{**given, "weights": "0.0,5.0"})) == 0
    capsys.readouterr()
    assert run(["report", str(small), str(other), "--out", str(tmp_path / "report")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "dc:timesteps=uniform:3" in printed
    assert "lagrange:iterations=2,step=0.1,weights=[0.0,5.0] exact, linf 0.2" in printed
    with (tmp_path / "report" / "table.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert "weights=[0.0,5.0]" in table[1]["attack"]
    assert table[1]["defence"].startswith("rdc:timesteps=uniform:3,likelihood_timesteps=uniform:2,")
    assert (tmp_path / "report" / "pictures-lagrange.png").exists()


@pytest.mark.slow
def test_usual_weights_are_not_told(tmp_path: Path, capsys: Any) -> None:
    assert run(attack(tmp_path / "run", attack="lagrange", indices="0", iterations=1)) == 0
    assert "lagrange:iterations=1,step=0.1 exact, linf 0.2" in " ".join(capsys.readouterr().out.split())
    with AttackStore.reading(tmp_path / "run") as store:
        assert "weights=[0.0,1.0,10.0]" in str(store.settings.attack)


# Certification runs.


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_a_certificate_is_what_the_library_proves(certified: Path) -> None:
    data = dp.load_data("digits")
    base = dp.load_defense("dc", denoiser=dp.load_denoiser("digits"), timesteps="uniform:4")
    assert isinstance(base, dp.DiffusionClassifier)
    smoothed = dp.Smoothed(base, 0.2, levels=240)
    with CertifyStore.reading(certified) as store:
        results, settings = store.results(), store.settings
    assert (settings.classifier, settings.defense) == (None, "dc:timesteps=uniform:4")
    assert [result.image_index for result in results] == [0, 2]
    for result in results:
        expected = smoothed.certify(
            data.pixels[result.image_index], n0=4, n=12, seed=3, image_index=result.image_index
        )
        assert result.certificate == expected
        assert result.certificate.settings["timesteps"] == "uniform:4"
        # Every draw is a row for each class and level above sigma.
        levels = [sigma for sigma in base.loss.levels if sigma > 0.2]
        assert 0 < len(levels) < 4
        assert result.certificate.denoiser_evaluations == 16 * 10 * len(levels)
        assert result.certificate.classifier_evaluations == 0


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_certification_reports_verifies_and_resumes(certified: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    pid = forked(lambda: run(certify_flags(folder, **{**CERTIFY, "batch_size": 10})))
    until(lambda: (folder / "results.sqlite").exists() and len(rows(folder)) > 0)
    os.kill(pid, signal.SIGKILL)
    exit_status(pid)
    assert run(certify_flags(folder, **{**CERTIFY, "batch_size": 40})) == 0
    assert rows(folder) == rows(certified)
    capsys.readouterr()
    assert run(["verify", str(folder), "--resample", "1", "--trust"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 certificates hold, 1 drawn again"
    assert run(["report", str(folder), "--at", "0.01", "--out", str(tmp_path / "report")]) == 0
    assert "dc:timesteps=uniform:4" in " ".join(capsys.readouterr().out.split())
    change(folder, "UPDATE images SET certificate = replace(certificate, 'uniform:4', 'uniform:5')")
    assert run(["verify", str(folder), "--trust"]) == 1
    assert "made by a defence with other settings" in capsys.readouterr().out


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_racing_saves_evaluations(certified: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    flags = {**CERTIFY, "race_error": 0.01, "indices": "0", "timesteps": "uniform:40", "n0": 2, "n": 2}
    assert run(certify_flags(folder, **flags)) == 0
    printed = capsys.readouterr().out
    with CertifyStore.reading(folder) as store:
        (result,) = store.results()
    spent, plain = result.certificate.denoiser_evaluations, result.certificate.naive_denoiser_evaluations
    assert f"evaluations: denoiser {spent:,} instead of {plain:,}" in printed
    assert 0 < spent < plain
    assert result.certificate.settings["race_error"] == 0.01


# Purified pictures.


@pytest.mark.parametrize("flags", [{**DC, **RDC}, {**DC, **LIKELIHOOD}], ids=["rdc", "likelihood"])
def test_pictures_are_purified(tmp_path: Path, capsys: Any, flags: dict[str, object]) -> None:
    pixels = dp.load_data("digits").pixels[3]
    Image.fromarray((pixels[0] * 255).round().byte().numpy()).save(tmp_path / "three.png")
    names = (
        "defense",
        "denoiser",
        "classifier",
        "timesteps",
        "likelihood-timesteps",
        "likelihood-iterations",
        "purify-budget",
        "seed",
    )
    given = {name: flags.get(name) for name in names}
    assert run([*words("purify", **{**given, "out": tmp_path / "out"}), str(tmp_path / "three.png")]) == 0
    out = np.asarray(Image.open(tmp_path / "out" / "three.png"), dtype=float) / 255
    moved = np.abs(out - pixels[0].numpy())
    # Eight bits round twice by half of one.
    assert 0.01 < moved.max() <= 0.1 + 1 / 255
    printed = capsys.readouterr().out
    assert (" label changed" in printed) == (flags["defense"] == "likelihood")


# Bad input.


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of twelve classes, an unconditional denoiser and one without a null label."""
    folder = tmp_path_factory.mktemp("others")
    pixels = dp.load_data("digits").pixels
    images = torch.stack([pixels[index].permute(1, 2, 0) for index in range(24)])
    for name, classes in (("twelve", 12), ("three", 3)):
        shown = np.arange(24) % classes
        np.savez(folder / f"{name}.npz", images=(images * 255).byte().numpy(), labels=shown)
    tensors, description = load_weights(packaged("denoiser")["digits"])
    (embedding,) = [name for name in tensors if "class_embedding" in name]
    for name, labels in (("plain", None), ("nullless", 10)):
        network = {**description["network"], "num_class_embeds": labels}
        kept = {key: tensor for key, tensor in tensors.items() if key != embedding}
        if labels is not None:
            kept[embedding] = tensors[embedding][:labels].contiguous()
        described = {**description, "network": network, "null_label": None, "class_names": None}
        save_weights(folder / f"{name}.safetensors", kept, described)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": "digits"}, "--classifier: the method 'dc' takes none"),
        ({**RDC, "classifier": "digits"}, "--classifier: the method 'rdc' takes none"),
        ({**LIKELIHOOD, "classifier": None}, "--classifier: the method 'likelihood' needs one, got None"),
        ({"defense": "none", "timesteps": None}, "--classifier: the method 'none' needs one, got None"),
        ({"denoiser": None}, "--denoiser: the method 'dc' needs one, got None"),
        ({"guide": "digits"}, "--guide: the method 'dc' takes none"),
        ({"timesteps": "first:1001"}, "--defense: timesteps: expected 1 ≤ N ≤ 1000"),
        ({"timesteps": "uniform:0"}, "--defense: timesteps: expected 1 ≤ N ≤ 1000"),
        ({"timesteps": "last:5"}, "--defense: timesteps: expected all, first:N or uniform:N, got 'last:5'"),
        (
            {**RDC, "likelihood-timesteps": "first:1001"},
            "--defense: likelihood_timesteps: expected 1 ≤ N ≤ 1000",
        ),
        (
            {**RDC, "variant": "authors"},
            "--defense: likelihood_timesteps: the variant authors has its own Adam and loss, and takes none",
        ),
        ({"weighting": "snr"}, "--defense: weighting: expected simple, vlb, edm or edm-authors, got 'snr'"),
        ({"reduction": "max"}, "--defense: reduction: expected norm or mean, got 'max'"),
        ({"samples": 0}, "--defense: samples: expected an integer ≥ 1, got '0'"),
        (
            {**RDC, "purify-budget": 0},
            "--defense: budget: expected a number > 0, or none, got '0' (of defense rdc)",
        ),
        (
            {**RDC, "purify-budget": "-8/255"},
            "--defense: budget: expected a number > 0, or none, got '-8/255'",
        ),
        (
            {**RDC, "likelihood-iterations": 0},
            "--defense: iterations: expected an integer ≥ 1, or none, got '0'",
        ),
        ({**RDC, "likelihood-norm": "l1"}, "--defense: norm: expected linf or l2, or none, got 'l1'"),
        ({**RDC, "variant": "ours"}, "--defense: variant: expected paper or authors, got 'ours'"),
        (
            {**LIKELIHOOD, "reduction": "mean"},
            "--defense: reduction: no setting of the defense 'likelihood', which takes iterations, budget,"
            " norm, step, momentum, variant, sigmas, timesteps, weighting, samples",
        ),
        (
            {"defense": "diffpure", "defense-sigma": 0, "timesteps": None, "classifier": "digits"},
            "--defense: sigma: expected a number > 0, or none, got '0' (of defense diffpure)",
        ),
        # The attack's own budget and iterations.
        ({**RDC, "budget": 0}, "--budget: expected"),
        ({**RDC, "iterations": 0}, "--attack: iterations: expected an integer ≥ 1, got '0' (of attack pgd)"),
        ({"purify-budget": "0.1"}, "--defense: budget: no setting of the defense 'dc', "),
        (
            {"likelihood-timesteps": "all"},
            "--defense: likelihood_timesteps: no setting of the defense 'dc', did",
        ),
        (
            {"t-star": "0.1"},
            "--defense: t_star: no setting of the defense 'dc', which takes sigmas, timesteps",
        ),
        ({"gradient": "bpda"}, "--gradient: bpda is for defences that purify, got 'dc'"),
        (
            {**RDC, "gradient": "surrogate"},
            "--gradient: surrogate is for defences that purify by a reverse process, got 'rdc'",
        ),
        ({**RDC, "attack": "diffattack"}, "--attack: diffattack needs the exact gradient of a defence"),
        (
            {
                "defense": "diffpure",
                "t-star": 0.1,
                "timesteps": None,
                "classifier": "digits",
                "attack": "lagrange",
            },
            "--attack: lagrange needs the exact gradient of dc or rdc, got exact of 'diffpure'",
        ),
        (
            {"attack": "lagrange", "weights": "0,ten"},
            "--attack: weights: expected numbers ≥ 0 in brackets, such as [1,2], got '[0,ten]'",
        ),
        ({"attack": "lagrange", "weights": "-1,0"}, "--attack: weights: expected numbers ≥ 0 in brackets, "),
        (
            {"weights": "1"},
            "--attack: weights: no setting of the attack 'pgd', which takes iterations, eot, step",
        ),
        ({"data": "twelve.npz"}, "--denoiser: has 10 classes, but "),
        ({"denoiser": "plain.safetensors"}, "--denoiser: expected a class-conditional one, got one without"),
        (
            {"denoiser": "nullless.safetensors", "attack": "lagrange"},
            "--denoiser: lagrange needs a null label, for the unconditional loss, got none",
        ),
        ({**RDC, "denoiser": "nullless.safetensors"}, "--denoiser: expected a null label"),
        ({**LIKELIHOOD, "denoiser": "nullless.safetensors"}, "--denoiser: expected a null label"),
        (
            {**RDC, "denoiser": "plain.safetensors"},
            "--denoiser: expected a class-conditional one, got one without",
        ),
    ],
)
def test_bad_input_is_one_line(
    others: Path, refused: Refused, changes: dict[str, object], message: str
) -> None:
    located = {
        name: str(others / str(value)) if str(value).endswith((".npz", ".safetensors")) else value
        for name, value in changes.items()
    }
    assert refused(attack("run", **located)).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": "digits"}, "--classifier: the method 'dc' takes none"),
        ({"denoiser": None}, "--denoiser: the method 'dc' needs one, got None"),
        ({"timesteps": "first:2000"}, "--defense: timesteps: expected 1 ≤ N ≤ 1000"),
        ({"weighting": "snr"}, "--defense: weighting: expected simple, vlb"),
        ({"race_error": 0}, "--defense: race_error: expected a number in (0, 1), or none, got '0'"),
        ({"defense": "dds", "timesteps": None}, "--classifier: the method 'dds' needs one, got None"),
        (
            {"defense": "rdc"},
            "--defense: expected one that can be certified (none, dds, ",
        ),
        (
            {"defense": "dds", "classifier": "digits"},
            "--defense: timesteps: no setting of the defense 'dds', ",
        ),
        ({"data": "twelve.npz"}, "--denoiser: has 10 classes, but "),
        ({"denoiser": "plain.safetensors"}, "--denoiser: expected a class-conditional one, got one without"),
    ],
)
def test_bad_certifications_are_one_line(
    others: Path, refused: Refused, changes: dict[str, object], message: str
) -> None:
    located = {
        name: str(others / str(value)) if str(value).endswith((".npz", ".safetensors")) else value
        for name, value in changes.items()
    }
    assert message in refused(certify_flags(Path("run"), **{**CERTIFY, **located}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "owner"),
    [
        ({"data": "three.npz"}, "denoiser"),
        ({"data": "three.npz", **RDC, "gradient": "bpda"}, "denoiser"),
        ({"data": "three.npz", **UNDEFENDED}, "classifier"),
        ({}, None),
    ],
    ids=["dc", "rdc", "none", "digits"],
)
def test_classes_that_the_data_has_not_are_told(
    others: Path, tmp_path: Path, capsys: Any, changes: dict[str, object], owner: str | None
) -> None:
    given = {**changes, "data": str(others / "three.npz")} if "data" in changes else changes
    assert run(attack(tmp_path / "run", indices="0", iterations=1, **given)) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    line = (
        f"diffproof: warning: three.npz has 3 classes, the {owner} 10: it chooses among all of its own, and"
        " the data's labels are taken for the first of them"
    )
    assert told == [line] * (owner is not None)


def test_bad_purifications_are_one_line(refused: Refused) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("black.png")
    flags = {name: value for name, value in RDC.items() if name != "purify-budget"} | {"denoiser": "digits"}
    given = [*words("purify", **{**flags, "classifier": "digits", "out": "out"}), "black.png"]
    assert refused(given) == "--classifier: the method 'rdc' takes none"
    given = [*words("purify", defense="dc", denoiser="digits", out="out"), "black.png"]
    assert refused(given).startswith("--defense: expected one that purifies (diffpure, ")
