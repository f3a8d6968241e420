"""Farms of real processes; each test module that asks for `rigs` gets its own, on the session's S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.catalog import Catalog
from tests.e2e.rig import Rig, fresh_rig


@pytest.fixture(scope="session")
def models_dir(family: Catalog) -> Path:
    """Where the tiny family lies."""
    return family.models_dir


@pytest.fixture(scope="module")
def rig(models_dir: Path, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A farm for the module: a Valkey and a bucket of its own, short leases, no workers yet."""
    with fresh_rig(tmp_path_factory.mktemp("rig"), models_dir, s3) as rig:
        yield rig
