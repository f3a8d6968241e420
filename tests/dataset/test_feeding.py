"""Do samples become jobs, and ended jobs whole shards, whatever is stopped in between?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder
from tests.dataset.farms import SLOTS, FeederProcess, done, jobs_left, planned, shards, table
from tests.e2e.conftest import models_dir, rig
from tests.e2e.rig import Rig, until

__all__ = ["models_dir", "rig"]


@pytest.fixture(scope="module", autouse=True)
def workers(rig: Rig) -> None:
    rig.supervise(SLOTS)
    rig.ready(len(SLOTS))


@pytest.fixture
def feeder(rig: Rig) -> Iterator[FeederProcess]:
    process = FeederProcess(rig)
    yield process
    process.stop()


def test_a_file_becomes_shards_and_nothing_stays_in_the_ledger(rig: Rig, feeder: FeederProcess, tmp_path: Path) -> None:
    # Given a planned file
    desk = Datasets(rig.farm)
    found = planned(rig, table(tmp_path / "fruit.csv", 10), "fruit")
    assert (found.plan.samples, found.plan.shards, found.fresh) == (20, 3, True)
    assert desk.status("fruit").state == "planned"
    # When it is fed
    desk.start("fruit")
    feeder.start()
    done(rig, "fruit")
    # Then all samples are there
    status = desk.status("fruit")
    assert (status.done, status.failed, status.shards_done) == (20, 0, 3)
    folder = Folder(rig.farm.store, "fruit")
    assert [folder.stats(number)["successes"] for number in folder.numbers()] == [8, 8, 4]
    assert until(lambda: not jobs_left(rig), 20, "an empty ledger")
    # And made again, from nothing, they are the same bytes
    before = shards(rig, "fruit")
    until(lambda: not desk.status("fruit").fed, 20, "the feeder to leave it")
    desk.rm("fruit")
    assert not folder.names("")
    planned(rig, table(tmp_path / "fruit.csv", 10), "fruit")
    desk.start("fruit")
    done(rig, "fruit")
    assert shards(rig, "fruit") == before
