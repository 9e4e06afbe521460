"""Pages of a thousand images: small enough to send, pictures as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from diffproof.attacks.evaluation import Evaluated
from diffproof.attacks.result import AttackResult
from diffproof.cli.main import run
from diffproof.runs.attack.store import AttackedImage, AttackStore
from diffproof.runs.settings import AttackSettings
from diffproof.runs.store import Identity
from helpers.pages import read_page

IMAGES = 1_000
SETTINGS = AttackSettings(
    seed=0,
    data="elsewhere.npz",
    classifier="digits",
    defense="none",
    threat="linf",
    budget="8/255",
    draws=1,
    majority_of=1,
)


def fill(store: AttackStore) -> None:
    """Images as smooth as photographs, each purified with some noise left, and attacked to every corner."""
    source = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, 8, 8, generator=source)
    clean = interpolate(coarse, 32, mode="bicubic").clamp(0, 1)
    signs = torch.randint(2, clean.shape, generator=source) * 2 - 1
    adversarial = (clean + signs * 8 / 255).clamp(0, 1)
    purified = (clean + 0.03 * torch.randn(clean.shape, generator=source)).clamp(0, 1)
    made = []
    for index in range(IMAGES):
        result = AttackResult(index, 0, adversarial[index], 8 / 255, None, 10, 10, 1, 0.0)
        evaluated = Evaluated(index, 0, (0,), result, (index % 2,), False)
        made.append(
            AttackedImage(evaluated, clean[index], purified[index], None, f"{index:064x}", "0.1.0", 1.0)
        )
    store.save_results(made)


@pytest.mark.slow
def test_a_page_of_a_thousand_attacked_images_can_be_sent(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "page.html"
    AttackStore.make(folder, SETTINGS, Identity("a" * 64, "b" * 64, IMAGES, {}, tuple(range(IMAGES))), fill)
    assert run(["report", str(folder), "--html", str(out)]) == 0
    page = read_page(out.read_text(encoding="utf-8"))
    pictures = [image.attributes["src"] or "" for image in page.all("img")]
    assert len(pictures) == 4 * IMAGES
    assert out.stat().st_size < 15_000_000
    assert out.stat().st_size - sum(map(len, pictures)) < 1_500_000
    # None was shrunk for that.
    assert "shrunk" not in page.one("section", id="images").text
    states = [entry.attributes["data-state"] for entry in page.one("section", id="images").all("li")]
    assert states.count("flipped") == states.count("right") == IMAGES // 2
