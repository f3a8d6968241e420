"""Farms of real processes; each test module that asks for `rigs` gets its own, on the session's S3."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.catalog import Catalog
from farm.client import Farm
from farm.servers import environment
from farm.settings import Settings
from tests.conftest import Valkey
from tests.e2e.rig import Rig, rig_of


@pytest.fixture(scope="session")
def models_dir(family: Catalog) -> Path:
    """Where the tiny family lies."""
    return family.models_dir


@pytest.fixture(scope="module")
def rig(models_dir: Path, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A farm for the module: a Valkey and a bucket of its own, short leases, no workers yet."""
    folder = tmp_path_factory.mktemp("rig")
    valkey = Valkey(folder / "valkey").start()
    bucket = f"rig-{secrets.token_hex(6)}"
    times = {"lease_s": 3.0, "deaf_s": 3.0, "drain_grace_s": 5.0}
    settings = Settings.load(redis_url=valkey.url, data=folder, models=models_dir, bucket=bucket, **s3, **times)
    env = {**environment(settings), "FARM_MODELS": str(models_dir), "OMP_NUM_THREADS": "1"}
    env |= {f"FARM_{name.upper()}": str(value) for name, value in times.items()}
    farm = Farm(settings)
    farm.store.ensure_bucket()
    with rig_of(farm, env, folder, valkey) as rig:
        yield rig
    valkey.kill()
