"""What results look like in a notebook: tables of HTML that no text can break out of."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import diffproof as dp
from diffproof.notebooks import table
from helpers.classifiers import steep_classifier
from helpers.denoisers import mixture
from helpers.images import pictures

ODD = "<script>alert(1)</script> & \"'\n\x1b[0m"


class Table(HTMLParser):
    """The texts of rows, and the elements that there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.title = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.add(tag)
        assert all(name == "style" and "color" not in str(value) for name, value in attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] == "p":
            self.title += data
        else:
            self.rows[-1][-1] += data


def shown(result: Any) -> Table:
    found = Table(result._repr_html_())
    assert found.seen <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    return found


def test_texts_are_escaped() -> None:
    found = Table(table(ODD, [(ODD, ODD)], (ODD, 1)))
    readable = "<script>alert(1)</script> & \"' \\x1b[0m"
    assert (found.title, found.rows) == (readable, [[readable, "1"], [readable, readable]])
    assert "script" not in found.seen


def two_labels(noisy: torch.Tensor) -> torch.Tensor:
    return (noisy.mean((1, 2, 3)) > 0.5).long()


@pytest.mark.parametrize(
    "how", [{}, {"stop": "sequential", "radii": [0.1, 0.2]}], ids=["fixed", "sequential"]
)
def test_certificates(how: dict[str, Any]) -> None:
    images = torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    given: dict[str, Any] = {"sigma": 0.25, "n": 300, "num_classes": 2, **how}
    certified = dp.certify(images, torch.tensor([1, 1]), defense=two_labels, **given)
    right, abstained = (shown(one) for one in certified)
    assert right.title == f"class 1 within an ℓ2 radius of {certified.certificates[0].radius:.4f}"
    assert abstained.title == "abstained: no class is certified"
    told = dict(right.rows)
    assert told["defence"] == "method function"
    n = certified.certificates[0].n
    assert f"{n:,}" in told["draws"]
    assert told["draws of class 1"] == f"{n:,} of {n:,}"
    assert (" of at most 300 (proved) to bound" in told["draws"]) == bool(how)
    rows = dict(shown(certified).rows)
    assert rows["certified accuracy at ε = " + ("0.1" if how else "0")] == "50.0% (1.3% to 98.7%)"
    assert rows["average certified radius"] == f"{certified.average_radius:.3f}"
    assert rows["abstained"].startswith("50.0%")


def test_evaluations_and_scores() -> None:
    defense = dp.Undefended(steep_classifier())
    images = pictures(4, 0, (1, 2, 2))
    labels = defense.predict_labels(images)
    labels[0] = (labels[0] + 1) % 3
    found = dp.evaluate(defense, images, labels, budget=0.9, iterations=3, draws=2, votes=3)
    names, *rows = shown(found).rows
    assert names == ["", "clean", "attacked"]
    assert [row[0] for row in rows] == ["one draw", "majority of 3", "worst of 2", "while optimising"]
    assert rows[1][1:] == [str(found.clean.majority), str(found.attacked.majority)]
    assert "3 of 4 images are right without an attack, and attacked" in shown(found).title
    assert shown(found.clean).rows[1] == ["majority of 3", "75.0% (19.4% to 99.4%)"]


def test_defences() -> None:
    found = shown(dp.DDS(mixture(), steep_classifier()))
    assert found.title == "DDS"
    rows = dict(found.rows)
    assert (rows["method"], rows["classes"]) == ("dds", "3")
    assert rows["classifier"].endswith(" parameters")
