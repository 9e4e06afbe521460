"""Pictures of a page: as they are while they fit, shrunk for all of them to fit."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffproof.web.report import thumbnails
from diffproof.web.report.thumbnails import Album


def decoded(uri: str) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as opened:
        return np.asarray(opened)


def test_pictures_keep_every_pixel_while_they_fit() -> None:
    album, source = Album(), torch.Generator().manual_seed(0)
    shapes = (1, 8, 8), (3, 5, 7), (3, 32, 32)
    pictures = [torch.rand(shape, generator=source) for shape in shapes]
    assert [album.add(picture) for picture in pictures] == [0, 1, 2]
    uris, side = album.uris()
    assert side is None
    for uri, picture in zip(uris, pictures, strict=True):
        expected = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
        assert (decoded(uri) == expected).all()


def test_no_pictures() -> None:
    assert Album().uris() == ([], None)


def test_differences_have_few_levels() -> None:
    album = Album()
    album.add(torch.linspace(0, 1, 256).reshape(1, 16, 16), coarse=True)
    found = decoded(album.uris()[0][0])
    assert len(np.unique(found)) == 32
    assert np.abs(found.flatten() - np.arange(256.0)).max() <= 255 / 62 + 0.5


def test_large_pictures_are_means_of_areas() -> None:
    album = Album()
    picture = torch.zeros(1, 512, 256)
    picture[:, ::2] = 1.0
    album.add(picture)
    uris, side = album.uris()
    assert side == 256
    assert decoded(uris[0]).shape == (256, 128)
    assert (decoded(uris[0]) == 128).all()


@pytest.mark.slow
def test_many_pictures_are_shrunk_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thumbnails._MOST == 12_500_000
    # A tenth of it, for a tenth of the pictures.
    monkeypatch.setattr(thumbnails, "_MOST", thumbnails._MOST / 10)
    album, source = Album(), torch.Generator().manual_seed(0)
    # Noise, which nothing compresses: 60 of 64×64 take 1 MB as bytes, a third more as texts.
    for _ in range(120):
        album.add(torch.rand(3, 64, 64, generator=source))
    uris, side = album.uris()
    assert side == 48
    assert 800_000 < sum(map(len, uris)) < 1_350_000
