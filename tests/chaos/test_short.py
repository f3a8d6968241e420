"""Five minutes of everything at once: the farm loses nothing, and a plain Celery chain does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.__main__ import chaos


@pytest.mark.timeout(900)
def test_the_farm_loses_nothing_where_plain_celery_does(tmp_path: Path) -> None:
    # The seed is printed with the command that repeats it.
    assert chaos(random.randrange(10**6), "short", "both", tmp_path) == 0
