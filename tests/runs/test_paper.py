"""What papers take from a report: LaTeX, CSV, figures, what is best over sigma; an entry of RobustBench."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from diffproof.cli.main import run
from diffproof.runs.attack.report import load_attack_report
from diffproof.runs.attack.robustbench import robustbench_entry
from diffproof.runs.certify.report import load_report
from diffproof.runs.certify.tables import best_cells, cells
from diffproof.runs.latex import escaped, tabular
from helpers.command_line import Refused
from helpers.paths import ROOT
from helpers.runs import rows

pytestmark = pytest.mark.usefixtures("small_digits")

RESNET = ROOT / "docs" / "results" / "resnet56"
FOLDERS = [RESNET / f"{name}-{sigma}" for sigma in ("0.25", "0.5") for name in ("none", "dds")]
REPORT = ["report", *map(str, FOLDERS), "--at", "0,0.25,0.75"]


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A random defence and none, attacked."""
    folder = tmp_path_factory.mktemp("attacks")
    pure = "--defense diffpure:t_star=0.1,steps=2 --denoiser digits --diagnose 0"
    for name, flags in (("pure", pure), ("none", "--defense none --diagnose 1")):
        line = (
            "attack --data digits --indices 0:3 --classifier digits --threat linf --budget 8/255"
            f" --attack pgd:iterations=2 --draws 3 --majority-of 3 {flags}"
        )
        assert run([*line.split(), "--out", str(folder / name)]) == 0
    return [folder / "pure", folder / "none"]


def body(text: str) -> list[list[str]]:
    """The cells of a tabular's rows, as LaTeX reads them: comments and rules aside."""
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    return [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]


def test_latex_has_what_the_screen_has(tmp_path: Path) -> None:
    file = tmp_path / "table.tex"
    assert run([*REPORT, "--latex", str(file)]) == 0
    text = file.read_text(encoding="utf-8")
    report = load_report(FOLDERS, [0.0, 0.25, 0.75])
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    over, head, *made = [[cell.strip() for cell in line] for line in body(text)]
    spanned = sum(int(found) - 1 for found in re.findall(r"\\multicolumn\{(\d+)\}", " ".join(over)))
    assert len(over) + spanned == len(head) == len(columns) == 6
    assert {len(line) for line in made} == {6}
    expected = []
    for row in report.rows:
        label, sigma, _, *shown, radius, _, _ = cells(report, row)
        expected.append([label, sigma, *shown, radius])
    for best in report.best:
        label, _, *shown = best_cells(best)
        expected.append([label, "best", *shown, ""])
    assert made == [[cell.replace("%", "").replace("–", "--") for cell in line] for line in expected]
    outside = [line for line in text.splitlines() if not line.startswith("%")]
    assert all(line.count("{") == line.count("}") and line.isascii() for line in outside)
    # What a reader must know stands above it, also where the words come from elsewhere.
    for remark in (*report.remarks, *report.comparisons.remarks, report.comparisons.pairs[0].sentence):
        assert f"% {remark}" in text.splitlines()


def test_latex_prints_names_as_they_are() -> None:
    assert escaped(r"a_b%c&d#e$f{g}~h^i\j") == (
        r"a\_b\%c\&d\#e\$f\{g\}\textasciitilde{}h\textasciicircum{}i\textbackslash{}j"
    )
    assert escaped("two\nlines, ε=1") == r"two lines, $\varepsilon$=1"
    # A note cannot end its comment.
    assert tabular("l", [["x"]], [], ["a\n\\input{b}"]).splitlines()[1] == r"% a \input{b}"


def test_best_over_sigma_by_hand() -> None:
    report = load_report(FOLDERS, [0.0, 0.25, 0.75])
    assert [best.label for best in report.best] == ["none", "dds"]
    for best, name in zip(report.best, ("none", "dds"), strict=True):
        for radius, row in best.at.items():
            accuracies = {}
            for sigma in ("0.25", "0.5"):
                found = [(label, json.loads(text)) for _, label, text in rows(RESNET / f"{name}-{sigma}")]
                hits = sum(one["label"] == label and one["radius"] >= radius for label, one in found)
                accuracies[float(sigma)] = hits / len(found)
            assert row.certified_accuracy(radius) == max(accuracies.values())
            assert row.certified_accuracy(radius) == accuracies[row.settings.sigma]
    # A radius that one sigma alone can reach is that one's, also where nothing is certified there.
    assert report.best[0].at[0.75].settings.sigma == 0.5
    assert load_report(FOLDERS[:2], [0.0]).best == []
    # Over other images there is no best one.
    other = load_report([FOLDERS[1], RESNET / "dds-16th-0.5"], [0.0])
    assert {other.label(row) for row in other.rows} == {"dds"}
    assert other.best == []


@pytest.mark.slow
def test_csv_is_the_table_of_the_folder(tmp_path: Path) -> None:
    assert run([*REPORT, "--csv", str(tmp_path / "one.csv"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "out" / "table.csv").read_bytes()


@pytest.mark.slow
def test_no_cell_is_a_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source in (("=1+1", FOLDERS[0]), ("@cell", FOLDERS[1])):
        shutil.copytree(source, name)
    assert run(["report", "=1+1", "@cell", "--out", "out"]) == 0
    for table in ("table.csv", "comparisons.csv"):
        with (tmp_path / "out" / table).open(encoding="utf-8") as file:
            texts = [cell for line in csv.reader(file) for cell in line]
        assert "'@cell" in texts
        assert not [cell for cell in texts if cell[:1] in tuple("=+@")]
        assert all(float(cell) <= 0 for cell in texts if cell[:1] == "-")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pdf", "svg", "png"])
@pytest.mark.parametrize("of", ["certified", "attacked"])
def test_figures_are_as_wide_as_a_column(of: str, form: str, tmp_path: Path, attacks: list[Path]) -> None:
    words = REPORT if of == "certified" else ["report", *map(str, attacks)]
    files = [tmp_path / f"{number}.{form}" for number in (1, 2)]
    for file in files:
        assert run([*words, "--figure", str(file)]) == 0
    drawn = files[0].read_bytes()
    assert drawn == files[1].read_bytes()
    # 3.25 inches of 72 points; PNG has 300 dots an inch.
    if form == "pdf":
        assert drawn[:5] == b"%PDF-"
        (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", drawn)
        assert float(box[0]) == 234
        # Letters that can be searched and copied, as publishers ask.
        assert b"/FontFile2" in drawn
        assert b"/Type3" not in drawn
    elif form == "svg":
        assert re.search(rb'<svg[^>]* width="234pt"', drawn)
        assert b"<text" not in drawn
    else:
        pixels = matplotlib.image.imread(files[0])
        assert pixels.shape[1] == 975
        for colour in ("D55E00", "0072B2"):
            near = abs(pixels[..., :3] - [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]).max(2) < 0.02
            assert near.sum() > 100


@pytest.mark.slow
def test_all_sigmas_are_on_one_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    assert run([*REPORT, "--figure", str(tmp_path / "figure.pdf")]) == 0
    (axis,) = drawn[0].axes
    curves = [line for line in axis.lines if np.size(line.get_xdata()) > 0]
    looks = {(line.get_color(), line.get_linestyle()) for line in curves}
    assert len(curves) == len(looks) == 4
    assert (len({colour for colour, _ in looks}), len({style for _, style in looks})) == (2, 2)
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["none", "dds", "σ = 0.25", "σ = 0.5"]
    # A curve ends where its n and alpha allow no larger radius.
    ends = sorted({round(float(np.asarray(line.get_xdata())[-1]), 3) for line in curves})
    assert ends == sorted(round(row.largest_radius, 3) for row in load_report(FOLDERS[::2], [0.0]).rows)


@pytest.mark.slow
def test_names_of_bars_end_within_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    folders = [str(ROOT / "docs" / "results" / "digits" / f"{name}-linf") for name in ("pgd-at", "gdmp")]
    assert run(["report", *folders, "--figure", str(tmp_path / "figure.png")]) == 0
    (axis,) = drawn[0].axes
    short, long = (text.get_window_extent() for text in axis.texts)
    assert axis.bbox.x0 < short.x0 < short.x1 < axis.bbox.x1
    assert axis.bbox.x0 < long.x0 < axis.bbox.x0 + 0.8 * axis.bbox.width < long.x1 < axis.bbox.x1


# The fields of the files in RobustBench's folder model_info, of November 2026.
FIELDS = {
    *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue"),
    *("architecture", "eps", "clean_acc", "reported", "autoattack_acc", "external", "footnote", "unreliable"),
}


def test_an_entry_for_robustbench(attacks: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(attacks[0]), "--format", "robustbench"]) == 0
    out, err = capsys.readouterr()
    assert "null in the entry: link, name, authors, venue, additional_data, reported" in err
    entry = json.loads(out)
    assert set(entry) == FIELDS
    (row,) = load_attack_report(attacks[:1]).rows
    shares = [f"{100 * score.fresh.value:.2f}" for score in (row.clean, row.attacked)]
    # Not AutoAttack, so its field has nothing to say.
    assert [entry[name] for name in ("clean_acc", "external", "autoattack_acc")] == [*shares, None]
    assert (entry["eps"], entry["dataset"], entry["number_forward_passes"]) == ("8/255", "digits", 1)
    assert "3 images (test)" in entry["footnote"]
    # Nobody looked whether its gradient is right.
    assert entry["unreliable"] is None


@pytest.mark.parametrize(
    ("attack", "gradient", "counts"),
    [
        ("autoattack", "exact", True),
        ("autoattack:version=rand", "exact", False),
        ("autoattack", "bpda", False),
    ],
)
def test_autoattack_has_a_field_of_its_own(
    attacks: list[Path], attack: str, gradient: str, counts: bool
) -> None:
    (row,) = load_attack_report(attacks[1:]).rows
    entry = robustbench_entry(replace(row, settings=replace(row.settings, attack=attack, gradient=gradient)))
    assert set(entry) == (FIELDS - {"external"} if counts else FIELDS)
    assert entry["autoattack_acc" if counts else "external"] == f"{100 * row.attacked.fresh.value:.2f}"
    assert entry["unreliable"] == (not all(one.passed for one in row.findings or ()))


def test_a_threat_without_leaderboard_is_refused(attacks: list[Path]) -> None:
    (row,) = load_attack_report(attacks[1:]).rows
    with pytest.raises(ValueError, match="format: RobustBench ranks linf and l2, got an attack of stadv"):
        robustbench_entry(replace(row, settings=replace(row.settings, threat="stadv", budget="0.05")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "report {run} --figure f.jpg",
            "--figure: expected a file that ends in .pdf, .svg or .png, got",
        ),
        ("report {run} --latex nowhere/t.tex", "--latex: no such folder: nowhere"),
        ("report {run} --csv there", "--csv: there exists; --force overwrites it"),
        ("report {run} --csv t --latex t", "--latex: --csv writes to t, too"),
        ("report {run} --over votes --csv t", "--csv: shows whole runs, not what fewer votes or draws do"),
        ("report {run} --force", "--force: is for files to write, and none is named"),
        ("export {run} --format robustbench", "--format: robustbench is for attacks"),
    ],
)
def test_mistakes_are_one_line(
    line: str, message: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("mine", encoding="utf-8")
    assert message in refused(line.format(run=FOLDERS[0]).split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
