"""What the documentation shows works: commands have the flags that it gives them, Python runs."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
import yaml

from diffproof.classifiers.libraries import LIBRARIES
from diffproof.cli.main import diffproof as command_group
from diffproof.cli.main import run
from diffproof.denoisers.families import FAMILIES
from helpers.paths import ROOT
from helpers.runs import contents
from helpers.scripts import commands_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown_commands(page: Path) -> Iterator[str]:
    """The lines of a page that are commands of diffproof, continued ones joined."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    text = re.sub(r"\$\{.*?\}", "$", text)
    fenced = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    for line in [*indented, *fenced.splitlines()]:
        if line.strip().startswith("diffproof "):
            yield line.strip()


@pytest.mark.parametrize(
    ("page", "line"), [(page.name, line) for page in PAGES for line in shown_commands(page)]
)
def test_every_command_shown_has_such_flags(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = command_group
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    # The parser alone: it knows every flag and whether a value follows, and opens no file.
    _, left, _ = command.make_parser(click.Context(command)).parse_args(args=words)
    # A shell's variables may hold flags.
    assert [word for word in left if "$" not in word] == []


def test_commands_are_found() -> None:
    found = {page.name: len(list(shown_commands(page))) for page in PAGES}
    assert found["running.md"] >= 10
    assert found["certify.md"] >= 7
    assert found["diffusion_classifier.md"] >= 5


def test_running_names_every_command() -> None:
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    table = text.partition("## All commands")[2]
    named = re.findall(r"`diffproof (\w+)`", table)
    assert sorted(named) == sorted(command_group.commands)


def test_specs_stand_in_the_table_of_their_kind() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    _, denoisers, classifiers, *_ = re.split(r"^\| (?:diffusion model|classifier|data) \|", text, flags=re.M)
    told = [set(re.findall(r"`(\w+):", table)) for table in (denoisers, classifiers)]
    assert told[0] >= {*FAMILIES, "empirical"}
    assert told[1] >= {*LIBRARIES, "ensemble"}
    assert told[0].isdisjoint(told[1])


def anchors(page: Path) -> set[str]:
    """What links to a page's headings end in on GitHub; mkdocs makes the same."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """The links of a page to other files, and within it."""
    text = re.sub(r"^(```.*?^```|    .*?$)", "", page.read_text(encoding="utf-8"), flags=re.M | re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def test_links_lead_somewhere() -> None:
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
    found = [(page, *link.partition("#")[::2]) for page in pages for link in links(page)]
    assert len(found) > 80
    lost = [
        f"{page.name}: {path}#{anchor}"
        for page, path, anchor in found
        if not (target := page.parent / path if path else page).exists()
        or (anchor and anchor not in anchors(target))
    ]
    assert lost == []


@pytest.mark.slow
def test_python_about_diffusion_classifiers_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = (ROOT / "docs" / "diffusion_classifier.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    # They are read one after the other.
    exec(compile("\n".join(blocks), "diffusion_classifier.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_diffusion_classifier_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "diffusion_classifier.py"), run_name="__main__")
    output = capsys.readouterr().out
    right = {
        name: int(number) for name, number in re.findall(r"(\w+): (\d+) of 40 test digits right", output)
    }
    assert set(right) == {"CNN", "DC", "RDC"}
    # Chance is 4.
    assert min(right.values()) >= 30
    before, after = (float(value) for value in re.findall(r"negative log-likelihood ([\d.]+)", output))
    assert after < before
    assert (tmp_path / "reliability.png").stat().st_size > 10_000


def slurm_and_kubernetes() -> dict[str, tuple[str, str, str]]:
    """The script of a shard and of what merges, and the variable of a shard's number, by batch system."""
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    # Before it are those of Ray.
    page = text[text.index("## Without Ray") :]
    scripts = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    job = yaml.safe_load(manifest)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["completions"] == 16
    assert "#SBATCH --array=0-15\n" in scripts[0]
    return {
        "slurm": (scripts[0], scripts[1], "SLURM_ARRAY_TASK_ID"),
        "kubernetes": (container["args"][0], scripts[3], "JOB_COMPLETION_INDEX"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("system", ["slurm", "kubernetes"])
def test_recipes_of_shards_make_the_run_without(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shard, merging, variable = (text.replace(" /runs", " runs") for text in slurm_and_kubernetes()[system])
    assert shard.count('/16"') == 1
    shard = shard.replace('/16"', '/2"').replace('"/runs', '"runs')
    # The last of a flag's values counts.
    small = ["--n0", "5", "--n", "20", "--indices", "0:40:10"]
    for number in (1, 0):
        (command,) = commands_of(shard, tmp_path, {variable: number, "SEED": 5}, "bash")
        assert run([*command, *small]) == 0
    for merge in commands_of(merging, tmp_path, {}, "bash"):
        assert run(merge) == 0
    place = command.index("--shard")
    whole = [*command[:place], *command[place + 4 :], *small, "--out", "alone"]
    assert run(whole) == 0
    assert contents(tmp_path / "runs" / "whole") == contents(tmp_path / "alone")
