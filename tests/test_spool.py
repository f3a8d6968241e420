"""Finished results on a disk: whole or not there, owned by one living child, and gone when the farm has them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from farm.ledger import Ledger
from farm.records import Claim, StageEntry, Submission
from farm.settings import Settings
from farm.store import Store
from tests.conftest import Valkey, own_bucket
from tests.e2e.rig import ROOT, until
from workers.lease import Drain
from workers.result import Result, commit, kept, pieces, read, upload, write
from workers.spool import Full, Spool

JOB = "01a1fe52-648c-778e-b8ef-f19bc2ff{:04x}"


@pytest.fixture
def settings(valkey: Valkey, s3: dict[str, str], tmp_path: Path) -> Iterator[Settings]:
    """A farm with short leases, its store in reach."""
    found = Settings.load(redis_url=valkey.url, data=tmp_path / "data", lease_s=3, bucket="spool", **s3)
    with own_bucket(Store(found)):
        yield found


Make = Callable[..., Spool]


@pytest.fixture
def make(settings: Settings, ledger: Ledger) -> Iterator[Make]:
    """Makes a child's spool, whose store is away if told so."""
    made: list[Spool] = []

    def make(owner: str, *, away: bool = False, **more: Any) -> Spool:
        own = settings.model_copy(update=more)
        reach = own.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"}) if away else own
        made.append(Spool(own, owner, ledger, Store(reach), Drain(0), lambda queues: None))
        return made[-1]

    yield make
    for spool in made:
        spool.close()


def claim_of(ledger: Ledger, number: int = 0) -> Claim:
    """The claim of a new job of one stage, by a worker that holds nothing else."""
    stage = StageEntry(f"x{number}", "q", json.dumps({"recipes": [{"kind": "paint"}]}))
    ledger.submit([Submission(JOB.format(number), (stage,), "{}", "", "h")])
    (found,), _ = ledger.claim(["q"], f"w{number}", "boot")
    return found


def state_of(ledger: Ledger, number: int = 0) -> str:
    """Where the job's stage is, after a round of the reconciler."""
    ledger.reap("test")
    return ledger.job(JOB.format(number)).stages[0].state


def result_of(claim: Claim, size: int = 1000) -> Result:
    data = random.Random(claim.token).randbytes(size)
    output = {"blob": hashlib.sha256(data).hexdigest(), "bytes": size, "unknown": [1, "ü\ud800"]}
    return Result(claim, output, "image/png", data)


def files(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.data / "spool").rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------------- files


def test_a_result_is_read_as_it_was_written(ledger: Ledger, tmp_path: Path) -> None:
    result, path = result_of(claim_of(ledger)), tmp_path / "w.1:a.result"
    write(path, pieces(result))
    assert read(path) == result
    assert list(tmp_path.glob("w.*")) == [path]


def with_picture(result: Result) -> Result:
    """The same with a picture that is kept beside it."""
    return kept(result, "preview", Image.new("RGB", (256, 128)), b"a picture" * 20)


def test_a_kept_picture_is_read_with_it(ledger: Ledger, store: Store, tmp_path: Path) -> None:
    # Given
    result, path = with_picture(result_of(claim_of(ledger))), tmp_path / "w.1:a.result"
    # When
    write(path, pieces(result))
    found = read(path)
    # Then it goes to the store with the result, under the name that the output gives
    assert found == result
    upload(store, found)
    told = found.output["kept"]
    assert (told["keep"], told["bytes"], told["size"]) == ("preview", 180, [256, 128])
    assert store.get_blob(told["blob"], 1000) == b"a picture" * 20
    assert store.get_blob(found.output["blob"], 1000) == result.data


@pytest.mark.parametrize("beside", [False, True])
def test_every_damage_is_seen(ledger: Ledger, tmp_path: Path, beside: bool) -> None:
    # Given
    result, path, rng = result_of(claim_of(ledger)), tmp_path / "damaged", random.Random(1)
    whole = b"".join(pieces(with_picture(result) if beside else result))
    for _ in range(500):
        # When one bit is another, or the end is missing, wherever
        damaged = bytearray(whole)
        if rng.random() < 0.7:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(whole)) :]
        path.write_bytes(damaged)
        # Then
        with pytest.raises(ValueError):
            read(path)


WRITER = """
import json, sys, time
from pathlib import Path
from farm.ledger import Ledger
from farm.log import log_to_stderr
from farm.records import Claim
from farm.settings import Settings
from farm.store import Store
from workers.lease import Drain
from workers.result import Result
from workers.spool import Spool

log_to_stderr("error")
given = json.loads(sys.argv[1])
lists = {name: tuple(given["claim"][name]) for name in ("waiters", "finishing")}
result = Result(Claim(**{**given["claim"], **lists}), given["output"], "image/png", bytes.fromhex(given["data"]))
settings = Settings.load(redis_url=given["redis_url"], data=given["data_folder"], lease_s=3, **given["s3"])
spool = Spool(settings, "dead", Ledger(settings), Store(settings), Drain(60), lambda queues: None)
if given["dies_before_the_rename"]:
    Path.rename = lambda self, other: (print("written", flush=True), time.sleep(600))
spool.start()
spool.put([result])
print("spooled", flush=True)
time.sleep(600)
"""


def writer(settings: Settings, result: Result, dies_before_the_rename: bool = False) -> subprocess.Popen[str]:
    """Another child, which cannot reach the store and has put `result` into its spool, or all but its name."""
    keys = {name: getattr(settings, name).get_secret_value() for name in ("s3_access_key", "s3_secret_key")}
    given = {
        "claim": asdict(result.claim),
        "output": result.output,
        "data": result.data.hex(),
        "redis_url": settings.redis_url.get_secret_value(),
        "data_folder": str(settings.data),
        "s3": {**keys, "s3_endpoint": "http://127.0.0.1:1"},
        "dies_before_the_rename": dies_before_the_rename,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, json.dumps(given)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == ("written" if dies_before_the_rename else "spooled")
    return process


def test_a_child_that_dies_before_the_rename_leaves_nothing_to_adopt(
    ledger: Ledger, settings: Settings, make: Make
) -> None:
    # Given
    dead = writer(settings, result_of(claim_of(ledger)), dies_before_the_rename=True)
    assert {name.rpartition(".")[2] for name in files(settings)} == {"lock", "tmp"}
    # When
    dead.kill()
    dead.wait()
    spool = make("heir")
    spool.start()
    # Then nothing is taken for a result, and nothing stays
    until(lambda: files(settings) == [])
    assert ledger.stats().get("commits", 0) == 0


def test_results_of_the_dead_are_adopted_and_those_of_the_living_are_not(
    ledger: Ledger, settings: Settings, make: Make
) -> None:
    # Given a living child that cannot deliver
    claim = claim_of(ledger)
    other = writer(settings, result_of(claim))
    name = f"dead.{claim.token}.result"
    # When a second one looks around for longer than a lease, nothing is taken, and the lease is kept
    heir = make("heir")
    heir.start()
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 2 * settings.lease_s)
    assert name in files(settings)
    assert state_of(ledger) == "running"
    assert heir.tokens() == [claim.token]
    # When the first one dies
    other.kill()
    other.wait()
    # Then the second delivers
    until(lambda: state_of(ledger) == "committed")
    until(lambda: files(settings) == [])
    record = ledger.job(JOB.format(0))
    assert (record.state, record.stages[0].attempt, record.stages[0].lapses) == ("done", 1, 0)


def test_a_torn_result_is_passed_over(ledger: Ledger, settings: Settings, make: Make) -> None:
    # Given what a dead child left, of which one half is damaged
    folder = settings.data / "spool" / settings.namespace
    folder.mkdir(parents=True)
    results = [result_of(claim_of(ledger, number)) for number in range(4)]
    for number, result in enumerate(results):
        whole = b"".join(pieces(result))
        torn = {0: b"", 1: whole[:100], 2: whole[:-1]}.get(number, whole)
        (folder / f"dead.{result.claim.token}.result").write_bytes(torn)
    # When
    make("heir").start()
    # Then the whole one is delivered, and of the damaged ones nothing stays
    until(lambda: state_of(ledger, 3) == "committed")
    until(lambda: files(settings) == [])
    assert ledger.stats()["commits"] == 1


# ------------------------------------------------------------------------------------------------------- room


def test_the_cap_holds_and_stops_the_claiming_only_while_the_store_is_away(
    ledger: Ledger, settings: Settings, make: Make
) -> None:
    # Given room for two
    results = [result_of(claim_of(ledger, number)) for number in range(3)]
    spool = make("w", away=True, spool_bytes=2 * len(b"".join(pieces(results[0]))) + 100)
    assert spool.state == ""
    spool.put(results[:1])
    assert spool.state == ""
    spool.put(results[1:2])
    # Then
    assert spool.state == "spool_full"
    before = files(settings)
    with pytest.raises(Full):
        spool.put(results[2:])
    assert files(settings) == before


@pytest.fixture
def disk(settings: Settings) -> Iterator[Path]:
    """The data folder, on a disk of 64 KiB."""
    if os.geteuid():
        pytest.skip("mounting a small disk needs root")
    settings.data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", settings.data], check=True)
    yield settings.data
    subprocess.run(["umount", settings.data], check=True)


def test_a_disk_that_refuses_holds_no_part_of_a_file(
    ledger: Ledger, settings: Settings, disk: Path, make: Make
) -> None:
    spool, results = make("w", away=True), [result_of(claim_of(ledger, number), 17 << 10) for number in range(3)]
    ballast = disk / "ballast"

    def refused() -> None:
        before = files(settings)
        with pytest.raises(Full):
            spool.put(results)
        assert spool.state == "disk_full"
        assert files(settings) == before

    # When it is full; when the spool would take more than its share; when the second file does not fit; when it is
    # read-only
    ballast.write_bytes(bytes(64 << 10))
    refused()
    ballast.unlink()
    refused()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    del results[2:]
    results[1] = result_of(claim_of(ledger, 4), 20 << 10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 10, hard))
    try:
        refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    refused()
    # Then no part of a file is there; and when it can be, the result is taken
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    spool.put(results[:1])
    assert spool.state == ""
    assert len(files(settings)) == 2


# ------------------------------------------------------------------------------------------------------- an entry's end


def test_a_result_is_delivered_with_its_readable_copy(ledger: Ledger, settings: Settings, make: Make) -> None:
    # Given
    spool, result = make("w"), result_of(claim_of(ledger))
    spool.put([result])
    # When
    spool.start()
    # Then
    until(lambda: files(settings) == [])
    record = ledger.job(JOB.format(0))
    assert record.state == "done"
    assert json.loads(record.outputs[0])["blob"] == result.output["blob"]
    store = Store(settings)
    assert store.get_blob(result.output["blob"], len(result.data)) == result.data
    key = store.result_key(JOB.format(0), 0, result.output["blob"])
    assert store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read() == result.data
    assert not spool.away


def test_what_another_took_or_nobody_wants_leaves_the_disk(ledger: Ledger, settings: Settings, make: Make) -> None:
    # Given three results
    spool, claims = make("w", away=True), [claim_of(ledger, number) for number in range(3)]
    spool.put([result_of(claim) for claim in claims])
    # When one is given to another worker, and one is cancelled
    ledger.release([claims[0]])
    assert ledger.claim(["q"], "other", "boot")[0]
    ledger.cancel(JOB.format(1))
    spool.start()
    # Then the third stays
    until(lambda: spool.tokens() == [claims[2].token])
    assert state_of(ledger, 2) == "running"


def test_bytes_that_went_bad_on_the_disk_are_made_again(ledger: Ledger, settings: Settings, make: Make) -> None:
    # Given
    spool, claim = make("w"), claim_of(ledger)
    spool.put([result_of(claim)])
    (path,) = (settings.data / "spool").rglob("*.result")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    # When
    spool.start()
    # Then
    until(lambda: state_of(ledger) == "queued")
    until(lambda: files(settings) == [])
    stage = ledger.job(JOB.format(0)).stages[0]
    assert (stage.crash, stage.lapses) == (0, 0)


def test_what_the_grace_does_not_suffice_for_is_given_back(ledger: Ledger, settings: Settings, make: Make) -> None:
    spool = make("w", away=True)
    spool.put([result_of(claim_of(ledger))])
    spool.start()
    spool.close()
    assert state_of(ledger) == "queued"
    assert files(settings) == []


def test_a_worker_keeps_what_it_has_in_the_spool_when_it_claims(ledger: Ledger, make: Make) -> None:
    # Given
    spool, claim = make("w", away=True), claim_of(ledger)
    spool.put([result_of(claim)])
    # When
    ledger.claim(["q"], "w0", "another boot", spooled=spool.tokens())
    # Then
    assert state_of(ledger) == "running"


# -------------------------------------------------------------------------------------------------- deleted meanwhile


@pytest.mark.parametrize(("by", "jobs"), [("the child", (4000, 4001)), ("the spool", (4002, 4003))])
def test_a_result_of_a_job_that_was_deleted_meanwhile_does_not_stay(
    settings: Settings, ledger: Ledger, make: Make, by: str, jobs: tuple[int, int]
) -> None:
    # Given two jobs that wait for one output, of which one is deleted, with its results, while that is uploaded
    here, gone = (JOB.format(number) for number in jobs)
    stage = StageEntry("x", "q", json.dumps({"recipes": [{"kind": "paint"}]}))
    ledger.submit([Submission(name, (stage,), "{}", "", "h") for name in (here, gone)])
    (claim,), _ = ledger.claim(["q"], "w", "boot")
    result, store = result_of(claim), Store(settings)
    ledger.cancel(gone)
    ledger.delete(gone)
    # When
    if by == "the child":
        assert commit(ledger, store, [upload(store, result)])[0] == [True]
    else:
        spool = make("w")
        spool.start()
        spool.put([result])
        until(lambda: ledger.job(here).state == "done")
        until(lambda: not files(settings))
    # Then
    assert [len(store.results_of(name)) for name in (here, gone)] == [2, 0]
