"""The example notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.paths import EXAMPLES

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def shown(code: str, names: dict[str, Any]) -> Any:
    """What a cell leaves to show: the value of its last line, where that is an expression."""
    tree = ast.parse(code)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        del tree.body[-1]
    exec(compile(tree, "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return None


@pytest.mark.slow
@pytest.mark.usefixtures("small_digits")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Seconds that the other tests need not wait for.
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names: dict[str, Any] = {}
    tables = 0
    with torch.random.fork_rng():
        for cell in cells(path):
            if cell["cell_type"] == "code":
                value = shown("".join(cell["source"]), names)
                tables += hasattr(value, "_repr_html_") and "<table>" in value._repr_html_()
    assert capsys.readouterr().out
    assert tables or path.stem == "theory"
    assert list(tmp_path.iterdir()) == []


def test_notebooks_are_there_and_have_no_outputs() -> None:
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"first_certificate", "own_model", "compare_defences", "attack_honestly", "theory"}
    for path in NOTEBOOKS:
        kinds = [cell["cell_type"] for cell in cells(path)]
        # Words come before code.
        assert kinds[0] == "markdown"
        for cell in cells(path):
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                assert cell["execution_count"] is None
