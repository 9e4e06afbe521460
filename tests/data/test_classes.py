"""Classes of data and networks: matched by name, refused where a name stands elsewhere, mapped by a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import diffproof as dp
from diffproof.data.classes import check_names, match_names, read_class_map
from helpers.animals import ANIMALS, accuracy, animal_classifier, animal_data

BACKWARDS = ANIMALS[::-1]
WORDNET = tuple(f"n0{number}" for number in range(1440764, 1440769))


def own_names(animals: Sequence[str | None]) -> tuple[str, ...]:
    return tuple("background" if animal is None else animal for animal in animals)


@pytest.mark.parametrize(
    ("classes", "animals", "names"),
    [
        (ANIMALS, ANIMALS, ANIMALS),
        (("Ant", "BEE", "cat", "Dog", "elk"), ANIMALS, ANIMALS),
        (
            ("giant_ant", "bee", "wild-cat", "hot  dog", "elk"),
            ANIMALS,
            ("giant ant", "bee", "Wild Cat", "hot-dog", "elk"),
        ),
        (
            ("fire ant, ant", "bee", "cat", "dog", "elk, moose"),
            ANIMALS,
            ("ant", "bee", "cat", "dog", "moose"),
        ),
        (("cafe\u0301", "bee", "cat", "dog", "elk"), ANIMALS, ("caf\u00e9", "bee", "cat", "dog", "elk")),
        (("crane", "bee", "crane", "dog", "elk"), ANIMALS, ("crane", "bee", "crane", "dog", "elk")),
        (tuple("01234"), ANIMALS, tuple("01234")),
        (("00", "01", "02", "03", "04"), ANIMALS, tuple("01234")),
        (("0", "1", "10", "2", "3"), ANIMALS, ("0", "1", "10", "2", "3")),
        (BACKWARDS, BACKWARDS, BACKWARDS),
        (ANIMALS, ANIMALS, None),
        (tuple("01234"), ANIMALS, None),
        (tuple("12345"), ANIMALS, None),
    ],
)
def test_classes_that_fit(
    classes: Sequence[str], animals: Sequence[str], names: Sequence[str] | None
) -> None:
    classifier = animal_classifier(animals, names)
    matched = dp.match_classes(animal_data(classes, animals), classifier)
    assert matched.labels.tolist() == [0, 1, 2, 3, 4]
    assert accuracy(classifier, matched) == 1.0


HINT = "; a class map (--class-map FILE) says which is which"


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (
            ANIMALS,
            BACKWARDS,
            "classifier: its classes are not in the order of zoo: 'ant' is label 0 there, but its label 4"
            f" (4 of 5 classes so){HINT}",
        ),
        (
            ANIMALS,
            ("bee", "ant", "cat", "dog", "elk"),
            "classifier: its classes are not in the order of zoo: 'ant' is label 0 there, but its label 1"
            f" (2 of 5 classes so){HINT}",
        ),
        # Three of five names are shared, and all of them elsewhere.
        (
            ANIMALS,
            ("cat", "Ant", "BEE", "fox", "gnu"),
            "classifier: its classes are not in the order of zoo: 'ant' is label 0 there, but its label 1"
            f" (3 of 5 classes so){HINT}",
        ),
        # One name alone.
        (
            ANIMALS,
            ("fly", "fox", "gnu", "Bee", "hen"),
            "classifier: its classes are not in the order of zoo: 'bee' is label 1 there, but its label 3"
            f" (1 of 5 classes so){HINT}",
        ),
        (
            ("hot dog", "bee", "cat", "dog", "elk"),
            ("bee", "hot_dog", "cat", "dog", "elk"),
            "classifier: its classes are not in the order of zoo: 'hot dog' is label 0 there, but its label 1"
            f" (2 of 5 classes so){HINT}",
        ),
        # A background class of the network, and as many classes as the data has.
        (
            ANIMALS,
            ("background", "ant", "bee", "cat", "dog"),
            "classifier: its classes are not in the order of zoo: 'ant' is label 0 there, but its label 1"
            f" (4 of 5 classes so){HINT}",
        ),
        # Folders of numbers, in the order of texts on one side.
        (
            ("0", "1", "2", "3", "10"),
            ("0", "1", "10", "2", "3"),
            "classifier: its classes are not in the order of zoo: '2' is label 2 there, but its label 3"
            f" (3 of 5 classes so){HINT}",
        ),
        (
            ("0", "1", "10", "2", "3"),
            None,
            "classifier: does not name its classes, and those of zoo are numbers, of which '10' has the label"
            f" 2: their order is not known{HINT}",
        ),
        (
            ANIMALS,
            (*ANIMALS, "fox"),
            f"classifier: has 6 classes (one of them for the background?), but zoo has 5{HINT}",
        ),
        (ANIMALS, (*ANIMALS, "fox", "gnu"), f"classifier: has 7 classes, but zoo has 5{HINT}"),
        (
            ANIMALS,
            ANIMALS[1:],
            f"classifier: has 4 classes (one of them for the background?), but zoo has 5{HINT}",
        ),
    ],
)
def test_classes_that_do_not_fit(classes: Sequence[str], names: Sequence[str] | None, message: str) -> None:
    classifier = animal_classifier([None] * (5 if names is None else len(names)), names)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dp.match_classes(animal_data(classes, ANIMALS), classifier)


@pytest.mark.parametrize("given", [1000, 1001])
def test_a_background_class_of_a_large_network(given: int) -> None:
    names = tuple(f"class {number}" for number in range(1000))
    data = dp.ImageData(
        "folder", "val", animal_data(ANIMALS, ANIMALS).images, animal_data(ANIMALS, ANIMALS).labels, names
    )
    model = dp.Classifier(animal_classifier([None] * given).network, given)
    if given == 1000:
        assert dp.match_classes(data, model) is data
        return
    message = f"classifier: has 1001 classes (one of them for the background?), but folder has 1000{HINT}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dp.match_classes(data, model)


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (
            WORDNET,
            ANIMALS,
            "classifier: none of the 5 class names of zoo could be checked; label 0 is 'n01440764' there"
            " and 'ant' here",
        ),
        (
            ANIMALS,
            tuple(f"LABEL_{label}" for label in range(5)),
            "classifier: none of the 5 class names of zoo could be checked; label 0 is 'ant' there and"
            " 'LABEL_0' here",
        ),
        (
            ANIMALS,
            ("ant", "bee", "kitten", "dog", "moose"),
            "classifier: only 3 of the 5 class names of zoo could be checked; label 2 is 'cat' there and"
            " 'kitten' here",
        ),
    ],
)
def test_names_that_do_not_tell_are_said(classes: Sequence[str], names: Sequence[str], message: str) -> None:
    data = animal_data(classes, ANIMALS)
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as told:
        assert dp.match_classes(data, animal_classifier(ANIMALS, names)) is data
    assert len(told) == 1


def test_labels_without_names() -> None:
    data = animal_data(tuple("01234"), ANIMALS, named=False)
    assert dp.match_classes(data, animal_classifier(BACKWARDS, BACKWARDS)) is data
    shifted = animal_classifier([None, *ANIMALS], ("background", *ANIMALS))
    message = f"classifier: its class 0 is 'background', but zoo has images with the label 0{HINT}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dp.match_classes(data, shifted)
    with pytest.raises(
        ValueError, match=r"^classifier: its classes are not in the order of zoo: '1' is label 1"
    ):
        dp.match_classes(data, animal_classifier(ANIMALS, ("0", "10", "1", "2", "3")))
    few = animal_data(tuple("0123"), ANIMALS[:4], named=False)
    with pytest.warns(UserWarning, match="^zoo has 4 classes, the classifier 5: it chooses among all"):
        assert dp.match_classes(few, animal_classifier(ANIMALS, ANIMALS)) is few
    with pytest.raises(
        ValueError, match=r"^classifier: has 3 classes \(one of them for the background\?\), but"
    ):
        dp.match_classes(few, animal_classifier(ANIMALS[:3]))


# ---- class maps


@pytest.mark.parametrize(
    ("classes", "animals", "own", "names", "entries", "labels"),
    [
        # Another order; names, indices, or both.
        (ANIMALS, ANIMALS, BACKWARDS, BACKWARDS, {name: name for name in ANIMALS}, [4, 3, 2, 1, 0]),
        (ANIMALS, ANIMALS, BACKWARDS, None, {name: 4 - i for i, name in enumerate(ANIMALS)}, [4, 3, 2, 1, 0]),
        (("cat", "dog"), ("cat", "dog"), BACKWARDS, BACKWARDS, {"cat": 2, "dog": "dog"}, [2, 1]),
        # A subset, other words, WordNet's ids, and a background class.
        (("cat", "elk"), ("cat", "elk"), ANIMALS, ANIMALS, {"cat": "cat", "elk": "elk"}, [2, 4]),
        (("Katze", "Hund"), ("cat", "dog"), ANIMALS, ANIMALS, {"Katze": "cat", "Hund": "dog"}, [2, 3]),
        (WORDNET, ANIMALS, ANIMALS, ANIMALS, dict(zip(WORDNET, ANIMALS, strict=True)), [0, 1, 2, 3, 4]),
        (
            ANIMALS,
            ANIMALS,
            (None, *ANIMALS),
            None,
            {n: i + 1 for i, n in enumerate(ANIMALS)},
            [1, 2, 3, 4, 5],
        ),
        # Several classes of the data for one of the model's; entries that the data does not need.
        (
            ("tabby", "tiger cat"),
            ("cat", "cat"),
            ANIMALS,
            ANIMALS,
            {"tabby": "cat", "tiger cat": "cat"},
            [2, 2],
        ),
        # Names as loosely as elsewhere, the exact one first.
        (("tiger_cat", "dog"), ("cat", "dog"), ANIMALS, ANIMALS, {"Tiger Cat": "CAT", "dog": "dog"}, [2, 3]),
        (("Dog", "dog"), ("dog", "elk"), ANIMALS, ANIMALS, {"dog": 4, "Dog": 3}, [3, 4]),
        (("d",), ("dog",), ANIMALS, ("ant", "bee", "cat", "hound, dog", "elk"), {"d": "dog"}, [3]),
        # Numbers in quotes are names.
        (("7", "12"), ("bee", "ant"), ANIMALS, ("12", "7", "3", "4", "5"), {"7": "7", "12": "12"}, [1, 0]),
        (("7", "12"), ("bee", "ant"), ANIMALS, ANIMALS, {"7": 1, "12": 0}, [1, 0]),
    ],
)
def test_class_maps(
    classes: Sequence[str],
    animals: Sequence[str],
    own: Sequence[str | None],
    names: Sequence[str] | None,
    entries: Mapping[str, str | int],
    labels: list[int],
) -> None:
    classifier = animal_classifier(own, names)
    data = animal_data(classes, animals)
    mapped = dp.match_classes(data, classifier, entries)
    assert mapped.labels.tolist() == labels
    assert accuracy(classifier, mapped) == 1.0
    assert data.labels.tolist() == list(range(len(classes)))
    if names is None:
        assert [mapped.class_names[label] for label in labels] == list(classes)
    else:
        assert mapped.class_names == tuple(names)


@pytest.mark.parametrize(
    ("entries", "names", "message"),
    [
        (
            {"ant": 0, "bee": 1, "cta": 2},
            ANIMALS,
            "expected one entry for the class 'cat' of zoo, got none",
        ),
        ({"ant": 0, "bee": 5, "cat": 2}, ANIMALS, "'bee': expected an index of 0 to 4, got 5"),
        (
            {"ant": 0, "bee": "bees", "cat": 2},
            ANIMALS,
            "'bee': the classifier has no class 'bees'; did you mean 'bee'?",
        ),
        (
            {"ant": 0, "bee": "1", "cat": 2},
            None,
            "'bee': the classifier does not name its classes; expected an index, got '1'",
        ),
        (
            {"ant": 0, "bee": "crane", "cat": 2},
            ("ant", "crane", "cat", "crane", "elk"),
            "'bee': 'crane' is the name of the classifier's classes 1 and 3; expected an index",
        ),
        (
            {"ant": 2, "bee": 1, "cat": 0},
            ("0", "1", "10", "2", "3"),
            "'ant': 2 is an index of the classifier and the name of its class 3; expected a name,"
            " a number in quotes",
        ),
        (
            {"ant": 0, "CAT": 2, "Cat": 3, "bee": 1},
            ANIMALS,
            "expected one entry for the class 'cat' of zoo, got 'CAT', 'Cat'",
        ),
        # What no class of the data needs.
        (
            {"ant": 0, "bee": 1, "cat": 2, "gnu": "no class"},
            ANIMALS,
            "'gnu': the classifier has no class 'no class'",
        ),
        ({"ant": 0, "bee": 1, "cat": 2, "gnu": 5}, ANIMALS, "'gnu': expected an index of 0 to 4, got 5"),
    ],
)
def test_class_maps_that_do_not_fit(
    entries: Mapping[str, str | int], names: Sequence[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^class_map: {re.escape(message)}$"):
        dp.match_classes(animal_data(ANIMALS[:3], ANIMALS[:3]), animal_classifier(ANIMALS, names), entries)


def test_entries_for_no_class_of_the_data_are_told() -> None:
    entries: dict[str, str | int] = {"elk": 4, "fox": 0, "gnu": "ant"}
    with pytest.warns(UserWarning, match="^class_map: it has entries for 'fox', 'gnu', no class of zoo$"):
        mapped = dp.match_classes(
            animal_data(("elk",), ("elk",)), animal_classifier(ANIMALS, ANIMALS), entries
        )
    assert mapped.labels.tolist() == [4]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("map.yaml", "cat: 3\ndog: hound\n", {"cat": 3, "dog": "hound"}),
        ("map.yaml", "cat: '3'\n7: 1\n007: 2\n", {"cat": "3", "7": 1, "007": 2}),
        # What YAML would make true, null, a date, a number or octal.
        (
            "map.yaml",
            "no: on\nnull: 1e3\n2020-01-01: 08\n~: y\n",
            {"no": "on", "null": "1e3", "2020-01-01": "08", "~": "y"},
        ),
        ("map.yaml", "hot dog: tench, Tinca tinca  # a comment\n", {"hot dog": "tench, Tinca tinca"}),
        ("map.json", '{\n\t"cat": 3,\n\t"caf\\u00e9": "3"\n}', {"cat": 3, "caf\u00e9": "3"}),
        ("map", "\ufeffcat: 3", {"cat": 3}),
        (None, '{"cat": 3, "dog": "hound"}', {"cat": 3, "dog": "hound"}),
    ],
)
def test_files_of_class_maps(name: str | None, text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    given: str | Path = text
    if name is not None:
        given = tmp_path / name
        given.write_text(text, encoding="utf-8")
        assert read_class_map(str(given)) == expected
    found = read_class_map(given)
    assert found == expected
    assert {key: type(value) for key, value in found.items()} == {k: type(v) for k, v in expected.items()}
    assert read_class_map(found) == expected


WANTED = "expected the data's classes, each with the name or index of the model's class, got "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"{WANTED}None"),
        ("- cat\n- dog\n", f"{WANTED}['cat', 'dog']"),
        ("{}", f"{WANTED}{{}}"),
        ("cat: [1, 2]", f"{WANTED}[1, 2] for 'cat'"),
        ("cat: {dog: 1}", f"{WANTED}{{'dog': 1}} for 'cat'"),
        ('{"cat": 1.5}', f"{WANTED}1.5 for 'cat'"),
        ('{"cat": true}', f"{WANTED}True for 'cat'"),
        ('{"cat": -1}', f"{WANTED}-1 for 'cat'"),
        ('{"cat": null}', f"{WANTED}None for 'cat'"),
        ("cat: 1\ncat: 2\n", "cannot read "),
        ('{"cat": 1, "cat": 2}', "cannot read "),
        ('{"cat": 1', "cannot read "),
        ("cat: 'dog", "cannot read "),
        ("[" * 3_000, "cannot read "),
        ('{"a":' * 3_000, "cannot read "),
        ("? [1, 2]\n: 3\n", "cannot read "),
    ],
)
def test_files_that_are_no_class_maps(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"^class_map: {re.escape(message)}") as caught:
        read_class_map(tmp_path / "map.yaml")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["missing", "folder", "large", "binary"])
def test_class_maps_that_are_no_texts(kind: str, tmp_path: Path) -> None:
    path, message = tmp_path / "map.yaml", "no such file: "
    if kind == "folder":
        path.mkdir()
        message = f"{path} is a folder, expected a file$"
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2**25)
        message = ".* is longer than 4,194,304 bytes, the most for such a file"
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00\x01")
        message = ".* is no UTF-8 text: "
    with pytest.raises(ValueError, match=f"^class_map: {message}"):
        read_class_map(path)


def test_names_of_two_networks() -> None:
    check_names("guide", ANIMALS, ANIMALS, "the classifier")
    with pytest.raises(
        ValueError, match=r"^guide: its classes are not in the order of the classifier: 'ant' is"
    ):
        check_names("guide", BACKWARDS, ANIMALS, "the classifier")


# What test data calls its classes, of which animals it has images, and the labels that training data gives.
@pytest.mark.parametrize(
    ("classes", "animals", "labels"),
    [
        (ANIMALS, ANIMALS, [0, 1, 2, 3, 4]),
        (BACKWARDS, BACKWARDS, [4, 3, 2, 1, 0]),
        (("bee", "cat"), ("bee", "cat"), [1, 2]),
        (("Bee", "ELK "), ("bee", "elk"), [1, 4]),
        # No image has the last one.
        (("dog", "wolf"), ("dog",), [3]),
    ],
)
def test_test_data_is_matched_by_name(
    classes: Sequence[str], animals: Sequence[str], labels: list[int]
) -> None:
    data = match_names(animal_data(classes, animals), animal_data(ANIMALS, ANIMALS), "test_data")
    assert (data.labels.tolist(), data.class_names, data.classes_named) == (labels, ANIMALS, True)
    assert accuracy(animal_classifier(ANIMALS), data) == 1.0


@pytest.mark.parametrize(
    ("classes", "named", "others", "others_named", "message"),
    [
        (("bee", "wolf"), True, ANIMALS, True, "'wolf'; expected one of that name in zoo, got none"),
        (("bee", "fox"), True, ("bee", "fox", "Fox "), True, ""),
        (("bee", "FOX"), True, ("bee", "fox", "Fox "), True, "expected one of that name in zoo, got several"),
        (tuple("012"), False, ("ant", "bee"), True, "has 3 classes, but zoo has 2"),
        (("ant", "bee"), True, tuple("012"), False, "has 2 classes, but zoo has 3"),
        (tuple("01"), False, tuple("012"), False, ""),
        (tuple("01"), False, tuple("012"), True, ""),
        (tuple("012"), False, tuple("01"), False, "has 3 classes, but zoo has 2"),
    ],
)  # fmt: skip
def test_test_data_of_other_classes(
    classes: Sequence[str], named: bool, others: Sequence[str], others_named: bool, message: str
) -> None:
    images = ANIMALS[: len(classes)], ANIMALS[: len(others)]
    data, other = animal_data(classes, images[0], named), animal_data(others, images[1], others_named)
    if message:
        with pytest.raises(ValueError, match=f"^test_data: .*{re.escape(message)}"):
            match_names(data, other, "test_data")
    else:
        assert match_names(data, other, "test_data").labels.tolist() == [*range(len(classes))]


@pytest.mark.parametrize("named", [False, True])
def test_test_data_that_only_one_side_names_is_said(named: bool) -> None:
    words, numbers = animal_data(("ant", "bee"), ANIMALS[:2]), animal_data("01", ANIMALS[:2], named=False)
    data, other = (words, numbers) if named else (numbers, words)
    with pytest.warns(
        UserWarning, match=r"^test_data: none of the 2 class names of zoo could be checked; label"
    ):
        assert match_names(data, other, "test_data") is data
