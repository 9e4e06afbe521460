"""The entries against what the papers print, and what each would run."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from diffproof.catalog import DEFENSES
from diffproof.errors import ArgumentError
from diffproof.methods import parse
from diffproof.reproduce import certified
from diffproof.reproduce import entry as beside
from diffproof.reproduce.attacked import AttackedTable
from diffproof.reproduce.certified import CertifiedTable
from diffproof.reproduce.entries import ENTRIES, find
from diffproof.reproduce.entry import Entry, Unavailable
from diffproof.reproduce.printed import Place, printed
from diffproof.reproduce.quick import quick
from diffproof.reproduce.request import Request
from diffproof.reproduce.trainings import images_seen, training
from diffproof.runs.certify.report import load_row
from helpers.paths import ROOT

RUN = [entry for entry in ENTRIES.values() if not isinstance(entry, Unavailable)]
# Throughput and hours, which are of a machine.
OF_A_MACHINE = {"images_per_second", "seconds_per_image", "hours"}


def test_every_printed_number_stands_in_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: set[tuple[str, Place]] = set()

    def number(dataset: str, place: Place) -> float | None:
        asked.add((dataset, place))
        return printed().get((dataset, place))

    monkeypatch.setattr(beside, "number", number)
    for entry in RUN:
        for data in ("digits", "cifar10", "cifar100", "imagenet"):
            entry.lines(Request(data, {}, tmp_path))
    lacking = {(dataset, place) for dataset, place in printed() if (dataset, place) not in asked}
    assert {place for _, place in lacking if place.metric not in OF_A_MACHINE} == set()
    assert len(printed()) > 600


def test_numbers_are_those_of_their_row_column_and_data(tmp_path: Path) -> None:
    def row(name: str, data: str, label: str) -> dict[str, tuple[float | None, float | None]]:
        entry = ENTRIES[name]
        line = next(one for one in entry.lines(Request(data, {}, tmp_path)) if one.label == label)
        cells = zip(entry.columns(), line.cells, strict=True)
        return {at: (cell.printed, cell.printed_clean) for at, cell in cells}

    assert row("densepure:tableA", "digits", "DensePure, σ=0.5")["ε=0.75"] == (46.0, None)
    assert row("densepure:table1", "cifar10", "DensePure")["ε=0.25"] == (76.6, 87.6)
    assert (
        row("densepure:table1", "imagenet", "DDS")["ε=0.5"][0]
        != row("densepure:table1", "cifar10", "DDS")["ε=0.5"][0]
    )
    assert row("agdm:table5", "cifar10", "Adv. CRAIG") == {
        "clean": (83.2, None),
        "AA linf 8/255": (40.0, None),
        "AA l2 1.0": (33.9, None),
        "StAdv 0.05": (49.6, None),
    }
    assert row("rdc:table2", "cifar10", "RDC")["average"] == (81.64, None)
    assert row("densepure:tableG", "cifar10", "DensePure K-consensus, σ=1")["votes a draw"] == (5.49, None)
    # Another data set that the papers have stands beside nothing of this one.
    assert row("agdm:table1", "cifar100", "DiffPure")["linf 8/255"] == (None, None)


def texts(entry: Entry) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if isinstance(entry, CertifiedTable):
        found = [("defense", row.defense) for row in entry.rows]
    if isinstance(entry, AttackedTable):
        attacks = [text for row in entry.rows for text in row.attacks.values()]
        attacks += [threat.attack for threat in entry.threats]
        found = [*(("defense", row.defense) for row in entry.rows), *(("attack", text) for text in attacks)]
    return found


@pytest.mark.parametrize("entry", RUN, ids=lambda entry: entry.name)
def test_methods_are_written_as_diffproof_reads_them_also_when_cut_down(entry: Entry) -> None:
    for kind, text in texts(entry):
        if kind == "attack" or text.partition(":")[0] in DEFENSES:
            assert str(parse(kind, text))
            assert str(parse(kind, quick(kind, text)))
    assert not isinstance(entry, CertifiedTable | AttackedTable) or texts(entry)


def test_quick_cuts_every_size() -> None:
    assert quick("defense", "densepure:steps=10,votes=40") == "densepure:steps=2,votes=3"
    assert quick("defense", "dds") == "dds"
    assert quick("defense", "diffpure:t_star=0.1") == "diffpure:t_star=0.1,steps=2"
    assert parse("defense", quick("defense", "gradual")).settings == {"t_star": [0.03], "steps": [2]}
    assert parse("defense", quick("defense", "rdc:iterations=1")).settings["iterations"] == 1
    assert parse("defense", quick("defense", "rdc")).settings["timesteps"] == "uniform:2"
    # What has no value by default stays without one, but for the steps, which are one a timestep then, and
    # the iterations, which are five or ten.
    assert parse("defense", quick("defense", "rdc")).settings["iterations"] == 2
    assert parse("defense", quick("defense", "likelihood:variant=authors")).settings["iterations"] == 2
    assert quick("defense", "none") == "none"
    assert "iterations" not in parse("defense", quick("defense", "gdmp")).settings
    assert quick("attack", "autoattack:version=rand").startswith("pgd:")


def test_images_are_as_many_as_the_paper_takes_unless_others_are_asked_for(tmp_path: Path) -> None:
    assert Request("cifar10", {}, tmp_path).chosen(500) == ("--indices", "0:10000:20")
    assert Request("imagenet", {}, tmp_path).chosen(100) == ("--indices", "0:50000:500")
    # 10,000 is no multiple of 512.
    assert Request("cifar10", {}, tmp_path).chosen(512) == ("--indices", "0:9728:19")
    assert Request("digits", {}, tmp_path).chosen(500) == ("--limit", "500")
    assert Request("cifar10", {}, tmp_path, images=("--limit", "7")).chosen(500) == ("--limit", "7")


def test_pictures_of_the_theory_are_those_of_its_command(tmp_path: Path) -> None:
    assert [step.line for step in find("densepure:figure2").steps(Request("", {}, tmp_path))] == [
        ("theory", "--force", "--out", str(tmp_path / "theory"))
    ]


def test_trainings_come_before_what_they_need(tmp_path: Path) -> None:
    entry, networks = find("dds:table3"), {"classifier": "digits", "denoiser": "digits"}
    request = Request("digits", networks, tmp_path, training=("--iterations", "5"))
    steps = entry.steps(request)
    words = [step.words[0] for step in steps]
    assert words == ["train"] * 3 + ["finetune"] * 3 + ["certify"] * 9 + ["report"]
    tuned = next(step for step in steps if step.words[0] == "finetune")
    assert tuned.words[1:9] == (
        "--sigma",
        "0.25",
        "--classifier",
        "digits",
        "--denoiser",
        "digits",
        "--data",
        "digits",
    )
    asked = [step for step in steps if str(tuned.out) in step.words]
    assert [step.words[step.words.index("--sigma") + 1] for step in asked] == ["0.25"]
    # Without --train a row of networks that are not there is left out, and the table says what it needs.
    left = entry.lines(Request("digits", networks, tmp_path))
    assert next(line.lacking for line in left) == "needs --network smoothadv@0.25=SPEC, or --train"


def test_the_denoiser_of_denoised_smoothing_is_trained_for_each_level(tmp_path: Path) -> None:
    entry, networks = find("densepure:table1"), {"classifier": "digits", "denoiser": "digits"}
    steps = entry.steps(Request("digits", networks, tmp_path, training=("--iterations", "5")))
    (first,) = [step for step in steps if step.words[:4] == ("train", "denoiser", "--single-sigma", "0.5")]
    assert first.words[4:] == ("--objective", "mse", "--data", "digits", "--iterations", "5")
    # The row is that of the classifier's labels, begun with the one of pixels.
    (made,) = [step for step in steps if str(first.out) in step.words]
    assert made.words[:4] == ("train", "denoiser", "--objective", "stab")
    assert made.words[4:8] == ("--denoiser", str(first.out), "--classifier", "digits")
    (asked,) = [step for step in steps if str(made.out) in step.words]
    assert asked.words[asked.words.index("--sigma") + 1] == "0.5"
    assert steps.index(first) < steps.index(made) < steps.index(asked)


def test_adversarial_training_is_on_images_of_a_diffusion_model(tmp_path: Path) -> None:
    entry, networks = find("rdc:table2"), {"classifier": "digits", "denoiser": "digits"}
    flags = ("--iterations", "5", "--device", "cpu")
    steps = entry.steps(Request("digits", networks, tmp_path, training=flags, samples=448))
    words = [step.words for step in steps]
    drawn = ("sample", "--denoiser", "digits", "--n", "448", "--device", "cpu")
    assert words.count(drawn) == 1
    generated = str(steps[words.index(drawn)].out)
    assert generated.endswith(".npz")
    (made,) = [step for step in steps if generated in step.words and "l2" in step.words]
    told = "--norm l2 --budget 0.5 --trades-weight 5 --label-smoothing 0.1 --extra-share 0.7"
    assert f"{told} --ema-decay 0.995 --extra-data {generated} --data digits" in " ".join(made.words)
    assert words.index(drawn) < steps.index(made)
    # Without EDM's diffusion model its rows are left out, and say what they are trained from.
    lines = {
        line.label: line.lacking
        for line in entry.lines(Request("digits", networks, tmp_path, training=flags))
    }
    assert lines["AT-EDM-linf"] == "needs --network edm=SPEC"
    assert not any("edm" in word for words in steps for word in words.words)
    lines = {line.label: line.lacking for line in entry.lines(Request("digits", networks, tmp_path))}
    assert lines["AT-EDM-linf"] == "needs --network at-edm=SPEC, or --train with --network edm=SPEC"
    assert lines["AT-DDPM-linf"] == "needs --network at-ddpm=SPEC, or --train"
    given = Request("digits", networks | {"edm": "cifar10"}, tmp_path, training=flags)
    assert [step for step in entry.steps(given) if step.words[:3] == ("sample", "--denoiser", "cifar10")]


def attacks_of(
    name: str, networks: dict[str, str], tmp_path: Path, attack: str | None = None
) -> list[dict[str, str]]:
    """The flags of every attack of an entry."""
    steps = find(name).steps(Request("cifar10", networks, tmp_path, attack=attack))
    words = [step.words[1:] for step in steps if step.words[0] == "attack"]
    return [dict(zip(some[::2], some[1::2], strict=True)) for some in words]


def test_each_threat_meets_the_model_that_the_paper_has_for_it(tmp_path: Path) -> None:
    roles = ("at-ddpm", "at-ddpm-l2", "denoiser", "classifier")
    made = attacks_of("rdc:table1", {role: role for role in roles}, tmp_path)
    alone = [(one["--threat"], one["--classifier"]) for one in made if one["--defense"] == "none"]
    assert alone == [("linf", "at-ddpm"), ("l2", "at-ddpm-l2")]
    # Nie et al. 2022 diffuse to 0.1 for one and to 0.075 for the other.
    wanted = [("linf", "diffpure:t_star=0.1"), ("l2", "diffpure:t_star=0.075")]
    both = {"denoiser": "denoiser", "classifier": "classifier"}
    for name in ("rdc:table1", "agdm:table6", "agdm:table7"):
        found = attacks_of(name, both, tmp_path)
        assert [(o["--threat"], o["--defense"]) for o in found if "diffpure" in o["--defense"]] == wanted
    # A network of one threat alone fills its column, and the line says what the other lacks.
    request = Request("cifar10", {"at-ddpm": "at-ddpm"}, tmp_path)
    assert len([step for step in find("rdc:table1").steps(request) if step.words[0] == "attack"]) == 1
    assert (
        find("rdc:table1").lines(request)[0].lacking
        == "needs --network at-ddpm-l2=SPEC, or --train with --denoiser SPEC"
    )
    assert "at-ddpm-l2" in find("rdc:table1").needs


def test_the_second_version_of_rdc_averages_over_pixels_as_its_code_does() -> None:
    entry = find("rdc:text-v2")
    assert isinstance(entry, AttackedTable)
    settings = [parse("defense", row.defense).settings for row in entry.rows]
    assert [(one["variant"], one["reduction"]) for one in settings] == [("authors", "mean")] * 2


def test_autoattack_of_random_defences_is_not_for_classifiers_alone(tmp_path: Path) -> None:
    """Its version rand leaves out the targeted attacks and Square."""
    networks = {role: role for role in ("classifier", "denoiser", "at-linf", "jem")}
    for name in ("rdc:table1", "agdm:table5"):
        made = [one for one in attacks_of(name, networks, tmp_path) if one["--threat"] != "stadv"]
        assert {one["--attack"] for one in made if one["--defense"] == "none"} == {
            "autoattack:version=standard"
        }
        random = [one for one in made if one["--defense"] != "none"]
        assert {one.get("--attack", one.get("--protocol")) for one in random} <= {
            "autoattack:version=rand",
            "agdm",
        }
        assert len(random) > 1


def test_an_attack_in_place_of_the_papers_leaves_those_of_rows_and_stadv(tmp_path: Path) -> None:
    networks = {role: role for role in ("classifier", "denoiser", "guide")}
    for name, told in (
        ("rdc:table3", {"pgd:iterations=2,eot=3", "lagrange:iterations=100"}),
        ("agdm:table5", {"pgd:iterations=2,eot=3"}),
        ("agdm:table6", {"pgd:iterations=2,eot=3"}),
    ):
        made = attacks_of(name, networks, tmp_path, attack="pgd:iterations=2,eot=3")
        pixels = [one for one in made if one["--threat"] != "stadv"]
        assert {one["--attack"] for one in pixels} == told
        assert not any("--protocol" in one for one in pixels)
        usual = attacks_of(name, networks, tmp_path)
        assert [one for one in made if one["--threat"] == "stadv"] == [
            one for one in usual if one["--threat"] == "stadv"
        ]
    # Other attacks are other runs, also one of the text that the paper has with a protocol.
    assert all(one["--attack"] == "pgd" for one in attacks_of("agdm:table6", networks, tmp_path, "pgd"))
    asked = [
        Request("cifar10", networks, tmp_path, attack=attack)
        for attack in (None, "pgd", "pgd:iterations=2,eot=3", "pgd:iterations=2,eot=4")
    ]
    folders = [{step.out for step in find("agdm:table6").steps(request)} for request in asked]
    for one, other in combinations(folders, 2):
        assert one & other == {tmp_path / "agdm-table6"}


def test_where_nothing_is_certified_stands_zero_if_some_sigma_could() -> None:
    runs = [
        load_row(ROOT / "docs" / "results" / "digits" / name) for name in ("gaussian-0.25", "figure4-steps-2")
    ]
    assert [run.largest_radius > 1.0 for run in runs] == [False, True]
    assert [run.certified_accuracy(1.0) for run in runs] == [0.0, 0.0]
    assert (certified._cell(runs, 1.0, 5.0).ours, certified._cell(runs[:1], 1.0, 5.0).ours) == (0.0, None)


def test_a_table_of_the_best_has_the_accuracy_at_0_also_of_a_single_sigma() -> None:
    run = load_row(ROOT / "docs" / "results" / "digits" / "gaussian-0.25")
    assert certified._cell([run], 0.25, 5.0, best=True).clean == 100 * run.certified_accuracy(0.0)
    assert certified._cell([run], 0.25, 5.0).clean is None


def test_adversarial_training_is_at_the_budget_of_its_table() -> None:
    # Laidlaw et al. 2021, whose rows AGDM's table 5 has, train and attack at 1.
    made = training("at-l2")
    assert made is not None
    assert made.words[made.words.index("--budget") + 1] == "1.0"


def test_no_more_images_are_generated_than_a_training_draws() -> None:
    assert images_seen(1000) == 89_600
    assert images_seen(10, 20) == 140


def test_small_sizes_are_of_folders_and_trainings_of_their_own(tmp_path: Path) -> None:
    entry, networks = find("rdc:table1"), {"classifier": "digits", "denoiser": "digits"}
    flags = ("--iterations", "5", "--device", "cpu")
    for cut, text, folder in (
        (True, "jem:steps=2", "networks-quick"),
        (False, "jem", "networks"),
    ):
        steps = entry.steps(Request("digits", networks, tmp_path, training=flags, quick=cut))
        (made,) = [step for step in steps if text in step.words]
        assert made.out == tmp_path / folder / "jem.safetensors"
        assert ("--batch-size" in made.words) == cut
    # A denoiser that is tuned keeps its channels.
    request = Request("digits", networks, tmp_path, training=flags, quick=True)
    lines = [step.words for step in find("densepure:table1").steps(request)]
    small = {"--channels" in words: "--denoiser" in words for words in lines if words[1] == "denoiser"}
    assert small == {True: False, False: True}


def test_trainings_whose_start_is_lacking_are_left_out(tmp_path: Path) -> None:
    request = Request("digits", {"classifier": "digits"}, tmp_path, training=("--iterations", "5"))
    assert request.spec("finetuned@0.5") is None
    assert request.lacking(("finetuned@0.5", "gaussian@0.5")) == ["denoiser"]
    assert request.lacks(["denoiser"]) == "needs --denoiser SPEC"
    none = Request("digits", {"classifier": "digits"}, tmp_path)
    assert none.lacks(none.lacking(("finetuned@0.5",))) == (
        "needs --network finetuned@0.5=SPEC, or --train with --denoiser SPEC"
    )


@pytest.mark.slow
def test_another_bound_is_of_a_run_that_makes_all_its_draws(tmp_path: Path) -> None:
    networks = {f"gaussian@{sigma}": "digits" for sigma in ("0.25", "0.5", "1")}
    steps = find("densepure:table1").steps(Request("digits", networks, tmp_path, stop="sequential"))
    ends = ["--stop" in step.words for step in steps if step.words[0] == "certify"]
    # Those of PixelDP, then those of the same classifiers by the usual bound.
    assert ends == [False] * 3 + [True] * 3
    assert len({step.out for step in steps}) == len(steps)


# The second has no column at 0, but the accuracy there in brackets.
@pytest.mark.parametrize("name", ["dds:table4a", "dds:table5"])
def test_sequential_runs_are_asked_for_what_they_can_prove(name: str, tmp_path: Path) -> None:
    roles = ("classifier", "denoiser", *(f"finetuned@{sigma}" for sigma in ("0.25", "0.5", "1")))
    request = Request("digits", dict.fromkeys(roles, "digits"), tmp_path, n=10_000, stop="sequential")
    steps = [step.words for step in find(name).steps(request) if step.words[0] == "certify"]
    asked = {words[words.index("--sigma") + 1]: words[words.index("--radii") + 1] for words in steps}
    # 10,000 equal draws prove 0.80 at σ = 0.25.
    assert asked == {"0.25": "0,0.25,0.5,0.75", "0.5": "0,0.25,0.5,0.75,1", "1": "0,0.25,0.5,0.75,1"}


@pytest.mark.slow
def test_sequential_runs_of_other_radii_are_others(tmp_path: Path) -> None:
    networks = {"classifier": "digits", "denoiser": "digits"}
    how = {"n": 10_000, "stop": "sequential", "images": ("--indices", "0:4")}
    of = {}
    for name in ("dds:table2", "dds:table4a", "densepure:tableA"):
        steps = find(name).steps(Request("digits", networks, tmp_path, **how))  # type: ignore[arg-type]
        of[name] = {step.out for step in steps if step.words[0] == "certify" and "dds" in step.words}
    assert len(of["dds:table2"]) == 3
    assert not of["dds:table2"] & of["dds:table4a"]
    assert of["densepure:tableA"] == of["dds:table4a"]


def test_members_of_an_ensemble_have_seeds_of_their_own(tmp_path: Path) -> None:
    made = training("boosting@0.5")
    assert made is not None
    commands = made.commands(tmp_path, {})
    assert [words[-1] for words, _ in commands] == [str(seed) for seed in range(10)]
    assert made.spec(tmp_path) == "ensemble:" + ",".join(str(path) for _, path in commands)
    assert training("droppath") is None


def test_members_of_an_ensemble_are_two_when_cut_down(tmp_path: Path) -> None:
    flags = ("--iterations", "5", "--device", "cpu")
    for cut, count in ((True, 2), (False, 10)):
        request = Request("digits", {}, tmp_path, training=flags, quick=cut)
        made = [str(step.out) for step in request.trainings(("boosting@0.5",))]
        assert len(made) == count
        assert request.spec("boosting@0.5") == "ensemble:" + ",".join(made)


def test_unknown_entries_name_the_nearest() -> None:
    with pytest.raises(ArgumentError, match="did you mean densepure:table1"):
        find("densepure:tabel1")
