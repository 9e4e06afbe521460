"""Data sets by name, from folders and files: what is read, in which order, and what is refused."""

from __future__ import annotations

import io
import pickle
import re
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.indices import parse_indices
from helpers.files import Trap
from helpers.paths import SHARED
from helpers.runs import rows


def test_digits_are_scikit_learns_over_sixteen() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    both = [dp.load_data("digits", split=split) for split in ("train", "test")]
    assert [len(part) for part in both] == [1283, 514]
    # Disjoint and complete: put back in scikit-learn's order, the two splits are its whole data set.
    position = torch.arange(1797)
    in_test = (position % 7 == 0) | (position % 7 == 3)
    images, labels = torch.empty(1797, 1, 8, 8), torch.empty(1797, dtype=torch.int64)
    images[~in_test], labels[~in_test] = both[0]
    images[in_test], labels[in_test] = both[1]
    assert torch.equal(images[:, 0].double() * 16, torch.from_numpy(bunch.images))
    assert torch.equal(labels, torch.from_numpy(bunch.target))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_is_balanced_and_well_formed(split: str) -> None:
    data = dp.load_data("digits", split=split)
    images, labels = data
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.shape == (len(data), 1, 8, 8)
    assert data.image_shape == (1, 8, 8)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert data.class_names == tuple("0123456789")
    assert (data.name, data.split) == ("digits", split)
    shares = torch.bincount(labels, minlength=10) / len(labels)
    assert float(shares.min()) > 0.08
    assert float(shares.max()) < 0.12


def test_splits_share_no_image() -> None:
    train, test = (dp.load_data("digits", split=split).images.flatten(1) for split in ("train", "test"))
    assert float(torch.cdist(train, test).min()) > 0.1


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digit", "test", "data: unknown name 'digit'; did you mean digits?"),
        ("mnist", "test", "data: unknown name 'mnist'; known: cifar10, cifar100, digits, imagenet"),
        ("digits", "tset", "split: unknown name 'tset'; did you mean test?"),
        ("digits", "validation", "split: unknown name 'validation'; known: test, train"),
        ("./none", None, "data: no such file or folder: ./none"),
        ("/none/at/all", None, "data: no such file or folder: /none/at/all"),
        ("none.parquet", None, "data: no such file or folder: none.parquet"),
        ("none.npz", None, "data: no such file: none.npz"),
    ],
)
def test_unknown_names_give_the_nearest(name: str, split: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dp.load_data(name, split=split)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit: expected an integer ≥ 1, got 0"),
        ({"image_size": 0}, "image_size: expected an integer ≥ 1, got 0"),
        ({"image_size": 16}, "image_size: digits is read as it is, expected none, got 16"),
        ({"indices": "0:515"}, "indices: the data has 514 images (0 to 513), got '0:515'"),
    ],
)
def test_bad_choices_of_images(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dp.load_data("digits", **options)


def test_indices_choose_images() -> None:
    whole = dp.load_data("digits")
    chosen = dp.load_data("digits", indices="5:20:5,7")
    assert torch.equal(chosen.images, whole.images[[5, 7, 10, 15]])
    assert torch.equal(chosen.labels, whole.labels[[5, 7, 10, 15]])
    assert (len(chosen), chosen.split, chosen.class_names) == (4, "test", whole.class_names)
    assert len(dp.load_data("digits", default_split="train")) == 1283


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:3", [0, 1, 2]),
        ("7", [7]),
        ("9", [9]),
        ("0:10:4", [0, 4, 8]),
        ("8,2:4", [2, 3, 8]),
        ("3:5,0:3", [0, 1, 2, 3, 4]),
        (" 1 , 4:6 ", [1, 4, 5]),
        ("0:10", list(range(10))),
    ],
)
def test_parse_indices(text: str, expected: list[int]) -> None:
    assert parse_indices(text, 10) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected start:stop or start:stop:step, got ''"),
        ("a", "expected start:stop or start:stop:step"),
        ("1:", "expected start:stop or start:stop:step"),
        (":5", "expected start:stop or start:stop:step"),
        ("0:1:2:3", "expected start:stop or start:stop:step"),
        ("0:2,", "expected start:stop or start:stop:step"),
        ("1.5", "expected start:stop or start:stop:step"),
        ("-1", "expected 0 ≤ start < stop and step ≥ 1"),
        ("-3:2", "expected 0 ≤ start < stop and step ≥ 1"),
        ("3:3", "expected 0 ≤ start < stop and step ≥ 1"),
        ("5:2", "expected 0 ≤ start < stop and step ≥ 1"),
        ("0:5:0", "expected 0 ≤ start < stop and step ≥ 1"),
        ("0:5:-1", "expected 0 ≤ start < stop and step ≥ 1"),
        ("10", r"the data has 10 images \(0 to 9\), got '10'"),
        ("0:11", r"the data has 10 images \(0 to 9\)"),
        ("0:3,2:5,1", r"expected each image once, got \d again in '0:3,2:5,1'"),
        ("0:2,8:12", r"the data has 10 images \(0 to 9\)"),
    ],
)
def test_parse_indices_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^indices: {message}"):
        parse_indices(text, 10)


# Files of images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves anything in the user's cache."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


def picture(mode: str, width: int, height: int, seed: int) -> Any:
    """A random picture of a PIL mode."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_folder(folder: Path, modes: Sequence[str], size: tuple[int, int] = (6, 6)) -> list[Any]:
    """Class folders cat and dog, one picture of each in turn; the pictures in the order of loading."""
    pictures: dict[str, list[Any]] = {"cat": [], "dog": []}
    for i, mode in enumerate(modes):
        name = ("cat", "dog")[i % 2]
        pictures[name].append(picture(mode, *size, seed=i))
        (folder / name).mkdir(parents=True, exist_ok=True)
        pictures[name][-1].save(folder / name / f"{i}.{'tiff' if mode == 'CMYK' else 'png'}")
    return pictures["cat"] + pictures["dog"]


def pixels_of(image: Any, mode: str = "RGB") -> Tensor:
    """C×H×W in [0, 1]."""
    array = torch.from_numpy(np.array(image.convert(mode))).float() / 255
    return array[None] if mode == "L" else array.permute(2, 0, 1)


@pytest.mark.parametrize(
    ("modes", "grey"),
    [
        (("RGB", "RGB", "RGB"), False),
        (("L", "L", "L"), True),
        (("1", "L", "LA"), True),
        (("RGB", "L", "P", "RGBA", "CMYK", "LA"), False),
        (("P", "L"), False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_class_folders(tmp_path: Path, modes: tuple[str, ...], grey: bool) -> None:
    expected = write_folder(tmp_path / "pets", modes)
    data = dp.load_data(str(tmp_path / "pets"))
    assert (data.name, data.split, len(data)) == ("pets", "all", len(modes))
    assert data.class_names == ("cat", "dog")
    assert data.classes_named
    assert data.labels.tolist() == [0] * ((len(modes) + 1) // 2) + [1] * (len(modes) // 2)
    assert data.image_shape == (1 if grey else 3, 6, 6)
    images = data.images
    assert images.dtype == torch.float32
    assert torch.equal(images, torch.stack([pixels_of(image, "L" if grey else "RGB") for image in expected]))


def test_split_folders(tmp_path: Path) -> None:
    test = write_folder(tmp_path / "pets" / "test", ["RGB"] * 2)
    train = write_folder(tmp_path / "pets" / "train", ["RGB"] * 4)
    source = str(tmp_path / "pets")
    for split, options, expected in (
        ("test", {}, test),
        ("test", {"default_split": "test"}, test),
        ("train", {"default_split": "train"}, train),
        ("train", {"split": "train"}, train),
        ("test", {"split": "test", "default_split": "train"}, test),
    ):
        data = dp.load_data(source, **options)  # type: ignore[arg-type]
        assert data.split == split
        assert torch.equal(data.images, torch.stack([pixels_of(image) for image in expected]))
    with pytest.raises(ValueError, match=r"^split: unknown name 'tets'; did you mean test\?$"):
        dp.load_data(source, "tets")


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    expected = write_folder(tmp_path / "pets", ["RGB"] * 4)
    (tmp_path / "pets" / "cat" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    data = dp.load_data(str(tmp_path / "pets"))
    assert len(data) == 4
    # Index 1 is broken and nothing else.
    for index in (0, 2, 3):
        assert torch.equal(data.pixels[index], pixels_of(expected[index]))
    reads: list[Callable[[], Tensor]] = [
        lambda: data.images,
        lambda: data.pixels[1],
        lambda: data.batch([3, 1]),
    ]
    for read in reads:
        with pytest.raises(ValueError, match=r"^data: .*/pets/cat/2.png cannot be decoded: .") as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1
    # Loading alone does not even look at the first image.
    (tmp_path / "pets" / "cat" / "0.png").write_bytes(b"")
    data = dp.load_data(str(tmp_path / "pets"), indices="0,2:4")
    assert data.labels.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match=r"^data: .*/pets/cat/0.png is empty"):
        data.image_shape  # noqa: B018


def test_sizes_that_differ_need_an_image_size(tmp_path: Path) -> None:
    for i, size in enumerate([(6, 6), (8, 5)]):
        (tmp_path / "pets" / f"class{i}").mkdir(parents=True)
        picture("RGB", *size, seed=i).save(tmp_path / "pets" / f"class{i}" / "0.png")
    data = dp.load_data(str(tmp_path / "pets"))
    told = r"^data: .*/pets/class1/0.png is 3×5×8 \(channels×height×width\), others are 3×6×6; an image size"
    # Called so in a choice of them, too.
    for some in (data, data.select([0, 1])):
        with pytest.raises(ValueError, match=told):
            some.images  # noqa: B018
    assert dp.load_data(str(tmp_path / "pets"), image_size=4).images.shape == (2, 3, 4, 4)


def bicubic(line: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bicubic resampling of the first axis, from the definition (Keys 1981, a = −½)."""
    scale = len(line) / size
    support = max(scale, 1.0)
    at = (np.arange(size) + 0.5) * scale
    distance = np.abs((np.arange(len(line)) + 0.5)[None] - at[:, None]) / support
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return np.tensordot(weights / weights.sum(1, keepdims=True), line, axes=(1, 0))


@pytest.mark.parametrize(
    ("width", "height", "size", "resized"),
    [
        (40, 20, 10, (20, 10)),
        (20, 40, 10, (10, 20)),
        (31, 20, 8, (12, 8)),
        (12, 12, 16, (16, 16)),
        (16, 21, 16, (16, 21)),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_image_size_is_shorter_side_then_centre(
    tmp_path: Path, mode: str, width: int, height: int, size: int, resized: tuple[int, int]
) -> None:
    # Smooth pictures: PIL rounds between the two directions, which shows most at sharp edges.
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 3, height))
    colours = [128 + 100 * np.sin(x + i) * np.cos(y - i) for i in range(3)]
    from PIL import Image

    source = Image.fromarray(np.stack(colours, 2).round().astype(np.uint8)).convert(mode)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        source.save(tmp_path / "pets" / name / "0.png")
    image = dp.load_data(str(tmp_path / "pets"), image_size=size).pixels[0]

    wide, high = resized
    exact = bicubic(bicubic(np.array(source, dtype=np.float64), high).swapaxes(0, 1), wide).swapaxes(0, 1)
    left, top = (wide - size) // 2, (high - size) // 2
    exact = exact[top : top + size, left : left + size]
    exact = exact[None] if mode == "L" else exact.transpose(2, 0, 1)
    assert image.shape == exact.shape
    # Two roundings to 8 bits.
    assert np.abs(image.numpy() * 255 - exact).max() <= 1.1


# Parquet files and folders of `datasets`


def encoded(image: Any) -> bytes:
    """The bytes of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, format="png")
    return stream.getvalue()


def table(pictures: Sequence[Any], labels: Sequence[int], names: Sequence[str], image: str = "img") -> Any:
    """A `datasets` table with typed columns."""
    import datasets

    features = datasets.Features({image: datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({image: list(pictures), "label": list(labels)}, features=features)


def test_parquet_with_types(tmp_path: Path) -> None:
    pictures = [picture("RGB", 6, 6, seed) for seed in range(3)]
    table(pictures, [2, 0, 2], ["ant", "bee", "cow"]).to_parquet(tmp_path / "few.parquet")
    data = dp.load_data(str(tmp_path / "few.parquet"))
    assert torch.equal(data.images, torch.stack([pixels_of(image) for image in pictures]))
    assert (data.labels.tolist(), data.class_names) == ([2, 0, 2], ("ant", "bee", "cow"))
    assert data.classes_named


@pytest.mark.parametrize(
    ("labels", "codes", "names", "named"),
    [
        ([3, 0, 1], [3, 0, 1], ("0", "1", "2", "3"), False),
        (["dog", "ant", "dog"], [1, 0, 1], ("ant", "dog"), True),
    ],
    ids=["numbers", "text"],
)
def test_parquet_without_types(
    tmp_path: Path, labels: list[Any], codes: list[int], names: tuple[str, ...], named: bool
) -> None:
    pandas = pytest.importorskip("pandas")
    pictures = [picture("L", 5, 5, seed) for seed in range(3)]
    columns = {
        "id": [7, 8, 9],
        "picture": [{"bytes": encoded(image), "path": None} for image in pictures],
        "target": labels,
    }
    pandas.DataFrame(columns).to_parquet(tmp_path / "few.parquet")
    data = dp.load_data(str(tmp_path / "few.parquet"))
    assert torch.equal(data.images, torch.stack([pixels_of(image, "L") for image in pictures]))
    assert (data.labels.tolist(), data.class_names, data.classes_named) == (codes, names, named)


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    import datasets

    pictures = [picture("RGB", 6, 6, seed) for seed in range(3)]
    whole = table(pictures, [0, 1, 0], ["ant", "bee"])
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select([2])}).save_to_disk(tmp_path / "both")
    expected = torch.stack([pixels_of(image) for image in pictures])
    assert torch.equal(dp.load_data(str(tmp_path / "one")).images, expected)
    assert torch.equal(dp.load_data(str(tmp_path / "both"), "train").images, expected)
    assert torch.equal(dp.load_data(str(tmp_path / "both")).images, expected[2:])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"img": 2},
            "few.parquet: expected a label column (label, labels, fine_label, class, target), got img (",
        ),
        ({"img": 2, "label": [0.5, 1.0]}, "expected integers or texts, one an image, got float64 (2)"),
        ({"img": 2, "label": [-1, -1]}, "row 0 of few.parquet has the label -1, expected ≥ 0 (a split "),
        ({"img": 2, "label": [0, None]}, "row 1 of few.parquet has no label (a split without labels?)"),
        ({"img": 2, "label": ["a", None]}, "row 1 of few.parquet has no label"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pandas = pytest.importorskip("pandas")
    images = [{"bytes": encoded(picture("RGB", 4, 4, 0)), "path": None}] * 2
    frame = {name: images if value == 2 else value for name, value in columns.items()}
    pandas.DataFrame(frame).to_parquet(tmp_path / "few.parquet")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        dp.load_data(str(tmp_path / "few.parquet"))
    assert str(caught.value).startswith("data: ")


def test_a_split_without_labels_is_refused(tmp_path: Path) -> None:
    image = picture("RGB", 4, 4, 0)
    table([image] * 2, [-1, -1], ["ant", "bee"]).to_parquet(tmp_path / "few.parquet")
    with pytest.raises(
        ValueError, match=r"^data: row 0 of few.parquet has the label -1, expected 0 to 1 \(a sp"
    ):
        dp.load_data(str(tmp_path / "few.parquet"))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    table([picture("RGB", 4, 4, 0), None], [0, 1], ["ant", "bee"]).to_parquet(tmp_path / "few.parquet")
    data = dp.load_data(str(tmp_path / "few.parquet"))
    with pytest.raises(ValueError, match=r"^data: image 1 of few.parquet is missing; --skip-unreadable "):
        data.images  # noqa: B018


@pytest.mark.parametrize("kind", ["empty", "text", "flat", "csv"])
def test_folders_and_files_without_images(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "pets"
    if kind == "csv":
        source = tmp_path / "pets.csv"
        source.write_text("img,label\n1,2\n")
    else:
        source.mkdir()
    if kind == "text":
        (source / "readme.md").write_text("nothing here")
    elif kind == "flat":
        picture("RGB", 4, 4, 0).save(source / "0.png")
    expected = "expected (class folders|a .?parquet or .npz file, or a folder of class folders)"
    with pytest.raises(ValueError, match=f"^data: .*{expected}") as caught:
        dp.load_data(str(source))
    assert len(str(caught.value).splitlines()) == 1
    assert "pets" in str(caught.value)
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_offline_and_not_in_the_cache_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import datasets
    from huggingface_hub import constants

    # The endpoint is a port of this machine where nothing listens.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    started = time.monotonic()
    for load, argument in (
        (dp.load_data, "nobody/none-v1.5"),
        (dp.load_data, "cifar10"),
        (dp.load_denoiser, "a/b"),
    ):
        with pytest.raises(ValueError, match="download it once while online") as caught:
            load(argument)
        assert len(str(caught.value).splitlines()) == 1
        assert {"cifar10": "uoft-cs/cifar10"}.get(argument, argument) in str(caught.value)
    assert time.monotonic() - started < 20
    assert before == (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    assert capfd.readouterr().err == ""


# .npz archives

GREY = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GREY, GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (GREY[:, None], GREY[:, None]),
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
        (GREY / 255, GREY[:, None]),
        ((COLOUR / 255).astype(np.float32), COLOUR.transpose(0, 3, 1, 2)),
    ],
    ids=["NHW", "NHW1", "N1HW", "NHWC", "NCHW", "float64", "float32"],
)
def test_npz_layouts(tmp_path: Path, images: np.ndarray, expected: np.ndarray) -> None:
    np.savez_compressed(tmp_path / "few.npz", images=images, labels=LABELS[:, None])
    data = dp.load_data(str(tmp_path / "few.npz"))
    assert data.images.dtype == torch.float32
    assert np.abs(data.images.numpy() * 255 - expected).max() < 1e-4
    assert data.labels.tolist() == [2, 0, 1]
    assert (data.class_names, data.classes_named) == (("0", "1", "2"), False)


@pytest.mark.parametrize(
    ("arrays", "options", "split", "index"),
    [
        ({"images": 0, "labels": 0}, {}, "all", 0),
        ({"x": 1, "y": 1}, {"default_split": "train"}, "all", 1),
        ({"x": 1, "y": 1}, {"split": "all"}, "all", 1),
        ({"x_train": 0, "y_train": 0, "x_test": 1, "y_test": 1}, {}, "test", 1),
        ({"x_train": 0, "y_train": 0, "x_test": 1, "y_test": 1}, {"default_split": "train"}, "train", 0),
        ({"x_train": 0, "y_train": 0, "x_test": 1, "y_test": 1}, {"split": "train"}, "train", 0),
        ({"val_images": 2, "val_labels": 2, "test_images": 1, "test_labels": 1}, {}, "test", 1),
        ({"val_images": 2, "val_labels": 2, "test_images": 1, "test_labels": 1}, {"split": "val"}, "val", 2),
        ({"x_train": 2, "y_train": 2}, {}, "train", 2),
    ],
)
def test_npz_names(
    tmp_path: Path, arrays: dict[str, int], options: dict[str, Any], split: str, index: int
) -> None:
    content: dict[str, Any] = {
        name: GREY[i : i + 1] if name[0] == "x" or "images" in name else LABELS[i : i + 1]
        for name, i in arrays.items()
    }
    np.savez(tmp_path / "few.npz", **content)
    data = dp.load_data(str(tmp_path / "few.npz"), **options)
    assert data.split == split
    assert torch.equal(data.images[0, 0] * 255, torch.from_numpy(GREY[index]).float())
    assert data.labels.tolist() == [LABELS[index]]


PIXELS, FEW = np.zeros((2, 4, 4), np.uint8), np.array([0, 1])


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (
            {"pictures": GREY, "labels": LABELS},
            {},
            "expected arrays images and labels (or x_test and y_test), got",
        ),
        (
            {"images": GREY, "labels": LABELS},
            {"split": "test"},
            "has one set of images without a name, got 'test'",
        ),
        (
            {"x_a": GREY, "y_a": LABELS, "x_b": GREY, "y_b": LABELS},
            {},
            "split: expected one of a, b; ",
        ),
        ({"x_a": GREY, "y_a": LABELS}, {"split": "b"}, "split: unknown name 'b'; known: a"),
        ({"images": GREY, "labels": LABELS[:2]}, {}, "few.npz has 3 images but 2 labels"),
        (
            {"images": GREY, "labels": LABELS / 2},
            {},
            "expected integers or texts, one an image, got float64 (3)",
        ),
        (
            {"images": GREY, "labels": np.eye(3, dtype=int)},
            {},
            "expected integers or texts, one an image, got int64 (3×3)",
        ),
        ({"images": GREY[0], "labels": LABELS}, {}, "expected N×H×W, N×H×W×C or N×C×H×W, got (4, 5)"),
        ({"images": np.zeros((3, 4, 5, 2)), "labels": LABELS}, {}, "or N×C×H×W, got (3, 4, 5, 2)"),
        (
            {"images": GREY.astype(np.int64), "labels": LABELS},
            {},
            "expected uint8 or floats in [0, 1], got int64",
        ),
        (
            {"images": GREY.astype(float), "labels": LABELS},
            {},
            "expected finite pixels in [0, 1], got 4 to 248",
        ),
        ({"images": GREY / -255, "labels": LABELS}, {}, "expected finite pixels in [0, 1]"),
        ({"images": GREY % 2, "labels": LABELS}, {}, "expected 8 bits, 0 to 255, got 0 and 1 only"),
        ({"images": GREY / 255**2, "labels": LABELS}, {}, "expected pixels up to 1, got 0.0038"),
        ({"images": np.full((3, 4, 5), np.nan), "labels": LABELS}, {}, "expected finite pixels in [0, 1]"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, {}, "has no image in split 'all'"),
        ({"images": GREY, "labels": LABELS - 1}, {}, "few.npz has the label -1, expected ≥ 0"),
        (
            {"images": GREY, "labels": LABELS},
            {"image_size": 4},
            "few.npz is read as it is, expected none, got 4",
        ),
        (
            {"images": PIXELS, "labels": FEW, "x": PIXELS, "y": FEW},
            {},
            "expected one set of arrays a split, got images and x",
        ),
        (
            {"x_test": PIXELS, "y_test": FEW, "test_images": PIXELS, "test_labels": FEW},
            {},
            "expected one set of arrays a split, got x_test and test_images",
        ),
        (
            {"x_test": PIXELS, "y_test": FEW, "images": PIXELS, "labels": FEW},
            {},
            "expected one set of arrays a split, got images and x_test",
        ),
        # The training images do not take the place of those.
        (
            {"x_train": PIXELS, "y_train": FEW, "x_test": PIXELS},
            {},
            "few.npz has the images x_test without labels, expected y_test",
        ),
        ({"images": PIXELS, "labels": np.array(3)}, {}, "one an image, got int64 ()"),
    ],
)
def test_npz_of_other_forms(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "few.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(message)):
        dp.load_data(str(tmp_path / "few.npz"), **options)


@pytest.mark.slow
def test_arrays_that_are_not_read_are_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.NPZ.npz", images=PIXELS, labels=FEW, class_names=np.array(["ant", "bee"]))
    path = (tmp_path / "few.NPZ.npz").rename(tmp_path / "few.NPZ")
    data = dp.load_data(str(path))
    assert (data.layout, data.labels.tolist()) == (
        "few.NPZ: arrays that are not read: class_names",
        FEW.tolist(),
    )


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x1f\x8b\x08", bytes(257) + b"ustar"])
def test_archives_of_pictures_are_not_unpacked(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "few.dat").write_bytes(head)
    with pytest.raises(ValueError, match=r"^data: .*few\.dat is an archive; unpack it and give its folder$"):
        dp.load_data(str(tmp_path / "few.dat"))


@pytest.mark.slow
def test_a_run_on_an_archive_repeats_from_its_own_settings(tmp_path: Path) -> None:
    images, labels = dp.load_data("digits", indices="0:4")
    np.savez(tmp_path / "few.npz", images=images.numpy(), labels=labels.numpy())
    out = tmp_path / "run"
    flags = ["--data", str(tmp_path / "few.npz"), "--classifier", "digits", "--denoiser", "digits"]
    flags += ["--defense", "dds", "--sigma", "0.25", "--n0", "5", "--n", "20", "--seed", "3"]
    assert run(["certify", *flags, "--out", str(out)]) == 0
    assert run(["verify", str(out), "--resample", "1", "--trust"]) == 0
    again = tmp_path / "again"
    assert run(["certify", "--config", str(out / "settings.yaml"), "--out", str(again)]) == 0
    assert len(rows(out)) == 4
    assert rows(again) == rows(out)


@pytest.mark.parametrize("kind", ["member", "pickle", "npy", "truncated", "text", "empty", "flipped"])
def test_damaged_archives_and_code(tmp_path: Path, kind: str) -> None:
    path, trap = tmp_path / "few.npz", tmp_path / "executed"
    armed = np.array([Trap(trap)] * 3, dtype=object)
    np.savez_compressed(path, images=armed if kind == "member" else np.tile(GREY, (1, 9, 9)), labels=LABELS)
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"images": Trap(trap)}))
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, GREY)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "text":
        path.write_text("not an archive")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        content = bytearray(path.read_bytes())
        content[200] ^= 0xFF
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^data: (cannot read )?{path}") as caught:
        dp.load_data(str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert not trap.exists()


# CIFAR-10 as the repository's neighbour holds it

CIFAR10 = SHARED / "data" / "cifar10"


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no ../shared/data/cifar10 beside the repository")
@pytest.mark.parametrize(
    ("name", "size"),
    [("test-first512", 512), ("train-lossless5085", 5085), ("train-jpeg50000", 50_000)],
)
def test_cifar10(name: str, size: int) -> None:
    data = dp.load_data(str(CIFAR10 / f"{name}.parquet"))
    assert (len(data), data.image_shape) == (size, (3, 32, 32))
    assert data.class_names[:4] == ("airplane", "automobile", "bird", "cat")
    assert torch.bincount(data.labels).min() > 0.08 * size
    if size == 512:
        # The official test set begins with a cat, two ships and an airplane.
        assert data.labels[:4].tolist() == [3, 8, 8, 0]
    if size == 50_000:
        assert torch.bincount(data.labels).tolist() == [5000] * 10
    images = data.batch(range(0, size, size // 8))
    assert (float(images.min()) >= 0, float(images.max()) <= 1) == (True, True)
    # A picture has close to equal neighbours, which wrongly ordered axes would not.
    assert float((images[..., 1:] - images[..., :-1]).abs().mean()) < 0.1
