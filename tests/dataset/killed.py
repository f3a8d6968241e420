"""Does a dataset that is killed on the way come out as one that nobody touched?

The same file is made twice, each on a farm of its own: once in peace, and once while workers, the feeder and Valkey are
killed, each alone and all at once, and Valkey loses all that it knows, as often as asked, at even shares of the work.
`python -m tests.dataset.killed` does so with 2,000 rows × 2 seeds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from farm import models
from farm.catalog import Catalog
from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder
from farm.dataset.tars import entries
from farm.errors import FarmError
from farm.settings import Settings
from tests.conftest import serving_s3
from tests.dataset.farms import SLOTS, FeederProcess, done, jobs_left, planned, shards, table
from tests.e2e.rig import Rig, fresh_rig, until

NAME = "killed"
PATIENT = {"crash_attempts": 20}
"""What is killed so often charges samples that did nothing: by chance one may be in hand more than twice."""


class Killer:
    """Kills parts of one farm and starts them again."""

    def __init__(self, rig: Rig, feeder: FeederProcess, seed: int) -> None:
        self._rig, self._feeder = rig, feeder
        self._chance = random.Random(seed)
        self.counted = 0
        """Commits that the ledger has forgotten."""

    def worker(self) -> None:
        """One child, as the kernel's out-of-memory killer would; its supervisor starts another."""
        found = [one.pid for one in self._rig.workers()]
        if found:
            _end(self._chance.choice(found))

    def feeder(self) -> None:
        """The process that feeds."""
        self._feeder.kill()
        self._feeder.start()

    def valkey(self) -> None:
        """The ledger's server, which comes back on its own files."""
        self._rig.valkey.kill()
        self._rig.valkey.start()

    def forget(self) -> None:
        """All that the ledger knows, as when its disk is lost; nothing else is touched."""
        self.counted = self.commits()
        self._rig.farm.ledger._server.run("FLUSHALL")

    def commits(self) -> int:
        """How many stages were committed."""
        try:
            return self.counted + self._rig.farm.ledger.stats().get("commits", 0)
        except FarmError:
            return 0  # it is being killed

    def everything(self) -> None:
        """All of it within a moment, supervisors too, as when a machine loses its power."""
        pids = [one.pid for one in self._rig.workers()]
        self._rig.valkey.kill()
        for supervisor in self._rig.supervisors:
            supervisor.kill()
        for pid in pids:
            _end(pid)
        self._feeder.kill()
        self._rig.valkey.start()
        self._rig.supervise(SLOTS)
        self._feeder.start()


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def made(
    rig: Rig, folder: Path, rows: int, shard_samples: int, kills: int, seed: int, timeout_s: float
) -> dict[str, str]:
    """The SHA-256 of each shard of `rows` rows × 2 seeds that were made under `kills` kills, checked for gaps.

    `seed` decides which of the workers are killed; what they are doing then, nobody can repeat.
    """
    if kills:
        size = f"--rows {rows} --shard-samples {shard_samples} --kills {kills}"
        print(f"again: python -m tests.dataset.killed {size} --seed {seed}", flush=True)
    rig.supervise(SLOTS)
    rig.ready(len(SLOTS))
    desk, feeder = Datasets(rig.farm), FeederProcess(rig)
    total = planned(rig, table(folder / "rows.csv", rows), NAME, shard_samples=shard_samples).plan.samples
    desk.start(NAME)
    feeder.start()
    killer = Killer(rig, feeder, seed)
    acts: list[Callable[[], None]] = [killer.worker, killer.feeder, killer.valkey, killer.everything, killer.forget]
    try:
        for number in range(kills):
            # Both stages of each sample are committed once; what is committed grows until then.
            wanted = 2 * total * (number + 1) // (kills + 1)
            until(lambda: killer.commits() >= wanted, timeout_s, f"{wanted} commits before kill {number}")  # noqa: B023
            act = acts[number % len(acts)]
            print(f"{time.strftime('%X')} kill {number}: {act.__name__} at {killer.commits()} commits", flush=True)
            act()
        done(rig, NAME, timeout_s)
        until(lambda: not jobs_left(rig), 30, "an empty ledger")
    finally:
        feeder.stop()
    _check(rig, total)
    return shards(rig, NAME)


def _check(rig: Rig, total: int) -> None:
    """Every sample is there, once, and nothing is damaged."""
    folder, keys = Folder(rig.farm.store, NAME), list[str]()
    for number in folder.numbers():
        with folder.tar(number) as tar, entries(tar) as found:
            keys += [entry.key for entry in found]
    size = folder.plan().spec.shard_samples
    assert keys == [f"{place // size:05d}{place % size:04d}" for place in range(total)]
    report = Datasets(rig.farm).verify(NAME)
    assert (report.samples, report.failed, report.problems, report.absent) == (total, 0, (), ())


@contextmanager
def two_rigs(folder: Path) -> Iterator[tuple[Rig, Rig]]:
    """Two farms that share nothing but the tiny family and an S3 server."""
    from workers.demo import tiny

    weights = folder / "models"
    weights.mkdir()
    catalog = Catalog.load(Settings(models=weights))
    tiny.build("tiny", weights / "tiny")
    models.record(catalog, catalog.checkpoints["tiny"])
    with ExitStack() as open_:
        s3 = open_.enter_context(serving_s3(folder / "s3"))
        yield (
            open_.enter_context(fresh_rig(folder / "quiet", weights, s3, **PATIENT)),
            open_.enter_context(fresh_rig(folder / "hit", weights, s3, **PATIENT)),
        )


def main() -> int:
    """Both farms, one after the other, in a folder of their own."""
    parser = argparse.ArgumentParser(prog="tests.dataset.killed", description=main.__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="rows of the file; two samples each")
    parser.add_argument("--kills", type=int, default=10, help="kills on the way")
    parser.add_argument("--shard-samples", type=int, default=500, help="samples of a shard")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="decides which workers are killed")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="killed-") as name, two_rigs(Path(name)) as (quiet, hit):
        began = time.monotonic()
        peace = made(quiet, Path(name), given.rows, given.shard_samples, 0, given.seed, 7200)
        quiet.stop()
        middle = time.monotonic()
        after = made(hit, Path(name), given.rows, given.shard_samples, given.kills, given.seed, 7200)
        hit.stop()
        ended = time.monotonic()
        same = peace == after
        told = "byte for byte the same" if same else "NOT THE SAME"
        print(f"{2 * given.rows} samples in {len(peace) // 2} shards: {told}")
        print(f"in peace {middle - began:.0f} s, under {given.kills} kills {ended - middle:.0f} s")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
