"""The pictures that the demo family was made from, drawn from sets that `make` has fetched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workers.demo.sprites import Sprites, fetch


@pytest.fixture(scope="session")
def sets() -> Path:
    """Where the sets of emoji lie."""
    folder = Path(sys.prefix) / "sprites"
    fetch(folder)
    return folder


@pytest.fixture(scope="session")
def sprites(sets: Path) -> Sprites:
    return Sprites(sets)
