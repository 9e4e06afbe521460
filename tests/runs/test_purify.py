"""diffproof purify: a user's own pictures decoded, purified and written, with a sheet of before and after."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.defenses.repeatability import checking
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.noise import Noise, Stream
from diffproof.pictures import read_picture, save_grid, save_picture
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.groups import order
from diffproof.runs.purify.job import PurifyRun, PurifySettings, find_pictures, prepare_purify
from diffproof.runs.purify.networks import worker_of
from diffproof.runs.purify.run import amplification, run_purify
from helpers.command_line import Refused, composed, words
from helpers.files import tree
from helpers.processes import exit_status, forked, outcome, until

pytestmark = pytest.mark.usefixtures("small_digits")

FAST: dict[str, object] = {"seed": 0, "denoiser": "digits", "defense": "diffpure", "t_star": 0.15, "steps": 4}
NAMES = ["a.png", "b.png", "c.png", "deep/a.png", "deep/er/d.png"]


def purify_words(pictures: object, out: Path, **changes: object) -> list[str]:
    """The command line; None leaves a flag out, True gives it without a value."""
    several = pictures if isinstance(pictures, list) else [pictures]
    return words("purify", *several, **{**FAST, "out": out, **changes})


def digits(count: int) -> Tensor:
    """Test digits whose pixels are whole 8-bit numbers, so that PNG files hold them exactly."""
    images, _ = dp.load_data("digits", indices=f"0:{count}")
    return (images * 255).round() / 255


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with the first five test digits, in the order of NAMES."""
    folder = tmp_path / "pictures"
    for name, image in zip(NAMES, digits(len(NAMES)), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_picture(folder / name, image)
    return folder


def written(folder: Path) -> dict[str, Tensor]:
    """The purified pictures of a folder, 8-bit numbers, by name."""
    paths = sorted(path for path in folder.rglob("*.png") if path != folder / "sheet.png")
    return {
        path.relative_to(folder).as_posix(): torch.from_numpy(np.asarray(Image.open(path), dtype=np.int64))
        for path in paths
    }


def test_a_run_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.sqlite").write_bytes(b"")
    (tmp_path / "run" / "settings.yaml").write_text("seed: 1\n")
    source = tmp_path / "one.png"
    save_picture(source, torch.zeros(1, 8, 8))
    words = ["purify", str(source), "--denoiser", "digits", "--defense", "diffpure:steps=1"]
    assert run([*words, "--out", str(tmp_path / "run"), "--force"]) == 2
    assert "is a run folder, expected another" in capsys.readouterr().err
    assert (tmp_path / "run" / "settings.yaml").read_text() == "seed: 1\n"


@pytest.mark.slow
def test_every_picture_is_purified_under_the_noise_of_its_place(tmp_path: Path, pictures: Path) -> None:
    assert run(purify_words(pictures, tmp_path / "out", seed=3)) == 0
    found = written(tmp_path / "out")
    assert list(found) == NAMES
    defense = dp.load_defense(
        "diffpure",
        denoiser=dp.load_denoiser("digits"),
        classifier=dp.load_classifier("digits"),
        t_star=0.15,
        steps=4,
    )
    assert isinstance(defense, dp.Purification)
    for index, (name, image) in enumerate(zip(NAMES, digits(len(NAMES)), strict=True)):
        noise = Noise.for_draws(3, Stream.FORWARD, index, 0, 1)
        expected = (defense.purify(image[None], noise)[0, 0] * 255).round().long()
        # Networks round otherwise in other batches, and a tie of the 8 bits may then fall to the other side.
        assert int((found[name] - expected).abs().max()) <= 1
        assert float((found[name] == expected).double().mean()) >= 0.95
    settings = yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())
    assert settings | {"defense": "diffpure:t_star=0.15,steps=4", "denoiser": "digits", "seed": 3} == settings


def test_what_it_wrote_is_told_from_a_run(tmp_path: Path, pictures: Path) -> None:
    assert run(purify_words(pictures / "a.png", tmp_path / "out", steps=1)) == 0
    with pytest.raises(dp.ArgumentError, match=r"no run folder \(of `diffproof purify`, whose result"):
        dp.open_run(tmp_path / "out")


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_noise_goes_away(tmp_path: Path) -> None:
    """Noisy digits come out nearer to the clean ones than they went in."""
    clean = digits(40)
    noisy = clean + 0.4 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "noisy"
    folder.mkdir()
    for index, image in enumerate(noisy):
        save_picture(folder / f"{index:02}.png", image)
    flags = purify_words(folder, tmp_path / "out", t_star=None, defense_sigma=0.4, steps=8)
    assert run(flags) == 0
    after = torch.stack(list(written(tmp_path / "out").values())).float()[:, None] / 255
    before = torch.stack(list(written(folder).values())).float()[:, None] / 255
    errors = [float((images - clean).square().mean().sqrt()) for images in (before, after)]
    assert errors[1] < 0.92 * errors[0]


@pytest.mark.slow
def test_batches_and_the_order_of_arguments_change_nothing(tmp_path: Path, pictures: Path) -> None:
    assert run(purify_words(pictures, tmp_path / "whole", batch_size=5)) == 0
    assert run(purify_words(pictures, tmp_path / "single", batch_size=1)) == 0
    sources = [pictures / name for name in ("c.png", "a.png", "b.png")] + [pictures]
    shutil.copytree(pictures / "deep", tmp_path / "other" / "deep")
    assert run(purify_words([*sources[:3], tmp_path / "other"], tmp_path / "reordered", batch_size=2)) == 0
    whole = written(tmp_path / "whole")
    for other in ("single", "reordered"):
        found = written(tmp_path / other)
        assert list(found) == list(whole)
        for name in whole:
            assert int((found[name] - whole[name]).abs().max()) <= 1
    assert run(purify_words(pictures, tmp_path / "seed", seed=1)) == 0
    assert all(not torch.equal(written(tmp_path / "seed")[name], whole[name]) for name in whole)


METHODS: list[dict[str, object]] = [
    {"defense": "diffpure", "solver": "ode", "t_star": 0.8},
    {"defense": "gdmp", "rounds": 2, "steps": 2, "scale": 50, "purify_budget": "16/255"},
    {"defense": "gradual", "t_star": "0.05,0.1", "steps": "2,3"},
    {"defense": "agdm", "guide": "digits", "steps": 2, "where": "state", "label": "step", "distance": "kl"},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", METHODS, ids=lambda changes: changes["defense"])
def test_a_classifier_labels_and_changes_no_picture(
    tmp_path: Path, pictures: Path, changes: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(purify_words(pictures, tmp_path / "without", **changes)) == 0
    assert "before" not in capsys.readouterr().out
    assert run(purify_words(pictures, tmp_path / "with", classifier="digits", **changes)) == 0
    *lines, summary, _ = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [name for name, *_ in cells] == NAMES
    for name, *labels in cells:
        before, after = written(pictures)[name], written(tmp_path / "with")[name]
        assert torch.equal(after, written(tmp_path / "without")[name])
        # What is labelled has not been rounded to 8 bits yet, so it could fall otherwise; here it does not.
        found = dp.load_classifier("digits")(torch.stack([before, after])[:, None] / 255.0).argmax(1)
        assert labels == [str(label) for label in found.tolist()]
    changed = sum(before != after for _, before, after in cells)
    assert summary == f"{changed} of 5 labels changed, under one draw of the noise"
    assert changed > 0 or changes["defense"] != "diffpure"


def test_coup_needs_a_classifier(tmp_path: Path, pictures: Path, refused: Refused) -> None:
    assert refused(purify_words(pictures, tmp_path / "out", defense="coup")) == (
        "--classifier: the method 'coup' needs one, got None"
    )
    assert run(purify_words(pictures, tmp_path / "out", defense="coup", classifier="digits", scale=0.5)) == 0
    assert list(written(tmp_path / "out")) == NAMES


def test_a_defence_without_classifier_cannot_be_called() -> None:
    settings = PurifySettings(seed=0, defense="diffpure:t_star=0.1,steps=1", denoiser="digits")
    defense = load_networks_and_defense(settings, torch.device("cpu"))
    with pytest.raises(ValueError, match="classifier: this defence only purifies; expected a classifier"):
        defense(digits(1))


def test_a_worker_tells_whether_a_picture_fails_or_all_do() -> None:
    settings = PurifySettings(seed=0, defense="diffpure:t_star=0.1,steps=2", denoiser="digits")
    purifier: Any = load_networks_and_defense(settings, torch.device("cpu"))
    images, gone = digits(3), False
    worker = worker_of(purifier, settings, torch.device("cpu"))
    orders = [order([place], {place: images[place]}) for place in range(3)]
    inner, bad = purifier.purify, images[1]

    def purify(images: Tensor, *noise: Any) -> Tensor:
        if bool((images == bad).any(0).all()):
            raise RuntimeError("bad picture")
        if gone:
            raise RuntimeError("device-side assert triggered")
        result: Tensor = inner(images, *noise)
        return result

    purifier.purify = purify
    answer = worker.work(orders[1:2], 60.0)
    assert (answer.done, answer.failed) == ([], [((1,), "RuntimeError: bad picture")])
    assert [key for key, _ in worker.work(orders, 60.0).done] == [(0,), (2,)]
    # Its device is gone.
    gone = True
    with pytest.raises(RuntimeError, match="device-side assert"):
        worker.work(orders[:1], 60.0)


def test_class_names_stand_for_labels(tmp_path: Path, pictures: Path) -> None:
    job = prepared(pictures, tmp_path / "out", classifier="digits")
    names = [f"number {label}" for label in range(10)]
    assert isinstance(job.defense.classifier, dp.Classifier)
    job.defense.classifier.class_names = tuple(names)
    assert all({found.before, found.after} < set(names) for found in run_purify(job))


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def eight_bits(image: Tensor) -> np.ndarray:
    """H×W×C whole numbers."""
    values = image.permute(1, 2, 0).double().numpy() * 255
    assert np.abs(values - values.round()).max() < 1e-4
    return values.round().astype(int)


COLOURS = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREYS = COLOURS[..., 0]


def test_a_picture_comes_back_from_png_as_it_was(tmp_path: Path) -> None:
    for image in (digits(1)[0], torch.from_numpy(COLOURS.copy()).permute(2, 0, 1) / 255):
        save_picture(tmp_path / "one.png", image)
        assert torch.allclose(read_picture(tmp_path / "one.png", len(image)), image, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"no picture at all", "cannot be decoded: cannot identify image file"),
        ("empty.jpg", b"", "is empty; download the file itself"),
        ("cut.png", 0.6, "cannot be decoded: "),
        ("cut.jpg", 0.6, "cannot be decoded: "),
        ("cut.webp", 0.6, "cannot be decoded: "),
        ("colours.png", 1.0, "has colours, expected a grey picture"),
        ("moves.webp", 2, "has 2 frames, expected one picture"),
        ("moves.png", 3, "has 3 frames, expected one picture"),
        ("floats.tiff", np.zeros((8, 8), np.float32), "has the mode 'F', expected one of 8 or 16 bits"),
    ],
)
def test_one_bad_picture_refuses_all_before_anything_is_written(
    tmp_path: Path, pictures: Path, refused: Refused, name: str, content: object, message: str
) -> None:
    bad = pictures / "deep" / name
    frames = [
        Image.fromarray(COLOURS[:8, :8]),
        *(Image.fromarray(255 - COLOURS[:8, :8] // i) for i in (1, 2)),
    ]
    if isinstance(content, bytes):
        bad.write_bytes(content)
    elif isinstance(content, float):
        frames[0].resize((64, 64)).save(bad)
        bad.write_bytes(bad.read_bytes()[: int(content * bad.stat().st_size)])
    elif isinstance(content, int):
        frames[0].save(bad, save_all=True, append_images=frames[1:content])
    elif isinstance(content, np.ndarray):
        saved(bad, content)
    sources = [pictures, bad] if bad.suffix == ".tiff" else pictures
    line = refused(purify_words(sources, tmp_path / "out", batch_size=1))
    assert line.startswith(f"pictures: {bad} {message}")


@pytest.mark.slow
def test_unreadable_pictures_are_left_out_and_said(
    tmp_path: Path, pictures: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(purify_words(pictures, tmp_path / "whole")) == 0
    (pictures / "z\n.png").write_text("none")
    (pictures / "zz.png").symlink_to(pictures / "nothing")
    line = purify_words(pictures, tmp_path / "out")
    assert refused(line).endswith("; --skip-unreadable leaves such pictures out")
    assert run([*line, "--skip-unreadable"]) == 0
    printed = capsys.readouterr()
    assert f"warning: pictures: 2 unreadable pictures of 7 left out: {pictures}/z .png" in printed.err
    assert f"broken link: {pictures}/zz.png leads to no file" in printed.err
    assert "written: 5 purified pictures" in printed.out
    assert {name: (tmp_path / "out" / name).read_bytes() for name in NAMES} == {
        name: (tmp_path / "whole" / name).read_bytes() for name in NAMES
    }
    lines = (tmp_path / "out" / "settings.yaml").read_text().splitlines()
    assert "skip_unreadable: true" in lines
    assert [line[:12] for line in lines[-2:]] == ["# Left out: "] * 2
    for path in pictures.rglob("*.png"):
        path.unlink()
    (pictures / "z.png").write_text("none")
    message = f"pictures: none of 1 picture of {pictures} can be read"
    assert refused([*purify_words(pictures, tmp_path / "none"), "--skip-unreadable"]) == message


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [
        ((9, 8), 1, " is 8×9 (width×height), the denoiser takes 8×8; an image size of 8 brings it there"),
        ((32, 32), 1, " is 32×32 (width×height), the denoiser takes 8×8; an image size of 8 brings it there"),
    ],
)
def test_pictures_of_another_size(
    tmp_path: Path, refused: Refused, size: tuple[int, int], channels: int, message: str
) -> None:
    gradient = np.linspace(0, 255, size[0] * size[1]).reshape(size).astype(np.uint8)
    path = saved(tmp_path / "odd.png", gradient)
    assert refused(purify_words(path, tmp_path / "out")) == f"pictures: {path}{message}"
    refusal = refused(purify_words(path, tmp_path / "out", image_size=4))
    assert refusal.startswith(f"pictures: {path} is 4×4 (width×height), the denoiser takes 8×8")
    assert run(purify_words(path, tmp_path / "out", image_size=8)) == 0
    assert written(tmp_path / "out")["odd.png"].shape == (8, 8)


def test_image_size_is_that_of_data_sets(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        path = saved(tmp_path / folder / "photo.png", COLOURS)
    data = dp.load_data(str(tmp_path), image_size=4)
    assert torch.equal(read_picture(path, 3, 4), data.images[0])


def test_what_is_found_in_folders(tmp_path: Path) -> None:
    names = ["B.JPG", "a.png", "sub/c.jpeg", "sub/deeper/d.webp", "e.Bmp", "movie.gif", "two.dots.png"]
    others = ["note.txt", ".hidden.png", ".git/f.png", "out/g.png", "png", "sub/"]
    for name in [*names, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (tmp_path / name).touch()
    found = find_pictures([tmp_path], tmp_path / "out")
    becomes = ["B.png", "a.png", "e.png", "movie.png", "sub/c.png", "sub/deeper/d.png", "two.dots.png"]
    assert [picture.name for picture in found] == becomes
    assert {picture.path for picture in found} == {tmp_path / name for name in names}
    # A file that is named is taken, whatever its name.
    (single,) = find_pictures([tmp_path / "movie.gif"], tmp_path / "out")
    assert single.name == "movie.png"


def test_names_that_clash_or_lie_in_the_way(tmp_path: Path, pictures: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    shutil.copy(pictures / "a.png", pictures / "b.bmp")
    line = refused(purify_words(pictures, out))
    assert line.startswith("pictures: ")
    assert line.endswith(" would both be written as b.png")
    assert all(str(pictures / name) in line for name in ("b.bmp", "b.png"))
    (pictures / "b.bmp").unlink()
    one = pictures / "a.png"
    assert (
        refused(purify_words([one, one], out)) == f"pictures: {one} and {one} would both be written as a.png"
    )
    (pictures / "a.png").rename(pictures / "sheet.png")
    line = refused(purify_words(pictures, out))
    assert line == f"pictures: {pictures}/sheet.png and the sheet would both be written as sheet.png"
    (pictures / "sheet.png").rename(pictures / "a.png")
    for force in (None, True):
        line = refused(purify_words(pictures, pictures, force=force))
        assert line == f"--out: {one} is one of the pictures to purify; expected another folder"
        # Nor through a link.
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(pictures)
        assert "is one of the pictures to purify" in refused(
            purify_words(pictures, tmp_path / "link", force=force)
        )
    assert refused(purify_words(pictures, one)) == f"--out: {one} is a file, expected a folder"
    (out / "c.png").mkdir(parents=True)
    line = f"--out: {out}/c.png is a folder, expected to write a file there"
    assert refused(purify_words(pictures, out, force=True)) == line


@pytest.mark.slow
def test_nothing_is_overwritten_without_force(tmp_path: Path, pictures: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "mine.txt").write_text("mine")
    for name in ("settings.yaml", "sheet.png", "deep/a.png"):
        (out / name).write_text("mine")
        assert refused(purify_words(pictures, out)) == f"--out: {out / name} exists; --force overwrites it"
        (out / name).unlink()
    assert run(purify_words(pictures, out)) == 0
    before = tree(out)
    assert (
        refused(purify_words(pictures, out))
        == f"--out: {out / 'settings.yaml'} exists; --force overwrites it"
    )
    assert run(purify_words(pictures, out, seed=9, force=True)) == 0
    after = tree(out)
    assert set(before) == set(after)
    same = {name for name in before if before[name] == after[name]}
    assert same == {"mine.txt", "deep", "deep/er"}


@pytest.mark.slow
def test_settings_repeat_the_work(tmp_path: Path, pictures: Path, refused: Refused) -> None:
    changes: dict[str, object] = {"defense": "gradual", "t_star": "0.05,0.1", "steps": "2,full"}
    line = refused(purify_words(pictures, tmp_path / "out", **changes))
    assert line.startswith("--defense: steps: expected integers ≥ 1 in brackets, such as [1,2], or none, got")
    assert run(purify_words(pictures, tmp_path / "out", **{**changes, "steps": "2,3"}, seed=5)) == 0
    config = tmp_path / "settings.yaml"
    shutil.copy(tmp_path / "out" / "settings.yaml", config)
    again = tmp_path / "again"
    assert run(["purify", str(pictures), "--config", str(config), "--out", str(again)]) == 0
    assert tree(again) == tree(tmp_path / "out")
    config.write_text("pictures: here\n")
    line = refused(["purify", str(pictures), "--config", str(config), "--out", "other"])
    assert line.startswith("--config: unknown name 'pictures'; ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"defense": "dds", "t_star": None, "steps": None},
            "--defense: expected one that purifies (diffpure, gdmp, gradual, adp, coup, agdm, likelihood,",
        ),
        ({"defense": "difpure"}, "--defense: unknown name 'difpure'; did you mean diffpure or densepure?"),
        ({"defense": None}, "Missing option '--defense'."),
        ({"denoiser": None}, "Missing option '--denoiser'."),
        ({"denoiser": "digts"}, "--denoiser: unknown name 'digts'; did you mean digits?"),
        ({"classifier": "digts"}, "--classifier: unknown name 'digts'; did you mean digits?"),
        (
            {"rounds": 2},
            "--defense: rounds: no setting of the defense 'diffpure', which takes t_star, sigma, steps",
        ),
        ({"guide": "digits"}, "--guide: the method 'diffpure' takes none"),
        ({"defense": "agdm"}, "--guide: the method 'agdm' needs one, got None"),
        ({"t_star": None}, "--defense: t_star, sigma: expected one of them, got None and None"),
        (
            {"t_star": "0.1,0.2"},
            "--defense: t_star: expected a time in (0, 1], or none, got '[0.1,0.2]'",
        ),
        (
            {"t_star": 100},
            "--defense: t_star: expected a time in (0, 1], or none, got '100'; timestep 100 of",
        ),
        ({"t_star": 0}, "--defense: t_star: expected a time in (0, 1], or none, got '0'"),
        ({"t_star": "nan"}, "--defense: t_star: expected a time in (0, 1], or none, got 'nan'"),
        ({"steps": 0}, "--defense: steps: expected an integer ≥ 1, or none, got '0'"),
        ({"steps": "2.5"}, "--defense: steps: expected an integer ≥ 1, or none, got '2.5'"),
        ({"solver": "euler"}, "--defense: solver: expected ddpm, sde or ode, got 'euler'"),
        (
            {"defense": "gdmp", "t_star": 0.1, "purify_budget": "8/0"},
            "--defense: budget: expected a number > 0, got '8/0' (of defense gdmp)",
        ),
        ({"seed": -1}, "--seed: expected 0 ≤ seed < 2^64, got -1"),
        ({"seed": 2**64}, f"--seed: expected 0 ≤ seed < 2^64, got {2**64}"),
        ({"batch_size": 0}, "--batch-size: expected an integer ≥ 1, got 0"),
        ({"image_size": 0}, "--image-size: expected an integer ≥ 1, got 0"),
        ({"device": "tpu"}, "--device: expected auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        (
            {"precision": "float8"},
            "--precision: expected one of float32, bfloat16, got 'float8'; did you mean float32",
        ),
    ],
)
def test_bad_flags(
    tmp_path: Path, pictures: Path, refused: Refused, changes: dict[str, object], message: str
) -> None:
    assert refused(purify_words(pictures, tmp_path / "out", **changes)).startswith(message)


def test_bad_sources(tmp_path: Path, pictures: Path, refused: Refused) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    (empty / "note.txt").touch()
    line = f"pictures: no picture in {empty}; expected png, apng, jpg, jpeg, jpe, and 13 more"
    assert refused(purify_words([pictures, empty], out)) == line
    assert refused(purify_words("missing", out)) == "pictures: no such file or folder: missing"
    assert refused(purify_words(empty / "note.txt", out)).startswith(
        f"pictures: {empty / 'note.txt'} is empty; download the file itself"
    )
    assert refused(["purify", *purify_words("x", out)[2:]]) == "Missing argument 'PICTURES...'."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")
def test_no_permission(
    tmp_path: Path, pictures: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "locked"
    out.mkdir(mode=0o500)
    assert refused(purify_words(pictures, out)) == f"--out: no permission to write to {out}"
    line = f"[Errno 13] Permission denied: '{out / 'deeper'}'"
    assert refused(purify_words(pictures, out / "deeper")) == line
    for name in ("b.png", "deep"):
        mode = (pictures / name).stat().st_mode
        (pictures / name).chmod(0)
        capsys.readouterr()
        assert run(purify_words(pictures, tmp_path / "out")) == 2
        line = f"diffproof: error: [Errno 13] Permission denied: '{pictures / name}'\n"
        assert capsys.readouterr() == ("", line)
        assert not (tmp_path / "out").exists()
        (pictures / name).chmod(mode)


def prepared(pictures: Path, out: Path, **changes: Any) -> PurifyRun:
    values = {**FAST, "device": "cpu"}
    return prepare_purify(PurifySettings(**composed({**values, **changes})), [pictures], out)


def network(job: PurifyRun) -> nn.Module:
    assert isinstance(job.defense.denoiser, NetworkDenoiser)
    return job.defense.denoiser.network


@pytest.mark.slow
@pytest.mark.parametrize("where", ["state", "clean"])
def test_progress_counts_every_evaluation(tmp_path: Path, pictures: Path, where: str) -> None:
    job = prepared(pictures, tmp_path / "out", defense="agdm", guide="digits", where=where, batch_size=2)
    counted: list[int] = []
    run_purify(job, counted.append)
    assert sum(counted) == job.evaluations == 5 * 4 * (2 if where == "clean" else 1)


@pytest.mark.slow
def test_a_batch_too_large_for_memory_is_halved(tmp_path: Path, pictures: Path) -> None:
    assert run(purify_words(pictures, tmp_path / "whole")) == 0
    sizes = []

    def small_memory(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not checking():
            sizes.append(len(inputs[0]))
        if len(inputs[0]) > limit:
            raise torch.OutOfMemoryError("tried to allocate too much")

    for limit in (2, 0):
        job = prepared(pictures, tmp_path / f"limit-{limit}")
        network(job).register_forward_pre_hook(small_memory)
        if limit == 0:
            with (
                pytest.warns(UserWarning, match="going on with"),
                pytest.raises(MemoryError, match="no memory for a batch of one image"),
            ):
                run_purify(job)
            assert not job.out.exists()
        else:
            with pytest.warns(UserWarning, match="no memory for the batch: going on with 2 images"):
                run_purify(job)
            assert sizes[0] == 5
            assert max(sizes[1:]) == 2
            for name, picture in written(tmp_path / "whole").items():
                assert int((written(job.out)[name] - picture).abs().max()) <= 1


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda output: output * float("nan"), "denoiser: expected finite pictures, got NaN or infinity"),
        (lambda output: output @ torch.ones(3, 3), "the networks cannot purify .*a.png: .*mat1"),
    ],
)
def test_networks_that_fail_leave_nothing(
    tmp_path: Path, pictures: Path, returns: Callable[[Tensor], Tensor], message: str
) -> None:
    job = prepared(pictures, tmp_path / "out")
    network(job).register_forward_hook(lambda module, inputs, output: returns(output))
    with pytest.raises(ValueError, match=message):
        run_purify(job)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupt_counts_what_is_there(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, at: int, late: bool
) -> None:
    """One that comes right before a picture has its place, or right after, before that is remembered."""
    calls: list[Path] = []

    def interrupted(path: Path, picture: Tensor) -> None:
        calls.append(path)
        if len(calls) < at or late:
            save_picture(path, picture)
        if len(calls) == at:
            raise KeyboardInterrupt

    job, there = prepared(pictures, tmp_path / "out"), at - (not late)
    monkeypatch.setattr("diffproof.runs.purify.run.save_picture", interrupted)
    with pytest.raises(KeyboardInterrupt) as error:
        run_purify(job)
    assert (tmp_path / "out").exists() == bool(there)
    if there:
        assert len(list((tmp_path / "out").glob("*.png"))) == there
        told = f"{there} of {len(job.pictures)} pictures {'is' if there == 1 else 'are'} written"
        assert str(error.value).startswith(told)
        assert (tmp_path / "out" / "settings.yaml").exists()


@pytest.mark.slow
def test_an_interrupt_leaves_whole_pictures_and_says_how_many(tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    for index, image in enumerate(digits(50)):
        folder.mkdir(exist_ok=True)
        save_picture(folder / f"{index:02}.png", image)
    flags = purify_words(folder, out, steps=150, batch_size=1, classifier="digits")
    reader, writer = os.pipe()

    def interruptible() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return run(flags)

    pid = forked(interruptible, writer)
    os.close(writer)
    until(lambda: (out / "01.png").exists())
    os.kill(pid, signal.SIGINT)
    with open(reader, encoding="utf-8") as stream:
        errors = stream.read()
    assert exit_status(pid) == 130
    names = sorted(path.name for path in out.iterdir())
    kept = len(names) - 1
    assert 2 <= kept < 50
    assert names == [*(f"{index:02}.png" for index in range(kept)), "settings.yaml"]
    assert all(picture.shape == (8, 8) for picture in written(out).values())
    lines = [line for line in errors.splitlines() if line.strip() and "denoiser evaluations" not in line]
    hint = f"{kept} of 50 pictures are written; the same command with --force starts again"
    assert lines == [f"diffproof: interrupted; {hint}"]


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "left"), [(0, None), (1_000, []), (4_000, ["a.png", "deep/b.png"])])
def test_a_full_disk_ends_in_one_line_without_half_files(
    tmp_path: Path, limit: int, left: list[str] | None
) -> None:
    """No file may grow beyond the limit: not the settings, not the first picture, not the sheet."""
    folder, out = tmp_path / "pictures", tmp_path / "out"
    noise = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for name, image in zip(("a.png", "deep/b.png"), noise, strict=True):
        saved(folder / name, image)

    def with_limit() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return run(purify_words(folder, out, denoiser="cifar10", t_star=0.02, steps=1))

    status, errors = outcome(with_limit)
    lines = [line for line in errors.splitlines() if "denoiser evaluations" not in line]
    assert status == 2
    target = out / ("settings.yaml" if left is None else "sheet.png" if left else "a.png")
    assert lines == [f"diffproof: error: cannot write {target}: File too large"]
    if not left:
        # So that the same command can be given again.
        assert not out.exists()
    else:
        files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
        assert files == sorted([*left, "settings.yaml"])
        assert list(written(out)) == left


def test_a_grid_without_text_is_its_images_in_white_frames(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 3, 30, 25, generator=torch.Generator().manual_seed(4))
    save_grid(tmp_path / "grid.png", images)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    # 30 is enlarged to twice that: small images come to 64 pixels at most.
    assert sheet.shape == (2 * 62, 3 * 52, 3)
    for row in range(2):
        for column in range(3):
            cell = sheet[row * 62 : (row + 1) * 62, column * 52 : (column + 1) * 52]
            expected = (images[row, column] * 255).round().byte().permute(1, 2, 0).numpy()
            assert np.array_equal(cell[1:-1:2, 1:-1:2], expected)
            assert np.array_equal(cell[2:-1:2, 2:-1:2], expected)
            assert (cell[[0, -1]] == 255).all()
            assert (cell[:, [0, -1]] == 255).all()


def test_the_text_of_a_grid_has_its_own_place(tmp_path: Path) -> None:
    black = torch.zeros(2, 2, 1, 96, 96)
    save_grid(tmp_path / "plain.png", black)
    save_grid(tmp_path / "grid.png", black, titles=["a", "wide " * 10], labels=["x\ny\nz", "$∂\ud800"])
    plain = np.asarray(Image.open(tmp_path / "plain.png"))
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape[0] > plain.shape[0]
    assert sheet.shape[1] > plain.shape[1]
    # All four images stand there whole, and there is ink above them and left of them.
    images = (sheet == 0).all(2)
    rows, columns = np.flatnonzero(images.sum(1) >= 2 * 96), np.flatnonzero(images.sum(0) >= 2 * 96)
    assert len(rows) == len(columns) == 2 * 96
    assert (sheet[: rows[0] - 1] < 128).any()
    assert (sheet[:, : columns[0] - 1] < 128).any()
    # Wider than its image, the title still ends within the sheet.
    assert (sheet[:, -3:] == 255).all()
    for name, texts in (("titles", ["a"]), ("labels", ["a", "b", "c"])):
        with pytest.raises(ValueError, match=f"{name}: expected none or 2, got {len(texts)}"):
            save_grid(tmp_path / "other.png", black, **{name: texts})


@pytest.mark.slow
def test_the_sheet_shows_eight_pictures_before_and_after(tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for index, image in enumerate(digits(20)):
        save_picture(folder / f"{index:02}.png", image)
    assert run(purify_words(folder, out)) == 0
    sheet = torch.from_numpy(np.asarray(Image.open(out / "sheet.png"))[..., 0].astype(int))
    shown = [f"{index * 20 // 8:02}.png" for index in range(8)]
    before, after = written(folder), written(out)
    difference = max(int((before[name] - after[name]).abs().max()) for name in shown) / 255
    factor = amplification(difference)
    found = []
    for name in shown:
        rows = [before[name], after[name], factor * (before[name] - after[name]).abs()]
        found.append(
            [places(sheet, image, tolerance=factor if i == 2 else 0) for i, image in enumerate(rows)]
        )
    # Row for row below each other, the three side by side.
    tops = [[place[0] for place in row] for row in found]
    assert all(len(set(row)) == 1 for row in tops)
    assert [row[0] for row in tops] == sorted({row[0] for row in tops})
    assert len({tuple(place[1] for place in row) for row in found}) == 1
    assert [place[1] for place in found[0]] == sorted({place[1] for place in found[0]})


def places(sheet: Tensor, image: Tensor, tolerance: int) -> tuple[int, int]:
    """The one (top, left) where an image, enlarged 8 times, is on a sheet."""
    enlarged = image.repeat_interleave(8, 0).repeat_interleave(8, 1)
    windows = sheet.unfold(0, 64, 1).unfold(1, 64, 1)
    # Its least usual value first, as black is everywhere.
    probe = int(enlarged.flatten().sub(90).abs().argmin())
    near = (windows[..., probe // 64, probe % 64] - enlarged.flatten()[probe]).abs() <= tolerance
    hits = [
        (int(top), int(left))
        for top, left in near.nonzero()
        if int((windows[top, left] - enlarged).abs().max()) <= tolerance
    ]
    assert len(hits) == 1
    return hits[0]


@pytest.mark.parametrize(
    ("largest", "factor"),
    [(1.0, 1), (0.51, 1), (0.5, 2), (0.3, 2), (0.25, 4), (0.01, 64), (1 / 256, 256), (1e-9, 256), (0.0, 256)],
)
def test_differences_are_amplified_as_far_as_they_stay_visible(largest: float, factor: int) -> None:
    assert amplification(largest) == factor
    assert factor * largest <= 1
