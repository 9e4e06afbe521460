"""Which class of a data set is which class of a network: by name, by place, or as a class map says."""

from __future__ import annotations

import copy
import difflib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffproof.checks import check_instance, shown
from diffproof.data.images import ImageData
from diffproof.data.labels import plain_name
from diffproof.errors import ArgumentError
from diffproof.files import expanded, read_text
from diffproof.texts import once, plain
from diffproof.wording import shortened

# The class names of packaged networks, whose files do not hold them.
PACKAGED = {
    "digits": tuple("0123456789"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
# A class map of the 21,843 classes of the whole ImageNet takes less than a MiB.
_LARGEST = 2**22
# Entries of one, wherever it comes from: writing more as YAML takes minutes.
_MOST = 2**16
# The YAML reader takes time that grows with the square of these, and a class map needs none.
_BRACKETS = 500
_HINT = "; a class map (--class-map FILE) says which is which"

ClassMap = Mapping[str, str | int]


def match_classes(
    data: ImageData,
    model: Any,
    class_map: str | Path | Mapping[str, str | int] | None = None,
    *,
    owner: str = "classifier",
) -> ImageData:
    """The data with labels that are the model's classes.

    Names are compared without regard to case, underscores, hyphens and spaces, and to which of several names
    (with commas between, as ImageNet's) is given. A warning says what could not be checked by name.

    Args:
        data: images with labels.
        model: a classifier, or a class-conditional denoiser; what counts are its `num_classes`, and its
            `class_names` where it has them.
        class_map: which class of the data is which of the model's, see `read_class_map`; None takes the
            data's labels as they are, if nothing speaks against it.
        owner: what the model is called in messages.

    Raises:
        ValueError: without a class map, another number of classes, a name of both sides that stands for
            another label, numbered classes whose order is not known, a background class that shifts the
            labels; or a class map that is wrong or incomplete.
    """
    check_instance("data", data, ImageData, "a diffproof.ImageData")
    if not isinstance(getattr(model, "num_classes", None), int):
        raise ArgumentError("model", f"expected a network with num_classes, got {shown(model)}")
    count, names = int(model.num_classes), getattr(model, "class_names", None)
    if class_map is not None:
        return _mapped(data, read_class_map(class_map), owner, count, names)
    known = len(data.class_names)
    if count != known and (data.classes_named or count < known):
        shifted = " (one of them for the background?)" if abs(count - known) == 1 else ""
        raise ArgumentError(owner, f"has {count} classes{shifted}, but {data.name} has {known}{_HINT}")
    numbered = names is not None and all(name.isdecimal() for name in names)
    if data.classes_named or numbered:
        check_names(owner, names, data.class_names, data.name)
    elif names is not None and plain_name(names[0]) == "background" and bool((data.labels == 0).any()):
        raise ArgumentError(
            owner, f"its class 0 is {names[0]!r}, but {data.name} has images with the label 0{_HINT}"
        )
    if count > known:
        warnings.warn(
            f"{data.name} has {known} classes, the {owner} {count}: it chooses among all of its own, and the"
            " data's labels are taken for the first of them",
            stacklevel=2,
        )
    return data


def match_names(data: ImageData, other: ImageData, argument: str) -> ImageData:
    """The data with labels that are another data set's classes of the same names.

    Names are compared as by `match_classes`. Labels without names are taken as they are; a warning says
    where only one side names its classes.

    Args:
        data: images with labels.
        other: the data that gives the labels their meaning.
        argument: what `data` was given for, for messages.

    Raises:
        ValueError: a label or a named class that the other data does not have.
    """
    count, known = len(data.class_names), len(other.class_names)
    if not (data.classes_named and other.classes_named):
        if count > known or (data.classes_named and count != known):
            raise ArgumentError(argument, f"has {count} classes, but {other.name} has {known}")
        if data.classes_named or other.classes_named:
            check_names(argument, data.class_names, other.class_names[:count], other.name)
        return data
    places: dict[str, list[int]] = {}
    for label, name in enumerate(other.class_names):
        for one in _names(name):
            places.setdefault(one, []).append(label)
    label_of = torch.full((count,), -1)
    for label in data.labels.unique().tolist():
        name = data.class_names[label]
        exact = [place for place, one in enumerate(other.class_names) if one == name]
        found = exact or sorted({place for one in _names(name) for place in places.get(one, ())})
        if len(found) != 1:
            got = "several" if found else "none"
            raise ArgumentError(
                argument,
                f"has the class {_short(name)}; expected one of that name in {other.name}, got {got}",
            )
        label_of[label] = found[0]
    return _relabelled(data, label_of, other.class_names, named=True)


def _relabelled(data: ImageData, label_of: Tensor, names: Sequence[str], *, named: bool) -> ImageData:
    mapped = copy.copy(data)
    mapped.labels, mapped.class_names, mapped.classes_named = label_of[data.labels], tuple(names), named
    return mapped


def check_names(owner: str, names: Sequence[str] | None, others: Sequence[str], source: str) -> None:
    """Raise unless names can be those of the same classes in the same order; warn of what names do not tell.

    Args:
        owner: what has the names, such as "classifier".
        names: its class names by label; None where it does not name them.
        others: those that they are compared with.
        source: what has those.

    Raises:
        ValueError: a name of both stands for another label; or numbers in an order that is not known.
    """
    if names is None:
        _check_numbers(owner, others, source)
        return
    ours, theirs = [_names(name) for name in names], [_names(name) for name in others]
    agreed = {label for label, (mine, other) in enumerate(zip(ours, theirs, strict=False)) if mine & other}
    places: dict[str, list[int]] = {}
    for label, mine in enumerate(ours):
        for name in mine if label not in agreed else ():
            places.setdefault(name, []).append(label)
    rest = [label for label in range(len(others)) if label not in agreed]
    elsewhere = [label for label in rest if theirs[label] & places.keys()]
    if elsewhere:
        label = elsewhere[0]
        (place, *_) = sorted(place for name in theirs[label] for place in places.get(name, ()))
        raise ArgumentError(
            owner,
            f"its classes are not in the order of {source}: {others[label]!r} is label {label} there, but its"
            f" label {place} ({len(elsewhere)} of {len(others)} classes so){_HINT}",
        )
    if rest:
        label = rest[0]
        many = "none" if not agreed else f"only {len(agreed)}"
        warnings.warn(
            f"{owner}: {many} of the {len(others)} class names of {source} could be checked; label {label} is"
            f" {others[label]!r} there and {names[label]!r} here",
            stacklevel=3,
        )


def _check_numbers(owner: str, others: Sequence[str], source: str) -> None:
    """Raise where classes that are numbers may have been ordered as numbers or as texts."""
    if not all(name.isdecimal() for name in others) or sorted(others) == sorted(others, key=int):
        return
    wrong = [label for label, name in enumerate(others) if int(name) != label]
    if wrong:
        raise ArgumentError(
            owner,
            f"does not name its classes, and those of {source} are numbers, of which {others[wrong[0]]!r} has"
            f" the label {wrong[0]}: their order is not known{_HINT}",
        )


def _names(name: str) -> set[str]:
    """A name as it is and each of those that stand in it with commas between, plain."""
    return {plain_name(part) for part in (name, *name.split(","))} - {""}


# ---- class maps


def read_class_map(given: str | Path | Mapping[Any, Any]) -> dict[str, str | int]:
    """A class map: for each class of the data, the name or the index of the model's class.

    Args:
        given: a YAML or JSON file, its content as a text that begins with "{", or a mapping. A number is an
            index; in quotes, a name.

    Raises:
        ValueError: unreadable, or no such mapping.
    """
    loaded = given if isinstance(given, Mapping) else _load(str(given))
    wanted = "expected the data's classes, each with the name or index of the model's class"
    if not isinstance(loaded, Mapping) or not loaded:
        raise ArgumentError("class_map", f"{wanted}, got {_short(loaded)}")
    if len(loaded) > _MOST:
        raise ArgumentError("class_map", f"expected at most {_MOST:,} classes, got {len(loaded):,}")
    for name, value in loaded.items():
        index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not isinstance(name, str | int) or not (index or isinstance(value, str)):
            raise ArgumentError("class_map", f"{wanted}, got {_short(value)} for {_short(name)}")
    return {str(name): value for name, value in loaded.items()}


def _load(given: str) -> Any:
    text = given
    try:
        if not given.lstrip().startswith("{"):
            text = read_text("class_map", expanded(given), _LARGEST).removeprefix("\ufeff")
        return json.loads(text, object_pairs_hook=once) if text.lstrip().startswith("{") else load_yaml(text)
    except ArgumentError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ArgumentError("class_map", f"cannot read {_short(given)}: {reason[:200]}") from None


def load_yaml(text: str) -> Any:
    """YAML in which only whole numbers are more than texts: a class may be called no, or 1e3.

    Raises:
        ValueError: no YAML.
    """
    import yaml

    if text.count("[") + text.count("{") > _BRACKETS:
        raise ValueError("too many brackets")

    class Loader(plain(yaml.BaseLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            return super().construct_mapping(node, deep=True)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:int", re.compile(r"(0|[1-9]\d{0,17})$"), list("0123456789")
    )
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _mapped(
    data: ImageData, entries: ClassMap, owner: str, count: int, names: Sequence[str] | None
) -> ImageData:
    """The data with the labels that a class map gives its classes."""
    plain: dict[str, list[str]] = {}
    # An entry that points nowhere is a mistake, also if no class of this data needs it.
    indices = {name: _index(value, name, owner, count, names) for name, value in entries.items()}
    for name in entries:
        plain.setdefault(plain_name(name), []).append(name)
    label_of = torch.full((len(data.class_names),), -1)
    shown = list(names) if names is not None else [str(label) for label in range(count)]
    for label in data.labels.unique().tolist():
        name = data.class_names[label]
        alike = [name] if name in entries else plain.get(plain_name(name), [])
        if len(alike) != 1:
            got = ", ".join(map(_short, alike[:3])) or "none"
            raise ArgumentError(
                "class_map", f"expected one entry for the class {_short(name)} of {data.name}, got {got}"
            )
        index = label_of[label] = indices[alike[0]]
        if names is None:
            shown[index] = name
    known = {*data.class_names, *map(plain_name, data.class_names)}
    unknown = [name for name in entries if known.isdisjoint((name, plain_name(name)))]
    if unknown:
        warnings.warn(
            f"class_map: it has entries for {shortened(map(repr, unknown), 3)}, no class of {data.name}",
            stacklevel=3,
        )
    return _relabelled(data, label_of, shown, named=names is not None)


def _index(value: str | int, name: str, owner: str, count: int, names: Sequence[str] | None) -> int:
    """The class of a model that an entry of a class map means."""
    if isinstance(value, int):
        if value >= count:
            raise ArgumentError(
                "class_map", f"{_short(name)}: expected an index of 0 to {count - 1}, got {value}"
            )
        same = [label for label, other in enumerate(names or ()) if other == str(value) and label != value]
        if same:
            raise ArgumentError(
                "class_map",
                f"{_short(name)}: {value} is an index of the {owner} and the name of its class {same[0]};"
                " expected a name, a number in quotes",
            )
        return value
    if names is None:
        raise ArgumentError(
            "class_map",
            f"{_short(name)}: the {owner} does not name its classes; expected an index, got {value!r}",
        )
    for alike in (
        lambda other: other == value,
        lambda other: plain_name(other) == plain_name(value),
        lambda other: plain_name(value) in _names(other),
    ):
        found = [label for label, other in enumerate(names) if alike(other)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ArgumentError(
                "class_map",
                f"{_short(name)}: {value!r} is the name of the {owner}'s classes {found[0]} and {found[1]};"
                " expected an index",
            )
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ArgumentError("class_map", f"{_short(name)}: the {owner} has no class {_short(value)}{hint}")
