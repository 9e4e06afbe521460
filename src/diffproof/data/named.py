"""Data sets by name or path."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from diffproof.checks import MOST_PIXELS, check_at_least, check_instance, check_source, unknown_name
from diffproof.data.digits import load_digits
from diffproof.data.images import ImageData
from diffproof.data.indices import choose
from diffproof.data.parquet import check_start
from diffproof.errors import ArgumentError
from diffproof.files import expanded, named, warn_of_path


class HubName(NamedTuple):
    """A short name for a Hub data set."""

    id: str
    # The split that has labels and takes the part of "test".
    test: str = "test"
    # Images of several sizes are brought to this one.
    image_size: int | None = None


SHIPPED: dict[str, Callable[[str], ImageData]] = {"digits": load_digits}
HUB_NAMES: dict[str, HubName] = {
    "cifar10": HubName("uoft-cs/cifar10"),
    "cifar100": HubName("uoft-cs/cifar100"),
    # The official test split has no labels; the field reports on the validation images at 256×256.
    "imagenet": HubName("ILSVRC/imagenet-1k", test="validation", image_size=256),
}


@named("data")
def load_data(
    source: str,
    split: str | None = None,
    *,
    indices: str | None = None,
    per_class: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    default_split: str = "test",
    labelled: bool = True,
    skip_unreadable: bool = False,
) -> ImageData:
    """A data set by name or path; images are decoded when they are asked for.

    Args:
        source: "digits", "cifar10", "cifar100", "imagenet", a Hub id ("owner/name"), a folder of class
            folders, a parquet file, or an .npz file. A name without a slash wins over a path, which is
            said; a path wins over a Hub id.
        split: its name; None takes `default_split`, or the only one there is.
        indices: which images, as "0:10000:20" or "3,5,7"; None for all.
        per_class: take at most so many of each class of these, ≥ 1, chosen at random; None for all.
        limit: take at most so many of what is left, ≥ 1, chosen at random; None for all.
        seed: of what is chosen at random.
        image_size: bring images to this size: the shorter side by antialiased bicubic interpolation, then
            the central square. None leaves them as they are (imagenet: 256).
        default_split: "test", or "train" for images to train on.
        labelled: a folder must have class folders; otherwise its pictures may come without labels.
        skip_unreadable: leave out images that cannot be read, which are all decoded for that.

    Raises:
        ValueError: unknown name or split, unreadable or missing data, bad indices.
    """
    check_source("data", source)
    if split is not None and not check_instance("split", split, str, "a text").strip():
        raise ArgumentError("split", f"expected its name, got {split!r}")
    if image_size is not None:
        check_at_least("image_size", image_size, 1, MOST_PIXELS)
    data = _open(source, split, default_split, image_size, labelled)
    if (indices, per_class, limit) == (None, None, None) and not skip_unreadable:
        return data
    chosen = choose(data.labels, indices=indices, per_class=per_class, limit=limit, seed=seed)
    if skip_unreadable:
        data, chosen = data.skipping(chosen)
    return data.select(chosen)


def is_name(source: str) -> bool:
    """Whether a source is the name of a data set, whatever files there are of that name."""
    return source in SHIPPED or source in HUB_NAMES


def _open(source: str, split: str | None, default: str, image_size: int | None, labelled: bool) -> ImageData:
    path = expanded(source)
    if source in SHIPPED or path.suffix.lower() == ".npz":
        if image_size is not None:
            raise ArgumentError("image_size", f"{source} is read as it is, expected none, got {image_size}")
        if source in SHIPPED:
            warn_of_path("data", source, "the packaged data set")
            return SHIPPED[source](split or default)
        from diffproof.data.npz import load_npz

        return load_npz(path, split, default)
    from diffproof.data.hub import load_hub

    if source in HUB_NAMES:
        named = HUB_NAMES[source]
        warn_of_path("data", source, f"the Hub's {named.id}")
        wanted = split or (named.test if default == "test" else default)
        return load_hub(named.id, wanted, default, image_size or named.image_size)
    if os.path.lexists(path) and not path.is_dir():
        check_start(path)
    file = path.suffix == ".parquet" or source.startswith((".", "/", "~"))
    if path.is_dir():
        from diffproof.data.folders import load_folder

        data = load_folder(path, split, default, image_size, labelled=labelled)
        return load_hub(str(path), split, default, image_size) if data is None else data
    if path.exists() or (source.count("/") == 1 and all(source.split("/")) and not file):
        return load_hub(str(path), split, default, image_size)
    if "/" in source or file:
        raise ArgumentError("data", f"no such file or folder: {source}")
    raise unknown_name("data", source, [*SHIPPED, *HUB_NAMES])
