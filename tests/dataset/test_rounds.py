"""Does a feeder end with whole shards, and with true figures, whoever comes between its rounds?"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from farm.client import Farm
from farm.dataset.collecting import about
from farm.dataset.desk import Datasets
from farm.dataset.feeding import Feeder
from farm.dataset.folder import Folder
from farm.dataset.publishing import Shard
from farm.dataset.seats import Seats
from farm.dataset.sources import source_of
from farm.errors import Failure
from farm.image import to_png
from farm.label import label
from farm.records import OPEN, Commit, JobRecord
from tests.dataset.made import MADE, drawn
from tests.dataset.test_planning import farm, stocked  # noqa: F401
from tests.e2e.rig import until

QUEUE = "text2img.tiny"
CHAIN: dict[str, Any] = {"stages": [{"kind": "text2img", "checkpoint": "tiny", "width": 64, "height": 64, "steps": 2}]}
ROWS = ("apple", "pear", "plum", "lemon", "fig")
"""In shards of two; what is drawn of them are pictures, but for the pears."""


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as found:
        yield found


@pytest.fixture
def folder(stocked: Farm, tmp_path: Path, request: pytest.FixtureRequest) -> Folder:  # noqa: F811
    """A dataset of three shards that is to run, of a name of its own: metrics are one process's."""
    rows, name = tmp_path / "rows.csv", hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    rows.write_text("\n".join(["prompt", *(f"a {one}" for one in ROWS)]))
    Datasets(stocked).plan(source_of(rows), name, CHAIN, shard_samples=2)
    found = Folder(stocked.store, name)
    found.steer(state="running")
    return found


def draw(stocked: Farm, *, pears: bool = False) -> None:  # noqa: F811
    """Does what workers would; without `pears` each of these fails."""
    while claims := stocked.ledger.claim([QUEUE], "w1", "b1")[0]:
        (claim,) = claims
        record = stocked.ledger.job(claim.waiters[0])
        recipes = json.loads(record.spec)["recipes"]
        if "pear" in record.spec and not pears:
            stocked.ledger.fail(claims, Failure.DETERMINISTIC, "nan_output", "NaN")
            continue
        document = {"v": 1, "farm": MADE["farm"], "recipes": recipes, "made": [MADE]}
        data = to_png(drawn(recipes[0]["seed"]), document, label(recipes))
        blob = stocked.store.put_blob(data, "image/png")
        told = {"v": 1, "medium": "image", "size": [64, 64], "made": [MADE], "blob": blob, "bytes": len(data)}
        stocked.ledger.commit([Commit(claim, json.dumps(told))])


def feed(stocked: Farm, feeder: Feeder, **given: bool) -> None:  # noqa: F811
    """Rounds of a feeder until it is over, its samples drawn meanwhile."""

    def step() -> bool:
        feeder.tick()
        draw(stocked, **given)
        return feeder.is_over

    until(step, 30, "a feeder to end")


def jobs(stocked: Farm) -> list[JobRecord]:  # noqa: F811
    """Those that are open."""
    return [one for one in stocked.ledger.jobs(limit=100) if one.state in OPEN]


def feeder_of(stocked: Farm, folder: Folder, pool: Executor) -> Feeder:  # noqa: F811
    return Feeder(stocked, folder.name, 100, pool)


def shards(folder: Folder) -> dict[str, bytes | None]:
    return {name: folder.read(name) for name in folder.names("shards/") if name.endswith((".tar", ".parquet"))}


def counted(folder: Folder, name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"farm_dataset_{name}_total", {"dataset": folder.name, **labels}) or 0.0


def test_a_shard_that_is_lost_meanwhile_is_made_again(
    stocked: Farm,  # noqa: F811
    folder: Folder,
    pool: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a feeder
    desk, feeder = Datasets(stocked), feeder_of(stocked, folder, pool)
    real, before = feeder._publisher.publish, list[dict[str, bytes | None]]()

    def publish(shard: Shard) -> dict[str, Any] | None:
        stats = real(shard)
        # When a shard is taken for lost, and the dataset started, before it hears that the last one is there
        if shard.number == 2:
            before.append(shards(folder))
            desk.lose(folder.name, 1)
            assert desk.start(folder.name).state == "running"
        return stats

    monkeypatch.setattr(feeder._publisher, "publish", publish)
    feed(stocked, feeder, pears=True)
    # Then it is there
    assert (folder.numbers(), folder.control().state) == ([0, 1, 2], "done")
    assert [shards(folder)] == before
    assert Datasets(stocked).verify(folder.name).problems == ()


def test_what_was_written_again_since_it_was_judged_stays(
    stocked: Farm,  # noqa: F811
    folder: Folder,
    pool: Executor,
) -> None:
    # Given two shards that are found damaged, of which one is then written by a retry
    desk, feeder = Datasets(stocked), feeder_of(stocked, folder, pool)
    feed(stocked, feeder)
    for number in (0, 1):
        folder.write(f"shards/{number:05d}.parquet", b"cut")
    report = desk.verify(folder.name)
    assert sorted(report.judged) == [0, 1]
    Datasets(stocked).retry(folder.name)
    feed(stocked, feeder_of(stocked, folder, pool), pears=True)
    # When, Then
    assert desk.mend(folder.name, report) == [1]
    assert folder.numbers() == [0, 2]


def test_a_priority_that_is_given_while_nobody_feeds_is_that_of_all_jobs(
    stocked: Farm,  # noqa: F811
    folder: Folder,
    pool: Executor,
) -> None:
    # Given jobs whose feeder is gone
    feeder_of(stocked, folder, pool).tick()
    assert {one.priority for one in jobs(stocked)} == {50}
    # When
    Datasets(stocked).prioritise(folder.name, 80)
    feeder_of(stocked, folder, pool).tick()
    # Then
    assert [one.priority for one in jobs(stocked)] == [80] * len(ROWS)


def test_a_quarantine_is_lifted_for_a_retry_whose_feeder_died_before_it_could(
    stocked: Farm,  # noqa: F811
    folder: Folder,
    pool: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a sample that crashed its workers
    feeder = feeder_of(stocked, folder, pool)
    feeder.tick()
    record = next(one for one in jobs(stocked) if "pear" in one.spec)

    def crash() -> bool:
        for claim in stocked.ledger.claim([QUEUE], "w2", "b2")[0]:
            if record.job not in claim.waiters:
                stocked.ledger.cancel(claim.waiters[0])
            else:
                stocked.ledger.fail([claim], Failure.CRASH, "crashed", "signal 9")
        return stocked.ledger.job(record.job).state == "quarantined"

    until(crash, 30)
    for one in jobs(stocked):
        stocked.ledger.cancel(one.job)
    feed(stocked, feeder)
    assert {one["state"] for one in Datasets(stocked).failures(folder.name)} == {"cancelled", "quarantined"}
    # When a feeder tries it again and dies before it has lifted anything, and another goes on
    Datasets(stocked).retry(folder.name)
    with monkeypatch.context() as patched:
        patched.setattr(Feeder, "_lift", lambda *_: None)
        feeder_of(stocked, folder, pool).tick()
    feed(stocked, feeder_of(stocked, folder, pool), pears=True)
    # Then
    assert Datasets(stocked).failures(folder.name) == []


@pytest.mark.parametrize("frozen", ["before it looks", "before it writes what says that it is whole"])
def test_who_was_frozen_writes_over_no_later_try(
    stocked: Farm,  # noqa: F811
    folder: Folder,
    pool: Executor,
    monkeypatch: pytest.MonkeyPatch,
    frozen: str,
) -> None:
    # Given a feeder that freezes while it publishes the first shard
    slow = feeder_of(stocked, folder, pool)
    slow.tick()
    draw(stocked)
    held, go = threading.Event(), threading.Event()
    real = Folder.publish if frozen == "before it looks" else Folder.write_first

    def freeze(self: Folder, *given: Any) -> bool:
        if (self is slow.folder) and given[0] in (0, "shards/00000_stats.json"):
            held.set()
            assert go.wait(30)
        return real(self, *given)

    monkeypatch.setattr(Folder, real.__name__, freeze)
    slow.tick()
    assert held.wait(30)
    # When another one publishes it, and then tries again what failed
    with ThreadPoolExecutor(1) as other:
        feed(stocked, feeder_of(stocked, folder, other))
        Datasets(stocked).retry(folder.name)
        feed(stocked, feeder_of(stocked, folder, other), pears=True)
    before = folder.stats(0)
    go.set()
    pool.shutdown()
    # Then what says that it is whole is of that try
    assert folder.stats(0) == before
    assert (before["round"], before["failed"]) == (1, 0)
    assert Datasets(stocked).verify(folder.name).problems == ()


def test_a_retry_keeps_no_damaged_picture(
    stocked: Farm,  # noqa: F811
    folder: Folder,
    pool: Executor,
) -> None:
    # Given a shard of which one sample failed, and the other's picture is damaged since
    desk = Datasets(stocked)
    feed(stocked, feeder_of(stocked, folder, pool))
    data = bytearray(folder.read("shards/00000.tar") or b"")
    data[1000] ^= 4
    folder.write("shards/00000.tar", bytes(data))
    # When what failed is tried again
    Datasets(stocked).retry(folder.name)
    feed(stocked, feeder_of(stocked, folder, pool), pears=True)
    # Then both were made
    assert (folder.stats(0)["successes"], folder.stats(0)["failed"]) == (2, 0)
    assert desk.verify(folder.name).problems == ()


def test_a_shard_that_is_lost_while_its_failures_are_tried_again_is_made_whole(
    stocked: Farm,  # noqa: F811
    folder: Folder,
    pool: Executor,
) -> None:
    # Given a retry that is under way
    feed(stocked, feeder_of(stocked, folder, pool))
    Datasets(stocked).retry(folder.name)
    feeder = feeder_of(stocked, folder, pool)
    feeder.tick()
    # When
    Datasets(stocked).lose(folder.name, 0)
    feed(stocked, feeder, pears=True)
    # Then
    assert (folder.stats(0)["successes"], folder.stats(0)["count"]) == (2, 2)
    assert Datasets(stocked).verify(folder.name).problems == ()


def test_a_retry_is_counted_by_what_is_new(
    stocked: Farm,  # noqa: F811
    folder: Folder,
    pool: Executor,
) -> None:
    # Given
    feed(stocked, feeder_of(stocked, folder, pool))

    def figures() -> list[float]:
        samples = [counted(folder, "samples", state=state) for state in ("done", "failed")]
        return [*samples, counted(folder, "shards"), counted(folder, "bytes")]

    assert figures() == [4, 1, 3, sum(len(data or b"") for data in shards(folder).values())]
    # When it is tried again, and then is as it should be
    Datasets(stocked).retry(folder.name)
    feed(stocked, feeder_of(stocked, folder, pool), pears=True)
    # Then
    assert figures() == [5, 1, 3, sum(len(data or b"") for data in shards(folder).values())]


def test_what_a_retry_has_before_it_is_told(
    stocked: Farm,  # noqa: F811
    folder: Folder,
    pool: Executor,
) -> None:
    # Given a retry of one sample of five, at one sample in two seconds
    desk, seats = Datasets(stocked), Seats(stocked.settings)
    feed(stocked, feeder_of(stocked, folder, pool))
    Datasets(stocked).retry(folder.name)
    feeder = feeder_of(stocked, folder, pool)
    feeder.tick()
    told = json.loads(folder.read("progress.json") or b"")
    folder.write("progress.json", json.dumps({**told, "rate": 0.5, "updated": time.time()}).encode())
    assert seats.take(folder.name)
    # Then
    assert (desk.status(folder.name).failed, desk.status(folder.name).eta_s) == (1, 2.0)
    seats.close()


def test_what_a_card_says_of_speed_leaves_pauses_and_retries_out(
    stocked: Farm,  # noqa: F811
    folder: Folder,
) -> None:
    # Given two shards side by side, one after a long pause, and one of which only the retry is known
    for number, (began, ended, round) in enumerate([(10, 20, 0), (15, 25, 0), (1000, 1005, 0), (9000, 9001, 1)]):
        told = {"shard": number, "successes": 10, "round": round, "began": began, "ended": ended}
        folder.write(f"shards/{number:05d}_stats.json", json.dumps(told).encode())
    # Then
    assert list(about(folder).throughput.values()) == ["1.50"]
    # And of retries alone nothing is said
    folder.delete([f"shards/{number:05d}_stats.json" for number in range(3)])
    assert about(folder).throughput == {}
