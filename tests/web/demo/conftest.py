"""The demo's data and networks, the packaged ones."""

from __future__ import annotations

import pytest
import torch

from diffproof.web.demo.actions import Actions
from diffproof.web.demo.studio import Networks, Studio


@pytest.fixture(scope="session")
def studio() -> Studio:
    return Studio.load("digits", ["digits"], ["digits"], device=torch.device("cpu"))


@pytest.fixture(scope="session")
def networks() -> Networks:
    return Networks("digits", "digits")


@pytest.fixture(scope="session")
def actions(studio: Studio) -> Actions:
    return Actions(studio)
