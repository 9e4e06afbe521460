"""Where the tests find what is not theirs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
GOLDEN = ROOT / "tests" / "golden"
# Data and models beside the repository, which not everybody has.
SHARED = ROOT.parent / "shared"
