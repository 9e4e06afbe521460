"""Files that are none, too large, or not what they say: one line each, before anything is read."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import get_data_path
from PIL import Image, ImageFont
from safetensors.torch import save_file

import diffproof as dp
from diffproof.cli.main import run
from diffproof.denoisers.named import load_denoiser
from diffproof.errors import LONGEST_LINE, drawn, printable, without_control
from diffproof.files import MOST_TEXT, check_array, check_file, read_text, replacing, write_csv
from diffproof.pictures import save_grid, save_picture
from diffproof.weights import load_weights, packaged, save_weights
from helpers.command_line import Refused
from helpers.processes import outcome
from helpers.runs import PLAIN, certify_flags, change

Maker = Callable[[Path], None]


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def to_itself(path: Path) -> None:
    path.symlink_to(path)


# Every kind of thing that a name can lead to and that is no file, and what is said of it.
NO_FILES: list[tuple[Maker, str]] = [
    (lambda path: None, "no such file"),
    (lambda path: path.mkdir(), "is a folder"),
    (lambda path: os.mkfifo(path), "is a pipe"),
    (a_socket, "is a socket"),
    (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    (lambda path: path.symlink_to("gone"), "broken link"),
    (to_itself, "Too many levels of symbolic links"),
]

READERS: dict[str, Callable[[str], list[str]]] = {
    "config": lambda name: [*certify_flags(Path("out"), **PLAIN), "--config", name],
    "classifier": lambda name: certify_flags(Path("out"), **PLAIN, classifier=f"./{name}"),
    "resnet": lambda name: certify_flags(Path("out"), **PLAIN, classifier=f"resnet20@{name}"),
    "denoiser": lambda name: certify_flags(Path("out"), denoiser=f"./{name}"),
    "preset": lambda name: certify_flags(Path("out"), denoiser=f"openai:cifar10_uncond@{name}"),
    "data": lambda name: certify_flags(Path("out"), **PLAIN, data=name),
    "convert": lambda name: ["convert", name, "o.safetensors"],
    "density": lambda name: ["theory", "--density", name, "--out", "out"],
}
ENDINGS = {"config": ".yaml", "data": ".npz", "density": ".json"}


@pytest.mark.parametrize(("make", "message"), NO_FILES, ids=[message for _, message in NO_FILES])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_named_unopened(refused: Refused, reader: str, make: Maker, message: str) -> None:
    name = f"w{ENDINGS.get(reader, '.safetensors')}"
    make(Path(name))
    line = refused(READERS[reader](name))
    if (reader, message) == ("denoiser", "is a folder"):
        message = "is no diffusers pipeline"
    assert message in line
    assert name in line


def test_only_regular_files_have_a_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert check_file("weights", tmp_path / "link") == 5
    with pytest.raises(ValueError, match=r"weights: no such file: .*null"):
        check_file("weights", tmp_path / "a\0b")
    with pytest.raises(ValueError, match="weights: no such file"):
        check_file("weights", tmp_path / "file" / "inside")


def test_texts_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"a" * MOST_TEXT)
    assert len(read_text("config", path)) == MOST_TEXT
    path.write_bytes(b"a" * (MOST_TEXT + 1))
    with pytest.raises(ValueError, match=r"config: .* is longer than 1,048,576 bytes"):
        read_text("config", path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"config: .* is no UTF-8 text"):
        read_text("config", path)


def zeros_archive(path: Path, name: str, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        for _ in range(size // 2**20):
            member.write(bytes(2**20))


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "name"), [("data", "images.npy"), ("classifier", "archive/data.pkl")])
def test_bombs_are_not_unpacked(refused: Refused, reader: str, name: str) -> None:
    path = f"bomb{'.npz' if reader == 'data' else '.pt'}"
    zeros_archive(Path(path), name, 2**28 + 2**20)
    assert "would expand to 269,484,032, expected at most 268,435,456" in refused(READERS[reader](path))


def test_a_lying_header_is_refused(tmp_path: Path) -> None:
    """NumPy would make room for what a header declares before it reads a byte."""
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.uint8))
    whole = (tmp_path / "a.npy").read_bytes()
    with (tmp_path / "a.npy").open("rb") as file:
        check_array(file, len(whole))
    for shape in (b"(3, 5)", b"(9999999, 4)"):
        spoilt = whole.replace(b"(3, 4), }" + b" " * (len(shape) - 6), shape + b", }")
        (tmp_path / "b.npy").write_bytes(spoilt)
        with (
            (tmp_path / "b.npy").open("rb") as file,
            pytest.raises(ValueError, match="12 bytes are no"),
        ):
            check_array(file, len(spoilt))


def test_tensors_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2**20, 2**20)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"weights: .*w.pt: a has 1,099,511,627,776 values, the file"):
        load_weights(tmp_path / "w.pt")
    torch.save({"a": torch.zeros(4, device="meta")}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"weights: .*w.pt: a is no ordinary tensor"):
        load_weights(tmp_path / "w.pt")
    shared = torch.arange(2.0).expand(3, 2)
    torch.save({"a": shared}, tmp_path / "w.pt")
    assert torch.equal(load_weights(tmp_path / "w.pt").tensors["a"], shared)


@pytest.mark.parametrize(
    ("kind", "where", "value", "message"),
    [
        ("denoiser", ("network", "block_out_channels"), [9600] * 3, "more parameters than the file"),
        ("denoiser", ("network", "layers_per_block"), 10**9, "expected at most 1000"),
        ("denoiser", ("network", "layers_per_block"), 1000, "more parameters than the file"),
        ("denoiser", ("network", "num_class_embeds"), 10**7, "more parameters than the file"),
        ("denoiser", ("schedule", "timesteps"), 10**9, "timesteps: expected at most 1,000,000"),
        ("classifier", ("width",), 10**4, "more parameters than the file"),
        ("classifier", ("num_classes",), 10**6, "more parameters than the file"),
        ("classifier", ("num_classes",), 10**7, "num_classes: expected at most 1048576, got 10000000"),
    ],
)
def test_a_description_cannot_ask_for_more_than_its_file(
    refused: Refused, kind: str, where: tuple[str, ...], value: object, message: str
) -> None:
    tensors, description = load_weights(packaged(kind)["digits"])
    inner = description
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    save_weights(Path("w.safetensors"), tensors, description)
    assert message in refused(READERS[kind]("w.safetensors"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5, "expected lists and mappings at most 16 deep"),
        ('{"kind": ' + "9" * 6000 + "}", "Exceeds the limit"),
        ("{", "Expecting property name"),
    ],
)
def test_a_description_that_is_no_sane_json(refused: Refused, text: str, message: str) -> None:
    save_file({"a": torch.zeros(1)}, "w.safetensors", metadata={"diffproof": text})
    line = refused(READERS["classifier"]("w.safetensors"))
    assert "w.safetensors is unreadable or truncated: " in line
    assert message in line


@pytest.mark.slow
def test_a_pipeline_cannot_ask_for_more_than_its_files(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=8,
        add_attention=False,
    )
    unet.save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    load_denoiser(str(tmp_path))
    config = tmp_path / "unet" / "config.json"
    config.write_text(config.read_text().replace('"layers_per_block": 1', '"layers_per_block": 100000'))
    with pytest.raises(ValueError, match="more parameters than the file"):
        load_denoiser(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\tb  c", "a b c"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        (os.fsdecode(b"x\xff"), "x\\xff"),
        ("\u202egnp", "\\u202egnp"),
        ("ε≥0 – ü", "ε≥0 – ü"),
        ("a" * 501, "a" * 339 + "…" + "a" * 160),
    ],
)
def test_a_line_is_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert len(shown) <= LONGEST_LINE


@pytest.mark.parametrize("name", ["\x1b[31m", os.fsdecode(b"\xff"), "long" * 60, "x/" * 3000, "\n"])
def test_errors_are_one_safe_line(refused: Refused, name: str) -> None:
    for reader, make in READERS.items():
        line = refused(make(f"{name}{ENDINGS.get(reader, '.safetensors')}"))
        assert line.isprintable()
        assert len(f"diffproof: error: {line}") <= LONGEST_LINE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["\x1b[31mred", os.fsdecode(b"\xff"), "long" * 60, "[bold]"])
def test_what_is_printed_is_safe(
    small_run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    shutil.copytree(small_run, folder)
    change(folder, "DELETE FROM images WHERE image_index = 8")
    for arguments in (
        ["report"],
        ["report", "--out", str(folder / "out")],
        ["verify", "--trust"],
        ["export"],
    ):
        assert run([arguments[0], str(folder), *arguments[1:]]) == 0
        captured = capsys.readouterr()
        lines = (captured.out + captured.err).splitlines()
        assert lines
        assert all(line.replace("\t", " ").isprintable() for line in lines)
        assert max(map(len, lines)) <= LONGEST_LINE


def test_a_picture_that_links_to_itself_is_named(refused: Refused) -> None:
    Path("a.png").symlink_to("a.png")
    Path("in").mkdir()
    Path("in", "a.png").symlink_to("a.png")
    for source in ("a.png", "in"):
        words = [
            "purify",
            source,
            "--denoiser",
            "digits",
            "--defense",
            "diffpure:t_star=0.01",
            "--out",
            "out",
        ]
        assert "a.png" in refused(words)


def test_a_full_disk_is_told_with_the_file() -> None:
    with (
        pytest.raises(OSError, match="No space left on device: '/dev/full'"),
        replacing(Path("/dev/full")) as fresh,
    ):
        fresh.write_text("x")


def test_cells_are_no_formulas(tmp_path: Path) -> None:
    row = ["=1+1", "+a", "-b", "@c", "\t=d", "-0.5", -0.5, "+1e-3", None, "a=b", Path("=x")]
    write_csv(tmp_path / "t.csv", [row])
    (line,) = (tmp_path / "t.csv").read_text().splitlines()
    assert line == r"'=1+1,'+a,'-b,'@c,\t=d,-0.5,-0.5,+1e-3,,a=b,'=x"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["\x1b]0;t\x07", "a\x1b[31mb", os.fsdecode(b"\xff")])
def test_tables_hold_no_control_characters(small_run: Path, tmp_path: Path, text: str) -> None:
    """Whoever prints a table on a terminal, as `export` does, prints what a file named."""
    folder, shown = tmp_path / text, without_control(text)
    shutil.copytree(small_run, folder)
    csv, latex, made = tmp_path / "t.csv", tmp_path / "t.tex", tmp_path / "made"
    flags = ["--csv", str(csv), "--latex", str(latex)]
    assert run(["report", str(folder), str(small_run), *flags]) == 0
    assert run(["report", str(folder), str(small_run), "--out", str(made)]) == 0
    for file in (csv, latex, made / "table.csv"):
        written = file.read_text()
        assert shown in written
        assert written.replace("\n", "").isprintable()


def test_exports_hold_no_control_characters(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "a")
    statement = "UPDATE images SET certificate = json_set(certificate, '$.image_hash', ?)"
    change(tmp_path / "a", statement, "\x1b]0;t\x07\n")
    out = tmp_path / "a.csv"
    assert run(["export", str(tmp_path / "a"), "--format", "csv", "--out", str(out)]) == 0
    assert out.read_text().splitlines()[1].endswith(r",\x1b]0;t\x07\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"$\frac$", r"$\frac$"),
        ("$a$ and $", "$a$ and $"),
        (os.fsdecode(b"\xff"), r"\xff"),
        ("\x1b[31m\n", r"\x1b[31m"),
        ("_x", " _x"),
    ],
)
def test_figures_show_a_text_as_it_is(text: str, shown: str) -> None:
    """Dollars begin a formula, perhaps of errors; matplotlib cannot draw bytes, and hides _x in legends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot([0, 1], label=drawn(text))
    (legend,) = axis.legend().get_texts()
    figure.draw_without_rendering()
    preprocess = getattr(legend, "_preprocess_math")  # noqa: B009
    assert preprocess(legend.get_text()) == (shown, False)


@pytest.mark.slow
def test_reports_draw_any_folder_name(small_run: Path, tmp_path: Path) -> None:
    for name in (r"$\frac$", "_x"):
        change_name = f"UPDATE settings SET json = json_set(json, '$.data', '{name}', '$.split', '$x$')"
        folder = tmp_path / name
        shutil.copytree(small_run, folder)
        change(folder, change_name)
        assert run(["report", str(folder), "--out", str(tmp_path / f"{name}-report")]) == 0


@pytest.mark.parametrize("where", ["titles", "labels"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\x07b\u202eb", r"a\x07b\u202eb"),
        (os.fsdecode(b"\xff.png"), r"\xff.png"),
        ("two\nlines\x7f", "two\nlines\\x7f"),
    ],
)
def test_sheets_show_control_characters_by_their_codes(
    tmp_path: Path, where: str, text: str, shown: str
) -> None:
    for name, one in (("given.png", text), ("expected.png", shown)):
        save_grid(tmp_path / name, torch.zeros(1, 1, 1, 96, 96), **{where: [one]})
    assert (tmp_path / "given.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


@pytest.mark.parametrize("text", ["$x$", r"$\frac$", "_x_", "[red]x[/red]"])
def test_sheets_show_no_formulas_and_no_markup(tmp_path: Path, text: str) -> None:
    """The place of a label is as wide as all of its characters, in the font's own measure."""
    font = ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 100)

    def width(label: str) -> int:
        save_grid(tmp_path / "sheet.png", torch.zeros(1, 1, 1, 96, 96), labels=[label])
        with Image.open(tmp_path / "sheet.png") as sheet:
            return int(sheet.width)

    around = width("")
    found = (width(text * 20) - around) / (width("m" * 20) - around)
    assert found == pytest.approx(font.getlength(text) / font.getlength("m"), rel=0.05)


def test_purified_pictures_of_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [r"$\frac$.png", "\x1b[31mred.png", "_x.png", "[red].png"]
    (tmp_path / "in").mkdir()
    for name in names:
        save_picture(tmp_path / "in" / name, dp.load_data("digits", indices="0").images[0])
    words = "--denoiser digits --classifier digits --defense diffpure:t_star=0.01,steps=1 --out"
    assert run(["purify", str(tmp_path / "in"), *words.split(), str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {*names, "sheet.png"}
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert all(name.replace("\x1b", r"\x1b") in out for name in names)


def test_exported_cells_are_no_formulas(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "a")
    change(tmp_path / "a", "UPDATE images SET certificate = json_set(certificate, '$.image_hash', '=1+1')")
    out = tmp_path / "a.csv"
    assert run(["export", str(tmp_path / "a"), "--format", "csv", "--out", str(out)]) == 0
    assert ",'=1+1\n" in out.read_text()
    assert ",=1+1" not in out.read_text()


@pytest.mark.parametrize("name", ["\x1b[31mred", "[/red]"])
def test_surveys_and_bars_are_safe(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for inner in ("a", f"b{name}"):
        (tmp_path / name / inner).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / name / inner / "0.png")
    # A bar is drawn as on a terminal.
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert run(["data", str(tmp_path / name)]) == 0
    captured = capsys.readouterr()
    assert printable(name) in captured.out
    assert "\x1b[31mred" not in captured.out + captured.err


def with_room(more: int, words: list[str]) -> tuple[int, str]:
    """How a command ends in a child with so many bytes of addresses more, and what it says of errors."""

    def work() -> int:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
        return run(words)

    return outcome(work)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_sound_file_without_room_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    tensors, path = {"a": torch.zeros(2**25)}, tmp_path / name
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_weights(path, tensors, {})

    told = f"no memory for {path}, which has {path.stat().st_size:,} bytes"
    words = ["convert", str(path), str(tmp_path / "o.safetensors")]
    assert with_room(2**26, words) == (2, f"diffproof: error: {told}\n")


@pytest.mark.slow
def test_a_picture_without_room_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8000, 8000)).save(tmp_path / "a.png")
    words = ["purify", str(tmp_path / "a.png"), "--denoiser", "digits", "--image-size", "8"]
    words += ["--defense", "diffpure:t_star=0.01", "--out", str(tmp_path / "out")]
    assert with_room(2**26, words) == (2, f"diffproof: error: no memory for {tmp_path / 'a.png'}\n")
