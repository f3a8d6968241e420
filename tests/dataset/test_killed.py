"""Ten kills on the way leave no gap, no duplicate and not another byte."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from farm.catalog import Catalog
from tests.dataset.killed import PATIENT, made
from tests.e2e.rig import fresh_rig


@pytest.mark.timeout(900)
def test_a_dataset_that_was_killed_ten_times_is_the_one_that_nobody_touched(
    family: Catalog, s3: dict[str, str], tmp_path: Path
) -> None:
    shards, seed = [], random.randrange(10**6)
    for name, kills in (("quiet", 0), ("hit", 10)):
        with fresh_rig(tmp_path / name, family.models_dir, s3, **PATIENT) as rig:
            shards.append(made(rig, tmp_path, rows=60, shard_samples=25, kills=kills, seed=seed, timeout_s=300))
    assert len(shards[0]) == 10, "five shards, a tar and a table each"
    assert shards[0] == shards[1]
