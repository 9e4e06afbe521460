"""Parquet files and folders of them: which columns are read, what fits together, what is told of the rest."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import diffproof as dp

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def picture(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), level).save(stream, format="png")
    return stream.getvalue()


FILES = [picture(level) for level in (10, 20, 30, 40)]
ROWS = [{"bytes": file, "path": None} for file in FILES]
LABELS = [0, 1, 1, 0]
TABLE = {"image": ROWS, "label": LABELS}
# A second shard.
MORE = {"image": ROWS[:2], "label": [1, 0]}
NOTHING = pa.schema([("image", pa.struct([("bytes", pa.binary())])), ("label", pa.int64())]).empty_table()
README = "---\nconfigs:\n{}---\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content if isinstance(content, pa.Table) else pa.table(content), path)


# Columns, the labels that are read and what is said of them.
READ: dict[str, tuple[Mapping[str, Any], list[int], str]] = {
    "bytes of files": ({"image": FILES, "label": LABELS}, LABELS, ""),
    "large bytes": ({"png": pa.array(FILES, pa.large_binary()), "label": LABELS}, LABELS, ""),
    "structs of bytes": ({"img": [{"bytes": file} for file in FILES], "label": LABELS}, LABELS, ""),
    "bytes beside structs": ({**TABLE, "checksum": [b"0"] * 4}, LABELS, ""),
    "two label columns": (
        {**TABLE, "labels": ["a", "b", "c", "d"]},
        LABELS,
        "labels of the column label are taken, none of labels",
    ),
    "texts in a dictionary": (
        {"image": ROWS, "label": pa.array(["bee", "ant", "ant", "bee"]).dictionary_encode()},
        [1, 0, 0, 1],
        "classes in alphabetical order: ant, bee are the labels 0 to 1",
    ),
    "texts that look alike": ({"image": ROWS, "label": ["é", "a", "e\u0301", "a"]}, [1, 0, 1, 0], "a, é"),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "labels", "said"), READ.values(), ids=READ)
def test_columns(tmp_path: Path, columns: Mapping[str, Any], labels: list[int], said: str) -> None:
    write(tmp_path / "few.parquet", columns)
    data = dp.load_data(str(tmp_path / "few.parquet"))
    assert [round(float(image.mean()) * 255) for image in data.images] == [10, 20, 30, 40]
    assert data.labels.tolist() == labels
    assert said in data.layout
    assert bool(said) == bool(data.layout)


REFUSED: dict[str, tuple[Any, str]] = {
    "no row": (NOTHING, "{} has no row"),
    "no column": (pa.table({}), "{} has no column"),
    "a column twice": (
        pa.table([pa.array(ROWS), pa.array(LABELS), pa.array(LABELS)], names=["image", "label", "label"]),
        "{} has 2 columns called 'label'",
    ),
    "no picture": (
        {"image": ["a.png"] * 4, "label": LABELS},
        "few.parquet: expected one column of pictures (as bytes of files), got none among image (string), ",
    ),
    "pixels": ({"image": [[[0, 1], [2, 3]]] * 4, "label": LABELS}, "got none among image (list), label (int"),
    "two pictures": ({**TABLE, "mask": ROWS}, "few.parquet: expected one column of pictures (as bytes "),
    "no label": ({"image": ROWS, "kind": LABELS}, "few.parquet: expected a label column (label, labels, fi"),
    "lists": ({"image": ROWS, "label": [[0], [1], [0], []]}, "one an image, got ndarray (4)"),
    "structs": ({"image": ROWS, "label": [{"id": 0}] * 4}, "one an image, got dict (4)"),
    "bytes": ({"image": ROWS, "label": [b"a"] * 4}, "one an image, got bytes (4)"),
    "truncated": (b"PAR1" + bytes(99), "cannot read {}: Parquet magic bytes not found in footer"),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_columns(tmp_path: Path, columns: Any, message: str) -> None:
    write(tmp_path / "few.parquet", columns)
    with pytest.raises(ValueError, match=re.escape(message.format(tmp_path / "few.parquet"))) as caught:
        dp.load_data(str(tmp_path / "few.parquet"))
    assert re.match("data: ", str(caught.value))
    assert len(str(caught.value).splitlines()) == 1


# Files of a folder, the split that is asked for and what it is called, labels, and what is said.
FOLDERS: dict[str, tuple[Mapping[str, Any], str | None, str, list[int], str]] = {
    "shards": (
        {"a/train-0-of-2.parquet": TABLE, "a/train-1-of-2.parquet": MORE}, None, "train", [*LABELS, 1, 0], ""
    ),
    "another word": ({"train.parquet": TABLE, "val.parquet": MORE}, "val", "validation", [1, 0], ""),
    "a file of no split": (
        {"train.parquet": TABLE, "more/extra.parquet": MORE},
        None,
        "train",
        LABELS,
        "1 parquet file of no split ignored: more/extra.parquet",
    ),
    "named by a README": (
        {
            "README.md": README.format(
                "- config_name: a\n  data_files:\n  - split: seen\n    path: a.parquet\n"
            ).encode(),
            "a.parquet": TABLE,
            "b.parquet": MORE,
        },
        "seen",
        "seen",
        LABELS,
        "1 parquet file of no split ignored: b.parquet",
    ),
    "no labels in the other split": (
        {"train.parquet": TABLE, "test.parquet": {"image": ROWS}}, "train", "train", LABELS, ""
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "split", "name", "labels", "said"), FOLDERS.values(), ids=FOLDERS)
def test_folders(
    tmp_path: Path, files: Mapping[str, Any], split: str | None, name: str, labels: list[int], said: str
) -> None:
    for path, content in files.items():
        write(tmp_path / "few" / path, content)
    data = dp.load_data(str(tmp_path / "few"), split)
    assert (data.split, data.labels.tolist()) == (name, labels)
    assert data.layout == (f"few: {said}" if said else "")


TEXTS = {"image": ROWS, "label": ["ant", "Bee", "ant", "Bee"]}
BAD_FOLDERS: dict[str, tuple[Mapping[str, Any], str]] = {
    "an empty shard": ({"train-0.parquet": TABLE, "train-1.parquet": NOTHING}, "{}/train-1.parquet has no"),
    "a damaged shard": (
        {"train-0.parquet": TABLE, "train-1.parquet": b"PAR1 no"},
        "cannot read {}/train-1.parquet: Parquet file size is 7 bytes",
    ),
    "a pointer": (
        {"train-0.parquet": TABLE, "train-1.parquet": b"version https://git-lfs.github.com/spec/v1\n"},
        "cannot read {}/train-1.parquet: it is a Git LFS pointer in place of the file",
    ),
    "texts and integers": (
        {"train-0.parquet": TABLE, "train-1.parquet": TEXTS},
        "the column 'label' is integers in {0}/train-0.parquet, but string in {0}/train-1.parquet; expect",
    ),
    "texts and integers in two splits": (
        {"test.parquet": TABLE, "train.parquet": TEXTS},
        "the column 'label' is string in {0}/train.parquet, but integers in {0}/test.parquet; expected",
    ),
    "other columns": (
        {"a.parquet": TABLE, "b.parquet": {"image": ROWS, "class": LABELS}},
        "expected the columns image, label as in {0}/a.parquet, got image, class in {0}/b.parquet",
    ),
    "a class written in two ways": (
        {"test.parquet": TEXTS, "train.parquet": {"image": ROWS, "label": ["ant", "bee", "ant", "bee"]}},
        "splits of few call a class 'Bee' and 'bee'; expected one name in all",
    ),
    "a file elsewhere": (
        {
            "README.md": README.format("- config_name: a\n  data_files: ../a.parquet\n").encode(),
            "a.parquet": TABLE,
            "../a.parquet": MORE,
        },
        "{0} names the file {0}/../a.parquet, expected one in it",
    ),
    "several configurations": (
        {
            "README.md": README.format(
                "- config_name: a\n  data_files: a.parquet\n- config_name: b\n  data_files: b.parquet\n"
            ).encode(),
            "a.parquet": TABLE,
            "b.parquet": MORE,
        },
        "{} has several configurations ('a', 'b') and no default; give a folder or a parquet file of one",
    ),
    "more of another kind": (
        {"a.parquet": TABLE, "x.csv": b"a,b\n1,2\n", "y.csv": b"a,b\n1,2\n"},
        "expected parquet files in {}, and fewer others, got x.csv among more of its kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_refused_folders(tmp_path: Path, files: Mapping[str, Any], message: str) -> None:
    for path, content in files.items():
        write(tmp_path / "few" / path, content)
    with pytest.raises(ValueError, match=re.escape(f"data: {message.format(tmp_path / 'few')}")) as caught:
        dp.load_data(str(tmp_path / "few"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        write(tmp_path / "few" / f"{name}.parquet", TABLE)
    with pytest.raises(ValueError, match=r"^split: expected one of train, validation; few has no 'test'$"):
        dp.load_data(str(tmp_path / "few"))
    with pytest.raises(ValueError, match=r"^split: unknown name 'tets'"):
        dp.load_data(str(tmp_path / "few"), "tets")


# What `datasets` saved itself


def saved(folder: Path, **splits: tuple[list[Any], Any]) -> Path:
    """A folder of `save_to_disk`: labels and the kind of their column by split."""
    tables = {}
    for split, (labels, kind) in splits.items():
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        tables[split] = datasets.Dataset.from_dict({"image": ROWS[: len(labels)], "label": labels}, features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(tables).save_to_disk(folder)
    return folder


def named(*names: str) -> Any:
    return datasets.ClassLabel(names=names)


def test_names_of_another_split_are_known(tmp_path: Path) -> None:
    few = saved(tmp_path / "few", train=([0, 2], named("z", "a", "b")), test=([1, 0], named("z", "a")))
    data = dp.load_data(str(few))
    assert (data.labels.tolist(), data.class_names) == ([1, 0], ("z", "a", "b"))
    few = saved(tmp_path / "more", train=([0, 1], named("z", "a")), test=([1, 0], datasets.Value("int64")))
    assert dp.load_data(str(few)).class_names == ("z", "a")


SAVED: dict[str, tuple[dict[str, tuple[list[Any], Any]], str]] = {
    "names in another order": (
        {"test": ([0], named("a", "b")), "train": ([0], named("b", "a"))},
        "splits of few call the label 0 'a' and 'b'",
    ),
    "texts and named numbers": (
        {"test": (["a"], datasets.Value("string")), "train": ([0], named("b", "a"))},
        "labels of few are texts, those of another split numbers of named classes",
    ),
    "an empty split": (
        {"test": ([0], named("a", "b")), "train": ([], named("a", "b"))}, "{}/train has no row"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("splits", "message"), SAVED.values(), ids=SAVED)
def test_refused_saved_tables(tmp_path: Path, splits: dict[str, tuple[list[Any], Any]], message: str) -> None:
    few = saved(tmp_path / "few", **splits)
    with pytest.raises(ValueError, match=f"^{re.escape(f'data: {message.format(few)}')}$"):
        dp.load_data(str(few))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset_dict.json", '{"splits": ["test", "gone"]}', "no such file: {}/gone/state.json"),
        (
            "dataset_dict.json",
            '{"splits": ["../few/test"]}',
            "/state.json names the file ../few/test, expected one",
        ),
        (
            "dataset_dict.json",
            "[]",
            "{}/dataset_dict.json is damaged: it is not what Dataset.save_to_disk writes",
        ),
        ("test/state.json", "{", "{}/test/state.json is damaged: it is not what Dataset.save_to_disk writes"),
        ("test/state.json", '{"_data_files": [3]}', "{}/test/state.json is damaged: "),
        ("test/state.json", '{"_data_files": [{"filename": "x.arrow"}]}', "no such file: {}/test/x.arrow"),
        (
            "test/state.json",
            '{"_data_files": [{"filename": "/etc/passwd"}]}',
            "{}/test/state.json names the file /etc/passwd, expected one beside it",
        ),
    ],
)
def test_damaged_saved_tables(tmp_path: Path, name: str, content: str, message: str) -> None:
    few = saved(tmp_path / "few", test=([0, 1], named("a", "b")))
    (few / name).write_text(content)
    with pytest.raises(ValueError, match=f"^data: .*{re.escape(message.format(few))}"):
        dp.load_data(str(few))
