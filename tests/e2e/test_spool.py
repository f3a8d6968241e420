"""Results outlive an outage of the store or the ledger: nothing runs twice, and the spool is empty in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from farm import models
from farm.client import Farm
from farm.handle import JobHandle
from farm.stage import kinds
from tests.e2e.proxy import Proxy
from tests.e2e.rig import Rig, install, until
from workers.lease import LEAVE_S

STAGES = '''
"""Two stages without torch: one that paints noise, once its gate is open, and one that hands it on."""

import random
import threading
from pathlib import Path
from typing import ClassVar, Literal

from PIL import Image

from farm.stage import Medium, Stage


class Paint(Stage):
    """Give a picture of noise."""

    kind: Literal["paint"] = "paint"
    gives: ClassVar = frozenset({Medium.IMAGE})
    needs_torch: ClassVar = False
    gate: str = ""

    def load(self, checkpoint, device):
        return None

    def run(self, pipe, batch, report):
        while self.gate and not Path(self.gate).exists():
            threading.Event().wait(0.02)
            report.step(1, 2)
        size = batch.size
        return [
            Image.frombytes("RGB", tuple(size), random.Random(seed).randbytes(3 * size.width * size.height))
            for seed in batch.generators
        ]


class Copy(Paint):
    """Give the picture as it is."""

    kind: Literal["copy"] = "copy"
    takes: ClassVar = frozenset({Medium.IMAGE})

    def run(self, pipe, batch, report):
        return list(batch.given)
'''
RESULT_BYTES = 16_000
"""What one spooled result has, roughly: 64 × 64 pixels of noise, which do not compress, and the claim."""


class Site:
    """Two workers, for the two kinds, that reach the store through `proxy`; their spool lies in `data`."""

    def __init__(self, rig: Rig, farm: Farm, data: Path, **env: str) -> None:
        self.rig, self.farm, self.data = rig, farm, data
        self.proxy = Proxy(int(rig.env["AWS_ENDPOINT_URL_S3"].rpartition(":")[2]))
        through = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.proxy.port}", "FARM_DATA": str(data)}
        # What a try may take is shorter than a lease, and a lease is shorter than the outages.
        self.env = {**rig.plugin, **through, "FARM_LIMIT_UPLOAD_S": "2", **env}
        self.supervisor = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        process = self.rig.supervise(["paint.none", "copy.none"], f"site{len(self.rig.supervisors)}", **self.env)
        self.rig.ready(2)
        return process

    def spooled(self) -> list[Path]:
        """The results that wait on the disk."""
        return sorted((self.data / "spool").glob("*/*.result"))

    def files(self) -> list[Path]:
        """Whatever lies in the spool."""
        return [path for path in (self.data / "spool").rglob("*") if path.is_file()]

    def state(self) -> str:
        """What the painting worker says of itself."""
        return next((one.state for one in self.rig.workers() if "paint.none" in one.queues), "")

    def stop(self) -> None:
        self.proxy.mend()
        self.supervisor.terminate()
        assert self.supervisor.wait(60) == 0
        self.proxy.stop()


@pytest.fixture(scope="module")
def farm(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A client that knows the two stages; no workers yet."""
    added = install(tmp_path_factory.mktemp("paint"), STAGES, ["paint", "copy"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(added["PYTHONPATH"])
        kinds.cache_clear()
        rig.plugin = {**added, "FARM_BACKOFF_S": "0.1"}
        client = Farm(rig.farm.settings.model_copy(update={"catalog": Path(added["FARM_CATALOG"])}))
        models.pull(client.catalog, "none")
        yield client
        client.close()
    kinds.cache_clear()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The site's data folder, on a disk of 64 KiB."""
    if os.geteuid():
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "data"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


Start = Callable[..., Site]


@pytest.fixture
def start(rig: Rig, farm: Farm, tmp_path: Path) -> Iterator[Start]:
    """Starts a site; it is stopped in the end, its spool empty."""
    sites: list[Site] = []

    def start(**env: str) -> Site:
        sites.append(Site(rig, farm, tmp_path / "data", **env))
        return sites[-1]

    yield start
    for site in sites:
        site.stop()
        assert not site.files()


def jobs_of(farm: Farm, count: int, **paint: Any) -> list[JobHandle]:
    """Jobs of two stages that nobody asked for before."""
    stages: list[Mapping[str, Any]] = [
        {"kind": "paint", "checkpoint": "none", **paint},
        {"kind": "copy", "checkpoint": "none"},
    ]
    return [farm.render(chain={"stages": stages}, seed=random.getrandbits(40)) for _ in range(count)]


def outlast(farm: Farm) -> None:
    """Waits for two leases."""
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 2 * farm.settings.lease_s)


def assert_ran_once(farm: Farm, job: JobHandle) -> None:
    """The job is done, and each of its stages was claimed and committed once, without a charge."""
    assert job.wait(60).images
    record = job.record
    assert [(stage.attempt, stage.crash, stage.lapses) for stage in record.stages] == [(1, 0, 0)] * 2, record
    kinds = [event.type for event in farm.ledger.events(job.id)]
    assert (kinds.count("claimed"), kinds.count("committed")) == (2, 2), kinds


@pytest.mark.parametrize("fault", ["cut", "hole"])
def test_results_wait_for_the_store_and_claiming_stops_at_the_cap(farm: Farm, start: Start, fault: str) -> None:
    # Given a spool for three results, or two
    cap = 3 * RESULT_BYTES
    site = start(FARM_SPOOL_BYTES=str(cap))
    # When the store is away, refusing or silent, for longer than a lease
    getattr(site.proxy, fault)()
    jobs = jobs_of(farm, 6)
    until(lambda: site.state() == "spool_full", what="a full spool")
    outlast(farm)
    # Then what was finished waits, and nothing more was claimed
    sizes = [path.stat().st_size for path in site.spooled()]
    assert len(sizes) >= 2
    assert cap - max(sizes) < sum(sizes) <= cap
    assert sum(job.record.stages[0].attempt for job in jobs) == len(sizes)
    # When it is back
    site.proxy.mend()
    # Then each stage of each job has run once
    for job in jobs:
        assert_ran_once(farm, job)
    until(lambda: site.state() == "idle")


def test_a_result_outlives_the_child_that_made_it(rig: Rig, farm: Farm, start: Start) -> None:
    # Given results that wait
    site = start()
    site.proxy.cut()
    jobs = jobs_of(farm, 2)
    until(lambda: len(site.spooled()) == 2)
    # When the child is killed, and its next life waits longer than a lease
    boot = {one.boot for one in rig.workers()}
    os.kill(rig.pid("paint.none"), signal.SIGKILL)
    until(lambda: len({one.boot for one in rig.workers()} & boot) == 1 and len(rig.workers()) == 2)
    outlast(farm)
    site.proxy.mend()
    # Then nothing runs again, and nobody is charged
    for job in jobs:
        assert_ran_once(farm, job)


def test_a_result_outlives_the_ledgers_server(rig: Rig, farm: Farm, start: Start, tmp_path: Path) -> None:
    # Given a stage that is about to end
    site, gate = start(), tmp_path / "gate"
    (job,) = jobs_of(farm, 1, gate=str(gate))
    until(lambda: job.record.stages[0].step == 1)
    waiting = ThreadPoolExecutor(1).submit(job.wait, 120)
    # When the ledger is away, for longer than a lease, while it ends
    rig.valkey.kill()
    gate.touch()
    until(lambda: len(site.spooled()) == 1)
    outlast(farm)
    rig.valkey.start()
    # Then, and who waits for it hears of it
    assert_ran_once(farm, job)
    assert waiting.result(60).state == "done"


def test_a_full_disk_keeps_the_result_in_memory_and_heals(farm: Farm, disk: Path, start: Start) -> None:
    # Given a disk without room, and a store that is away
    site, ballast = start(), disk / "ballast"
    ballast.write_bytes(bytes(60 << 10))
    site.proxy.cut()
    jobs = jobs_of(farm, 2)
    # When a stage ends, and waits for longer than a lease
    until(lambda: site.state() == "disk_full", what="a full disk")
    outlast(farm)
    # Then there is no part of a file, the stage is still held, and no other is begun
    assert site.files() == []
    assert sum(job.record.stages[0].attempt for job in jobs) == 1
    # When there is room again, the results go to the disk, and then to the store
    ballast.unlink()
    until(lambda: len(site.spooled()) == 2)
    site.proxy.mend()
    for job in jobs:
        assert_ran_once(farm, job)
    # When the disk is full again, and the store comes back first
    ballast.write_bytes(bytes(60 << 10))
    site.proxy.cut()
    (job,) = jobs_of(farm, 1)
    until(lambda: site.state() == "disk_full", what="a full disk")
    site.proxy.mend()
    # Then it gets the result from memory
    assert_ran_once(farm, job)


def test_a_cancelled_job_leaves_the_spool(farm: Farm, start: Start) -> None:
    # Given
    site = start()
    site.proxy.cut()
    kept, dropped = jobs_of(farm, 2)
    until(lambda: len(site.spooled()) == 2)
    # When one of two is cancelled
    dropped.cancel()
    # Then its result goes though the store is away, and the other's stays
    until(lambda: len(site.spooled()) == 1)
    site.proxy.mend()
    assert_ran_once(farm, kept)
    assert dropped.state == "cancelled"


def test_a_drain_gives_back_what_cannot_be_uploaded(farm: Farm, start: Start) -> None:
    # Given a grace that leaves a worker `LEAVE_S` for giving back
    site = start(FARM_DRAIN_GRACE_S=str(2 * LEAVE_S))
    site.proxy.cut()
    (job,) = jobs_of(farm, 1)
    until(lambda: len(site.spooled()) == 1)
    # When
    site.supervisor.terminate()
    assert site.supervisor.wait(60) == 0
    # Then it is another worker's, uncharged
    assert site.files() == []
    assert job.record.stages[0].state == "queued"
    site.proxy.mend()
    site.supervisor = site.start()
    assert job.wait(60).images
    stage = job.record.stages[0]
    assert (stage.attempt, stage.crash, stage.lapses) == (2, 0, 0)
