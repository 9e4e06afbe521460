"""Attack runs: what their folders hold, how they continue, what is refused, what a report makes of them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml

import diffproof as dp
from diffproof.attacks.evaluation import evaluate, scores
from diffproof.catalog import PROTOCOLS
from diffproof.cli.main import run
from diffproof.runs.attack.report import load_attack_report
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.settings import AttackSettings
from helpers.command_line import Refused, words
from helpers.processes import exit_status, forked, until
from helpers.runs import attacked_rows, certify_flags, change

pytestmark = pytest.mark.usefixtures("small_digits")

BASE: dict[str, object] = {
    "data": "digits",
    "indices": "0:30:5",
    "denoiser": "digits",
    "classifier": "digits",
    "defense": "diffpure",
    "t-star": 0.1,
    "steps": 2,
    "threat": "linf",
    "budget": "0.2",
    "iterations": 3,
    "eot": 2,
    "draws": 4,
    "majority-of": 3,
    "diagnose": 0,
    "seed": 5,
}
ALONE: dict[str, object] = {"defense": "none", "denoiser": None, "t-star": None, "steps": None, "eot": None}


def flags(out: Path | str, **changes: object) -> list[str]:
    """The command line of BASE with other values; None leaves a flag out."""
    return words("attack", **{**BASE, "out": out, **changes})


def to_bytes(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, image.numpy())
    return file.getvalue()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of BASE in batches of 4; read only."""
    folder = tmp_path_factory.mktemp("attacks") / "small"
    assert run(flags(folder, batch_size=4)) == 0
    return folder


@pytest.mark.slow
def test_a_run_holds_what_the_library_finds(small: Path) -> None:
    data = dp.load_data("digits")
    indices = list(range(0, 30, 5))
    defense = dp.load_defense(
        "diffpure",
        denoiser=dp.load_denoiser(str(BASE["denoiser"])),
        classifier=dp.load_classifier("digits"),
        t_star=0.1,
        steps=2,
    )
    expected = evaluate(
        dp.AttackedDefense(defense),
        torch.stack([data.pixels[index] for index in indices]),
        data.labels[indices],
        attack=dp.PGD(iterations=3, eot=2),
        threat=dp.Linf(0.2),
        draws=4,
        votes=3,
        seed=5,
        image_indices=indices,
    ).images
    with AttackStore.reading(small) as store:
        settings, results, findings = store.settings, store.results(), store.findings()
    assert findings is None
    # Every setting is there, so that a later default changes nothing.
    whole = "pgd:iterations=3,eot=2,step=none,loss=ce,mean_of=loss,direction=steepest,random_start=false"
    assert (settings.attack, settings.gradient) == (whole, "exact")
    assert [image.evaluated.image_index for image in results] == indices
    for image, one in zip(results, expected, strict=True):
        assert torch.equal(image.clean, data.pixels[one.image_index])
        assert (image.evaluated.clean_labels, image.evaluated.labels) == (one.clean_labels, one.labels)
        assert image.evaluated.control_wrong == one.control_wrong
        assert (image.evaluated.result is None) == (one.result is None)
        if image.evaluated.result is None or one.result is None:
            continue
        assert torch.allclose(image.evaluated.result.adversarial, one.result.adversarial, atol=1e-5)
        assert image.evaluated.result.norm <= 0.2 + 1e-6
        assert image.evaluated.result.forwards == one.result.forwards == 8
        assert image.purified is not None
        assert image.purified.shape == image.clean.shape
        assert image.seconds > 0
        assert image.version == "0.1.0"
    # The purified picture is what the first label after the attack was given for.
    with torch.no_grad():
        labels = dp.load_classifier("digits")(
            torch.stack([i.purified for i in results if i.purified is not None])
        )
    assert labels.argmax(1).tolist() == [i.evaluated.labels[0] for i in results if i.purified is not None]


@pytest.mark.slow
def test_batch_size_changes_nothing_and_settings_repeat_a_run(small: Path, tmp_path: Path) -> None:
    assert run(flags(tmp_path / "one", batch_size=1, indices="0:30:15")) == 0
    config = ["attack", "--config", str(small / "settings.yaml"), "--out", str(tmp_path / "again")]
    assert run(config) == 0
    with AttackStore.reading(tmp_path / "one") as a, AttackStore.reading(small) as b:
        mine, others = a.results(), [b.results()[number] for number in (0, 3)]
    for image, other in zip(mine, others, strict=True):
        for name in ("image_index", "true_label", "labels"):
            assert getattr(image.evaluated, name) == getattr(other.evaluated, name)
    assert attacked_rows(tmp_path / "again") == attacked_rows(small)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_results(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pid = forked(lambda: run(flags(folder, batch_size=4)))
    until(lambda: (folder / "results.sqlite").exists() and len(attacked_rows(folder)) > 0)
    os.kill(pid, signal.SIGKILL)
    exit_status(pid)
    begun = attacked_rows(folder)
    assert 0 < len(begun) < 6
    assert run(flags(folder, batch_size=4)) == 0
    assert attacked_rows(folder)[: len(begun)] == begun
    assert attacked_rows(folder) == attacked_rows(small)


def test_nothing_finished_is_done_again(small: Path) -> None:
    before = (small / "results.sqlite").read_bytes()
    began = time.monotonic()
    assert run(flags(small, batch_size=3)) == 0
    assert time.monotonic() > began
    assert (small / "results.sqlite").read_bytes() == before


def test_a_number_may_be_written_otherwise(small: Path) -> None:
    assert run(flags(small, **{"budget": "1/5", "t-star": "0.10"})) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "8/255"}, "budget (0.2, now 8/255)"),
        ({"iterations": 4}, "attack (pgd:iterations=3,eot=2, now pgd:iterations=4,eot=2)"),
        ({"eot": None}, "attack (pgd:iterations=3,eot=2, now pgd:iterations=3)"),
        ({"gradient": "bpda"}, "gradient (exact, now bpda)"),
        ({"t-star": 0.12}, "defense (diffpure:t_star=0.1,steps=2, now diffpure:t_star=0.12,steps=2)"),
        ({"draws": 5}, "draws (4, now 5)"),
        ({"seed": 6}, "seed (5, now 6)"),
        (
            {"protocol": "lee-kim", "iterations": None, "eot": None, "draws": None, "majority-of": None},
            "protocol",
        ),
    ],
)
def test_other_settings_are_refused(
    small: Path, refused: Refused, changes: dict[str, object], message: str
) -> None:
    line = refused(flags(small, **changes))
    assert "holds a run with other settings" in line
    assert message in line


@pytest.mark.parametrize(
    ("threat", "budget", "warned"),
    [("l2", "1", True), ("l2", "8", True), ("l2", "0.99", False), ("linf", "1", False)],
)
def test_a_budget_that_allows_almost_any_image_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threat: str, budget: str, warned: bool
) -> None:
    # Black and white are √64 apart, an eighth of which is 1.
    changes = {**ALONE, "indices": "0", "iterations": 1, "threat": threat, "budget": budget}
    assert run(flags(tmp_path / "run", **changes)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    line = (
        f"diffproof: warning: budget: l2 {budget} allows almost any image, black and white being 8 apart;"
        f" does {budget} mean {budget}/255?"
    )
    assert lines == [line] * warned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "0"}, "budget: expected a finite number > 0, got 0.0"),
        ({"budget": "-8/255"}, "budget: expected a finite number > 0"),
        ({"budget": "8"}, "budget: expected linf in (0, 1], got 8; does 8 mean 8/255?"),
        ({"budget": "nan"}, "budget: expected a number or a fraction like 8/255, got 'nan'"),
        ({"budget": "eight"}, "budget: expected a number or a fraction like 8/255, got 'eight'"),
        ({"budget": "8/0"}, "budget: expected a number or a fraction like 8/255, got '8/0'"),
        ({"threat": "l2", "budget": "128"}, "budget: expected l2 in (0, 8], got 128; does 128 mean 128/255?"),
        (
            {"threat": "l1"},
            "--threat: expected one of linf, l2, stadv, perceptual, got 'l1'; did you mean l2?",
        ),
        ({"attack": "fgsm"}, "attack: unknown name 'fgsm'"),
        ({"attack": "stadv"}, "threat: stadv attacks within stadv, got linf"),
        ({"threat": "stadv", "budget": "0.05"}, "threat: pgd attacks within l2, linf, got stadv"),
        (
            {"gradient": "numeric"},
            "--gradient: expected one of exact, bpda, surrogate, blind, adjoint, got 'numeric'",
        ),
        (
            {"gradient": "adjoint"},
            "gradient: adjoint is for diffpure with the solver ode, got 'diffpure' with sde",
        ),
        ({**ALONE, "gradient": "bpda"}, "gradient: bpda is for defences that purify, got 'none'"),
        (
            {**ALONE, "attack": "diffattack"},
            "attack: diffattack needs the exact gradient of a defence that purifies",
        ),
        ({**ALONE, "t-star": 0.1}, "t_star: no setting of the defense 'none', which takes votes, sigma"),
        ({"defense": "diffpur"}, "defense: unknown name 'diffpur'; did you mean diffpure"),
        ({"defense": "agdm"}, "guide: the method 'agdm' needs one, got None"),
        ({"guide": "digits"}, "guide: the method 'diffpure' takes none"),
        ({"denoiser": None}, "denoiser: the method 'diffpure' needs one, got None"),
        ({"t-star": 1.5}, "t_star: expected a time in (0, 1], or none, got '1.5'"),
        ({"t-star": 0}, "t_star: expected a time in (0, 1], or none, got '0'"),
        ({"t-star": "0.1,0.2"}, "t_star: expected a time in (0, 1], or none, got '[0.1,0.2]'"),
        ({"steps": 0}, "steps: expected an integer ≥ 1, or none, got '0'"),
        ({"iterations": 0}, "iterations: expected an integer ≥ 1, got '0' (of attack pgd)"),
        ({"eot": 0}, "eot: expected an integer ≥ 1, got '0'"),
        ({"step": 0}, "step: expected a number > 0, or none, got '0'"),
        ({"loss": "mse"}, "loss: expected ce, dlr or margin, got 'mse'"),
        ({"queries": 5}, "queries: no setting of the attack 'pgd', which takes iterations, eot, step"),
        ({"surrogate-share": 0.5}, "--surrogate-share: is for the gradient surrogate, got exact"),
        ({"surrogate-share": 2, "gradient": "surrogate"}, "share: expected a number in (0, 1], got 2.0"),
        ({"draws": 0}, "draws: expected an integer ≥ 1, got 0"),
        ({"majority-of": 0}, "--majority-of: expected an integer ≥ 1, got 0"),
        ({"diagnose": -1}, "diagnose: expected an integer ≥ 0, got -1"),
        ({"batch-size": 0}, "--batch-size: expected an integer ≥ 1, got 0"),
        ({"protocol": "carlini"}, f"--protocol: expected one of {', '.join(PROTOCOLS)}, got 'carlini'"),
        ({"protocol": "lee-kim"}, "iterations: protocol lee-kim fixes 200, got 3"),
        ({"protocol": "lee-kim", "iterations": 200, "eot": 20}, "draws: protocol lee-kim fixes 10, got 4"),
        ({"protocol": "diffpure", "attack": "pgd"}, "attack: protocol diffpure fixes autoattack, got pgd"),
        ({"indices": "0:0"}, "indices"),
        ({"data": "nowhere.npz"}, "nowhere.npz"),
        ({"classifier": "nowhere.safetensors"}, "no such file: nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_line(refused: Refused, changes: dict[str, object], message: str) -> None:
    assert message in refused(flags("run", **changes))


@pytest.mark.slow
def test_an_attack_needs_a_gradient(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("labelonly.py").write_text(
        "import torch, diffproof\n"
        "def make():\n"
        "    base = diffproof.load_classifier('digits')\n"
        "    class Labels(torch.nn.Module):\n"
        "        def forward(self, images):\n"
        "            return torch.nn.functional.one_hot(base(images).argmax(1), 10).float()\n"
        "    return diffproof.Classifier(Labels(), 10)\n"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    line = refused(flags("run", **{**ALONE, "classifier": "labelonly:make"}))
    assert (
        line
        == "--attack: pgd needs a gradient, and 'none' gives its images none; expected one without, such as"
        " square"
    )
    square = {"attack": "square", "iterations": None, "queries": 30}
    assert run(flags("run", **{**ALONE, "classifier": "labelonly:make", **square})) == 0
    with AttackStore.reading(Path("run")) as store:
        assert all(image.evaluated.result is not None for image in store.results())


def test_runs_of_other_kinds_are_refused(small: Path, small_run: Path, refused: Refused) -> None:
    assert refused(flags(small_run)) == f"--out: {small_run} is no attack run"
    line = certify_flags(small, denoiser="digits")
    assert refused(line) == f"--out: {small} is no certification run"
    over = refused(["report", str(small), "--over", "votes"])
    assert over == "--over: expected one certification run, got an attack run"
    assert refused(["report", str(small), str(small_run)]) == (
        "runs: expected runs of one kind, got certification and attack runs"
    )
    assert refused(["report", str(small), "--at", "0.5"]) == (
        "--at: radii are for certification runs, got attack runs"
    )
    assert AttackStore.holds(small)
    assert not CertifyStore.holds(small)


def test_a_report_has_the_scores_and_their_controls(small: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(["report", str(small), "--out", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    with (tmp_path / "report" / "table.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    with AttackStore.reading(small) as store:
        results = store.results()
    skipped = sum(image.evaluated.result is None for image in results)
    clean, attacked = scores([image.evaluated for image in results], 10, draws=4, votes=3)
    for when, score in (("clean", clean), ("attacked", attacked)):
        for name in ("fresh", "majority", "worst", "optimisation"):
            share = getattr(score, name)
            assert float(row[f"{when}_{name}"]) == pytest.approx(share.value, abs=1e-6)
            assert float(row[f"{when}_{name}_low"]) == pytest.approx(share.low, abs=1e-6)
            assert float(row[f"{when}_{name}_high"]) == pytest.approx(share.high, abs=1e-6)
            assert f"{100 * share.value:.1f} ({100 * share.low:.0f}–{100 * share.high:.0f})" in printed
    assert (row["images"], row["skipped"], row["threat"], row["budget"]) == ("6", str(skipped), "linf", "0.2")
    assert f"note: not diagnosed: {small}" in printed
    # Rows of four pictures of 64 pixels and more.
    picture = matplotlib.image.imread(tmp_path / "report" / "pictures-small.png")
    assert picture.shape[0] > (6 - skipped) * 64
    assert picture.shape[1] > 4 * 64
    # An image that nobody drew on would be of one colour.
    assert np.ptp(picture[..., :3]) > 0.9
    assert run(["report", str(small), "--out", str(tmp_path / "report")]) == 2
    assert run(["report", str(small), "--out", str(tmp_path / "report"), "--force"]) == 0


@pytest.mark.slow
def test_images_wrong_already_are_counted(tmp_path: Path, capsys: Any) -> None:
    data = dp.load_data("digits")
    labels = torch.cat([dp.load_classifier("digits")(data.pixels[i][None]).argmax(1) for i in range(200)])
    wrong = (labels != data.labels[:200]).nonzero()[:, 0].tolist()
    assert wrong
    indices = f"0,{wrong[0]}"
    folder = tmp_path / "run"
    assert run(flags(folder, **{**ALONE, "indices": indices})) == 0
    assert (
        "1 of 2 images is wrong without an attack: not attacked, counted as wrong" in capsys.readouterr().out
    )
    (row,) = load_attack_report([folder]).rows
    assert row.skipped == 1
    assert (row.clean.fresh.value, row.attacked.fresh.value <= 0.5) == (0.5, True)
    (image,) = [image for image in row.results if image.evaluated.image_index == wrong[0]]
    assert (image.evaluated.result, image.evaluated.labels, image.purified) == (None, (), None)


def test_attacked_images_that_did_not_change_are_remarked(tmp_path: Path) -> None:
    pytest.importorskip("pyautoattack")
    weak = {**ALONE, "attack": "square", "queries": 1, "iterations": None, "indices": "0,5"}
    for budget, unchanged in (("0.001", True), ("1", False)):
        folder = tmp_path / budget
        assert run(flags(folder, **{**weak, "budget": budget})) == 0
        report = load_attack_report([folder])
        results = [image.evaluated.result for image in report.rows[0].results]
        assert [result is not None and result.norm == 0 for result in results] == [unchanged] * 2
        remark = f"{folder}: 2 of 2 attacked images are unchanged"
        assert (remark in report.remarks) == unchanged


@pytest.mark.slow
def test_the_protocol_is_stamped_and_reported(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"iterations": None, "eot": None, "draws": None, "majority-of": None, "indices": "0"}
    folder = tmp_path / "run"
    # Undefended, EOT changes nothing but the cost.
    assert run(flags(folder, **{**ALONE, **plain, "protocol": "lee-kim"})) == 0
    assert "protocol lee-kim (Lee & Kim 2023) reports majority: 0.0%" in capsys.readouterr().out
    with AttackStore.reading(folder) as store:
        settings, (image,) = store.settings, store.results()
    assert str(settings.attack).startswith("pgd:iterations=200,eot=20,step=0.007,")
    assert settings.draws == 10
    assert image.protocol == "lee-kim"
    assert image.evaluated.result is not None
    assert image.evaluated.result.forwards == 201 * 20
    assert yaml.safe_load((folder / "settings.yaml").read_text())["protocol"] == "lee-kim"


@pytest.mark.slow
def test_findings_are_kept_and_reported(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    assert run(flags(folder, **{"diagnose": 2, "eot": 1, "indices": "0:2"})) == 0
    with AttackStore.reading(folder) as store:
        findings = store.findings()
    assert findings is not None
    named = {finding.name: finding for finding in findings}
    assert {"gradient-agreement", "randomness-without-eot", "unbounded"} <= set(named)
    assert named["gradient-agreement"].passed
    assert not named["randomness-without-eot"].passed
    assert f"randomness-without-eot: {named['randomness-without-eot'].message}" in capsys.readouterr().out


@pytest.mark.slow
def test_only_images_that_are_right_are_diagnosed(tmp_path: Path, capsys: Any) -> None:
    data = dp.load_data("digits")
    labels = torch.cat([dp.load_classifier("digits")(data.pixels[i][None]).argmax(1) for i in range(200)])
    wrong = (labels != data.labels[:200]).nonzero()[:, 0].tolist()
    folder = tmp_path / "run"
    assert run(flags(folder, **{**ALONE, "indices": str(wrong[0]), "diagnose": 3})) == 0
    printed = capsys.readouterr().out
    assert "images: every image is wrong without an attack: there is nothing to diagnose" in printed
    folder = tmp_path / "other"
    assert run(flags(folder, **{**ALONE, "indices": f"{wrong[0]},0", "diagnose": 1})) == 0
    with AttackStore.reading(folder) as store:
        findings = store.findings()
    assert findings is not None
    assert "gradient-agreement" in {finding.name for finding in findings}


@pytest.mark.slow
def test_a_report_tells_attacks_apart(small: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "small"
    changes = {"loss": "margin", "random-start": "true", "step": 0.01, "draws": 6, "indices": "0:2"}
    assert run(flags(other, **changes)) == 0
    capsys.readouterr()
    assert run(["report", str(small), str(other), "--out", str(tmp_path / "report")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "pgd:iterations=3,eot=2 exact, linf 0.2" in printed
    assert "pgd:iterations=3,eot=2,step=0.01,loss=margin,random_start=true exact, linf 0.2" in printed
    assert "one draw and worst: of 4 or 6 draws of an image: rows of other numbers do not compare" in printed
    assert "majority: of 3 draws of an image" in printed
    with (tmp_path / "report" / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [",loss=margin," in row["attack"] for row in rows] == [False, True]
    assert [",step=0.01," in row["attack"] for row in rows] == [False, True]
    # Two folders of one name have two sheets.
    assert len(list((tmp_path / "report").glob("pictures-*.png"))) == 2


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE attacked SET clean = x''", "image 0: clean: EOF"),
        ("UPDATE attacked SET result = '{}'", "image 0: norm is missing"),
        ("UPDATE attacked SET result = json_set(result, '$.labels', json('[]'))", "labels, expected 4"),
        ("UPDATE settings SET json = '5'", "expected names with values, got 5"),
    ],
)
def test_a_corrupt_store_is_named(
    small: Path, tmp_path: Path, refused: Refused, statement: str, message: str
) -> None:
    shutil.copytree(small, "copy")
    change(Path("copy"), statement)
    line = refused(["verify", "copy"])
    assert line.startswith("run: the store in copy is corrupt: ")
    assert message in line


def test_settings_say_what_they_lack() -> None:
    good: dict[str, Any] = {
        "seed": 0,
        "data": "digits",
        "classifier": "digits",
        "defense": "none",
        "threat": "linf",
        "budget": "0.1",
    }
    assert AttackSettings.from_dict(good).as_dict().items() >= good.items()
    with pytest.raises(ValueError, match="settings: unknown name 'epsilon'"):
        AttackSettings.from_dict({**good, "epsilon": 1})
    with pytest.raises(ValueError, match="settings: threat is missing"):
        AttackSettings.from_dict({name: value for name, value in good.items() if name != "threat"})


# Verification


def changed(small: Path, folder: Path, statement: str, *values: object) -> str:
    """The name of a copy of a run whose store was edited."""
    copy = shutil.copytree(small, folder)
    change(copy, statement, *values)
    return str(copy)


def test_an_honest_run_holds(small: Path, capsys: Any) -> None:
    assert run(["verify", str(small), "--resample", "6", "--trust"]) == 0
    lines = capsys.readouterr().out.splitlines()
    checked = "checked: perturbations, budgets, images, true labels, weights"
    assert lines == [checked, "not checked: nothing", "6 attacked images hold, 5 drawn again"]
    assert run(["verify", str(small), "--counts"]) == 0
    told, checked, left, last = capsys.readouterr().out.splitlines()
    assert told.startswith("from the labels: robust accuracy of one draw ")
    assert "labels" in checked
    assert left.startswith("not checked: images, true labels, weights, code; ")
    assert last == "6 attacked images hold"


@pytest.mark.slow
def test_what_was_tampered_with_does_not(small: Path, tmp_path: Path, capsys: Any) -> None:
    with AttackStore.reading(small) as store:
        image = next(image for image in store.results() if image.evaluated.result is not None)
    index, result = image.evaluated.image_index, image.evaluated.result
    assert result is not None
    beyond = (image.clean + 0.3 * (image.clean < 0.5) - 0.3 * (image.clean >= 0.5)).clamp(0, 1)
    with sqlite3.connect(small / "results.sqlite") as connection:
        (text,) = connection.execute("SELECT result FROM attacked WHERE image_index = ?", (index,)).fetchone()
    fields = json.loads(text)
    other = [(label + 1) % 10 for label in fields["labels"]]
    where = f"WHERE image_index = {index}"
    for number, (statement, value, message) in enumerate(
        [
            (f"UPDATE attacked SET adversarial = ? {where}", to_bytes(beyond), "norm 0.3, the budget is 0.2"),
            (f"UPDATE attacked SET adversarial = ? {where}", to_bytes(beyond * 4), "leaves [0, 1]"),
            (f"UPDATE attacked SET clean = ? {where}", to_bytes(beyond), "not the one that was attacked"),
            (
                f"UPDATE attacked SET result = ? {where}",
                json.dumps({**fields, "labels": other}),
                "scored again, 4 of 4 labels fell otherwise",
            ),
            (
                f"UPDATE attacked SET result = ? {where}",
                json.dumps({**fields, "result": {**fields["result"], "norm": 0.05}}),
                "the result says 0.05",
            ),
            (f"UPDATE attacked SET true_label = ? {where}", 99, "the data gives another true label"),
            (f"UPDATE attacked SET image_index = ? {where}", 3, "the run has no such image"),
            ("UPDATE settings SET weights_hash = ?", "0", "the weights are not those that were attacked"),
        ]
    ):
        folder = changed(small, tmp_path / str(number), statement, value)
        capsys.readouterr()
        again = "6" if message.startswith("scored again") else "0"
        assert run(["verify", folder, "--resample", again, "--trust"]) == 1
        assert message in capsys.readouterr().out
