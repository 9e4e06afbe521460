"""report --html: the numbers of the runs, whatever they hold as text, pictures, nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from scipy.stats import binomtest

from diffproof.cli.main import run
from diffproof.runs.attack.report import AttackReport, load_attack_report
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.report import Report, load_report
from diffproof.runs.certify.tables import best_cells
from diffproof.runs.comparison import table_cells, table_header
from helpers.pages import Node, check_self_contained, read_page
from helpers.runs import change, contents, rows

ODD = "<img src=x onerror=alert(1)>\"'&</script>"


def page_of(*folders: Path, flags: str = "") -> Node:
    """The page of some runs, which is self-contained, as any must be."""
    out = folders[0].parent / f"page-{len(list(folders[0].parent.glob('page-*')))}.html"
    assert run(["report", *map(str, folders), "--html", str(out), *flags.split()]) == 0
    text = out.read_text(encoding="utf-8")
    page = read_page(text)
    check_self_contained(page)
    return page


@pytest.fixture(scope="module")
def certified(runs: Path) -> Node:
    """The page of three certifications at two sigmas."""
    return page_of(runs / "none", runs / "dds", runs / "wide")


@pytest.fixture(scope="module")
def attacked(runs: Path) -> Node:
    """The page of two attacks."""
    return page_of(runs / "attacked", runs / "broken")


def certificates(folder: Path) -> list[dict[str, Any]]:
    return [{"truth": truth, **json.loads(text)} for _, truth, text in rows(folder)]


def hits(folder: Path, radius: float) -> int:
    """Images of a certification that are right with at least this radius."""
    return sum(one["label"] == one["truth"] and one["radius"] >= radius for one in certificates(folder))


def interval(number: int, images: int) -> str:
    """The Clopper–Pearson interval, by scipy."""
    found = binomtest(number, images).proportion_ci(0.95, method="exact")
    return f"{100 * found.low:.1f}–{100 * found.high:.1f}"


def test_the_table_has_the_numbers_of_the_runs(certified: Node, runs: Path) -> None:
    head, *body = certified.one("section", id="table").all("table")[0].rows()
    assert head[:4] == ["defence", "sigma", "images", "ε=0"]
    assert [row[:3] for row in body] == [["none", "0.25", "12"], ["dds", "0.25", "12"], ["none", "1", "12"]]
    for row, name in zip(body, ("none", "dds", "wide"), strict=True):
        found = certificates(runs / name)
        assert row[3] == f"{hits(runs / name, 0.0) / 12:.1%}{interval(hits(runs / name, 0.0), 12)}"
        mean = np.mean([one["radius"] * (one["label"] == one["truth"]) for one in found])
        assert row[-3] == f"{mean:.3f}"
        assert row[-1] == f"{sum(one['label'] is None for one in found) / 12:.1%}"
    # No radius as large can be proved.
    assert body[0][head.index("ε=1")] == "–"


def test_charts_say_what_their_tables_say(certified: Node, runs: Path) -> None:
    narrow, wide = certified.all("figure", class_="panel")
    assert [panel.one("h3").text for panel in (narrow, wide)] == ["σ = 0.25", "σ = 1"]
    head, *body = narrow.one("table").rows()
    assert head == ["ε", "none", "dds"]
    slider = narrow.one("input", type="range").attributes
    step = float(slider["step"] or 0)
    for radius, *told in body:
        for place, name in enumerate(("none", "dds")):
            number = hits(runs / name, float(radius))
            expected = f"{number / 12:.1%} ({interval(number, 12)})"
            assert told[place] == expected
            # The slider has as many places as the line has values, and says the same there.
            values = (narrow.all("g", class_="series")[place].attributes["data-values"] or "").split("|")
            assert values[round(float(radius) / step)] == expected
            assert len(values) == round(float(slider["max"] or 0) / step) + 1
    for panel in (narrow, wide):
        assert (panel.all("svg")[0].attributes["aria-label"] or "").startswith("Certified accuracy at σ = ")


def test_the_line_falls_at_the_radii_of_the_run(certified: Node, runs: Path) -> None:
    line = certified.all("g", class_="series")[0].one("path", class_="line").attributes["d"] or ""
    # M x y, then H x V y at each radius: from the radius 0 at 46 to the largest at 466.
    moves = [part.split("V") for part in line.split("H")[1:]]
    drawn = [float(x) for x, _ in moves]
    (row,) = load_report([runs / "none"], [0.0]).rows
    found = sorted(one["radius"] for one in certificates(runs / "none") if one["label"] == one["truth"])
    expected = [46 + 420 * radius / row.largest_radius for radius in found]
    assert all(min(abs(x - one) for one in drawn) <= 0.55 for x in expected)
    last = 256 - 246 * hits(runs / "none", row.largest_radius) / 12
    assert float(moves[-1][1]) == pytest.approx(last, abs=0.06)


def test_sentences_can_be_quoted(certified: Node, runs: Path) -> None:
    sentences = [item.text for item in certified.one("ul", class_="sentences").all("li")]
    at_0, at_quarter = hits(runs / "dds", 0.0) / 12, hits(runs / "dds", 0.25) / 12
    assert len(sentences) == 3
    assert sentences[1].startswith(
        f"At σ = 0.25, dds certifies the right label for {at_0:.1%} of 12 images of digits (test) at all"
    )
    assert f"{at_quarter:.1%} within ℓ2 radius 0.25" in sentences[1]
    notes = [item.text for item in certified.one("ul", class_="notes").all("li")]
    report = load_report([runs / name for name in ("none", "dds", "wide")], [0, 0.25, 0.5, 0.75, 1])
    assert notes == [*report.remarks, *report.comparisons.remarks]


def test_the_best_sigma_stands_as_in_the_terminal(certified: Node, runs: Path) -> None:
    report = load_report([runs / name for name in ("none", "dds", "wide")], [0, 0.25, 0.5, 0.75, 1])
    (best,) = report.best
    assert certified.one("section", id="table").all("table")[1].rows()[1] == best_cells(best)


def test_who_is_ahead_is_said_as_in_the_terminal(certified: Node, attacked: Node, runs: Path) -> None:
    reports: list[tuple[Node, Report | AttackReport]] = [
        (certified, load_report([runs / name for name in ("none", "dds", "wide")], [0, 0.25, 0.5, 0.75, 1])),
        (attacked, load_attack_report([runs / name for name in ("attacked", "broken")])),
    ]
    for page, report in reports:
        (pair,) = report.comparisons.pairs
        (sentence,) = page.one("ul", class_="comparisons").all("li")
        assert sentence.text == f"{pair.sentence}."
        head, body = page.one("section", id="table").all("table")[-1].rows()
        assert head == table_header(report.comparisons)
        assert body == [cell.replace("\n", "") for cell in table_cells(pair)]


def test_every_image_has_its_certificates(certified: Node, runs: Path) -> None:
    cards = certified.all("article")
    assert [card.attributes["data-index"] for card in cards] == [str(index) for index in range(0, 60, 5)]
    for number, name in enumerate(("none", "dds", "wide"), 1):
        for card, one in zip(cards, certificates(runs / name), strict=True):
            (entry,) = card.all("li", **{"data-run": str(number)})
            state = (
                "abstained" if one["label"] is None else "right" if one["label"] == one["truth"] else "wrong"
            )
            assert entry.attributes["data-state"] == state
            assert f"{one['counts'][one['selected']]} of 60 draws" in entry.text
            assert (f"radius {one['radius']:.3f}" in entry.text) == (state != "abstained")


def pixels(image: Node) -> np.ndarray[Any, Any]:
    data = (image.attributes["src"] or "").removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as opened:
        return np.asarray(opened)


def test_every_image_has_its_attack(attacked: Node, runs: Path) -> None:
    report = load_attack_report([runs / "attacked", runs / "broken"])
    cards = attacked.all("article")
    for number, row in enumerate(report.rows, 1):
        entries = [card.one("li", **{"data-run": str(number)}) for card in cards]
        kept = sum(entry.attributes["data-state"] == "right" for entry in entries)
        assert kept / len(cards) == pytest.approx(row.attacked.majority.value)
        assert sum(entry.attributes["data-state"] == "wrong" for entry in entries) == row.skipped
    with AttackStore.reading(runs / "attacked") as store:
        results = store.results()
    for card, result in zip(cards, results, strict=True):
        found = result.evaluated.result
        clean = card.all("img")[0]
        assert clean.attributes["alt"] == f"clean, image {result.evaluated.image_index}"
        assert (pixels(clean) == np.round(result.clean[0].numpy() * 255)).all()
        told = [image.attributes["alt"] for image in card.one("li", **{"data-run": "1"}).all("img")]
        assert [one and one.split(" ")[0].strip(",") for one in told] == (
            [] if found is None else ["perturbed", "difference", "purified"]
        )
        if found is not None:
            perturbed = card.one("li", **{"data-run": "1"}).all("img")[0]
            assert (pixels(perturbed) == np.round(found.adversarial[0].numpy() * 255)).all()


def test_bars_are_the_scores(attacked: Node, runs: Path) -> None:
    report = load_attack_report([runs / "attacked", runs / "broken"])
    table = attacked.one("table", class_="bars")
    names = {
        "fresh": "one draw",
        "majority": "majority",
        "worst": "worst",
        "optimisation": "while optimising",
    }
    for body, row in zip(table.all("tbody"), report.rows, strict=True):
        for score, name in names.items():
            (line,) = body.all("tr", **{"data-score-row": score})
            after, before = getattr(row.attacked, score), getattr(row.clean, score)
            widths = [float(one.attributes["width"] or 0) for one in line.all("rect")]
            assert widths == pytest.approx([100 * before.value, 100 * after.value], abs=0.01)
            assert line.all("th")[0].text == name
            assert f"{after.value:.1%} ({100 * after.low:.1f}–{100 * after.high:.1f})" in line.text
            assert f"clean {before.value:.1%}" in line.text


def test_cost_is_what_the_run_says(certified: Node, attacked: Node, runs: Path) -> None:
    cost = certified.one("section", id="cost").one("table").rows()
    found = certificates(runs / "dds")
    spent, naive = (sum(one[f"{kind}denoiser_evaluations"] for one in found) for kind in ("", "naive_"))
    assert cost[2][3:5] == [f"{spent:,}", f"{1 - spent / naive:.0%}"]
    with AttackStore.reading(runs / "attacked") as store:
        forwards = sum(one.evaluated.result.forwards for one in store.results() if one.evaluated.result)
    assert attacked.one("section", id="cost").one("table").rows()[1][2] == f"{forwards:,}"


def test_hashes_settings_and_versions(certified: Node, runs: Path) -> None:
    (part,) = [
        one for one in certified.one("section", id="runs").all("details") if "dds" in one.one("summary").text
    ]
    (found,) = {one["weights_hash"] for one in certificates(runs / "dds")}
    assert found in part.text
    assert f"diffproof {certificates(runs / 'dds')[0]['version']}" in part.text
    assert (runs / "dds" / "settings.yaml").read_text().strip() in part.text


def test_the_page_reads_without_scripts(certified: Node, attacked: Node) -> None:
    for page in (certified, attacked):
        titles = [title.text for title in page.all("h2")]
        assert len(titles) == 7
        # What does nothing without a script is not there without.
        for control in (*page.all("input", type="range"), *page.all("select"), *page.all("output")):
            assert any(control in part.all("") or control is part for part in page.all("", class_="scripted"))
        # Every picture and every chart has a text.
        assert all(image.attributes["alt"] for image in page.all("img"))
        assert all(
            svg.attributes.get("aria-label") or svg.attributes.get("aria-hidden") for svg in page.all("svg")
        )
        assert all(table.all("caption") for table in page.all("table"))
        links = [link.attributes["href"] or "" for link in page.all("a")]
        assert {link[1:] for link in links} <= {node.attributes.get("id") for node in page.all("")}


def test_the_same_runs_give_the_same_page(runs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert run(["report", str(runs / "none"), "--html", str(tmp_path / name)]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_texts_of_a_run_folder_stay_texts(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / ODD.replace("/", "")
    shutil.copytree(runs / "none", folder)
    settings = {**json.loads(contents(folder)["settings"][0][0]), "data": f"/{ODD}"}
    change(folder, "UPDATE settings SET json = ?", json.dumps(settings))
    page = page_of(folder)
    assert {node.name for node in page.one("main").all("")}.isdisjoint({"script", "img", "iframe"})
    assert ODD in page.one("section", id="runs").text
    assert folder.name in page.one("section", id="runs").text


@pytest.mark.slow
def test_class_names_stay_texts(tmp_path: Path) -> None:
    names = ["\"quoted\" & 'quoted'", "<b>bold<b>"]
    for label, name in enumerate(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            values = np.full((8, 8), 100 * label + number, np.uint8)
            Image.fromarray(values).save(tmp_path / "data" / name / f"{number}.png")
    weights, folder = tmp_path / "classifier.safetensors", tmp_path / "run"
    train = f"train classifier --data {tmp_path / 'data'} --iterations 1 --batch-size 2"
    assert run([*train.split(), "--out", str(weights)]) == 0
    certify = f"certify --data {tmp_path / 'data'} --classifier {weights} --defense none --sigma 0.1"
    assert run([*certify.split(), "--n0", "2", "--n", "10", "--out", str(folder)]) == 0
    page = page_of(folder, flags="--trust")
    titles = [card.one("h3").text for card in page.all("article")]
    assert titles == [f"Image {index}class {index // 2} ({names[index // 2]})" for index in range(4)]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A run over a file of images, and the file."""
    source = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    np.savez(tmp_path / "own.npz", images=source, labels=np.arange(4))
    line = (
        f"certify --data {tmp_path / 'own.npz'} --classifier digits --defense none --sigma 0.5 --n0 2 --n 10"
    )
    assert run([*line.split(), "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_files_are_opened_for_who_trusts_alone(own: Path) -> None:
    page = page_of(own)
    assert page.all("img") == []
    assert len(page.all("article")) == 4
    told = page.one("section", id="images").all("p")[0].text
    named = f"the runs name the data {str(own.parent / 'own.npz')!r}"
    assert told == f"4 pictures of 4 not here: {named}, which is opened with --trust or --data only."
    given = page_of(own, flags=f"--data {own.parent / 'own.npz'}")
    assert (pixels(given.all("img")[1]) == np.arange(64, 128).reshape(8, 8)).all()
    assert len(page_of(own, flags="--trust").all("img")) == 4


def test_pictures_of_other_data_are_not_shown(own: Path) -> None:
    source = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    source[2] = 7
    np.savez(own.parent / "other.npz", images=source, labels=np.arange(4))
    page = page_of(own, flags=f"--data {own.parent / 'other.npz'}")
    assert len(page.all("img")) == 3
    told = page.one("section", id="images").all("p")[0].text
    assert told == "1 picture of 4 not here: the data has others than the runs had, by their hashes."


def test_data_that_is_gone_is_said(own: Path) -> None:
    (own.parent / "own.npz").unlink()
    told = page_of(own, flags="--trust").one("section", id="images").all("p")[0].text
    assert "the data of the runs cannot be read: data: no such file" in told


def test_a_run_that_is_going_says_so(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "none", folder)
    assert page_of(folder).all("p", class_="going") == []
    change(folder, "DELETE FROM images WHERE image_index > 30")
    (told,) = page_of(folder).all("p", class_="going")
    assert told.text.startswith(f"{folder} is not complete (unfinished): 7 of 12 images finished.")
    with FileLock(folder / "lock"):
        (told,) = page_of(folder).all("p", class_="going")
    assert told.text.startswith(f"{folder} is still going: 7 of 12 images finished.")


@pytest.mark.slow
def test_what_the_command_says(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert run(["report", str(runs / "none"), "--html", str(out), "--out", str(tmp_path), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert written == [str(tmp_path / name) for name in ("table.csv", "curve.png", "report.html")]
