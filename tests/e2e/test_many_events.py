"""Do event streams tell 200 jobs in order and whole, to whoever comes late, comes back, or reads slowly?"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from farm import models
from farm.catalog import Catalog
from farm.records import ENDED
from farm.scripts import Server
from farm.settings import Settings
from farm.stage import kinds
from farm.tokens import Tokens
from tests.api.conftest import made, serving
from tests.api.listener import Heard, Listener
from tests.bench.overhead import STAGE_FILE
from tests.e2e.rig import Rig, install, until

JOBS, RUNS, FARM = "/api/v1/jobs", "/api/v1/runs", "/api/v1/events"
COUNT, RUN = 200, 50
CHAIN = {"stages": [{"kind": "noop_source", "checkpoint": "none"}, {"kind": "noop", "checkpoint": "none"}]}


@pytest.fixture
def caller(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx2.Client]:
    """A caller of the API of a farm with two workers, whose stages do nothing."""
    added = install(tmp_path, STAGE_FILE, ["noop_source", "noop"])
    monkeypatch.syspath_prepend(added["PYTHONPATH"])
    kinds.cache_clear()
    given = rig.farm.settings.model_dump(include={"namespace", "bucket", "lease_s"})
    hidden = {name: getattr(rig.farm.settings, name) for name in ("redis_url", "s3_endpoint", "data")}
    keys = {name: getattr(rig.farm.settings, name) for name in ("s3_access_key", "s3_secret_key")}
    settings = Settings.load(
        catalog=tmp_path / "catalog.toml", models=tmp_path / "models", rate_per_s=0, **given, **hidden, **keys
    )
    models.pull(Catalog.load(settings), "none")
    env = {**added, "FARM_MODELS": str(tmp_path / "models")}
    rig.supervise(["noop_source.none,noop.none"] * 2, "many", **env)
    server = Server(settings)
    text = Tokens(server).create("ada", ["read", "submit"])[1]
    with (
        serving(settings, heartbeat_s=0.5) as url,
        httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {text}"}, timeout=60, trust_env=False) as client,
    ):
        yield client
    server.close()
    kinds.cache_clear()


class Comer:
    """A reader that leaves at random points and comes back with the last id it has seen, until it is told to stop."""

    def __init__(self, client: httpx2.Client, path: str, seed: int) -> None:
        self._client, self._path, self._dice = client, path, random.Random(seed)
        self.heard: list[Heard] = []
        self.visits, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._come_and_go, daemon=True)
        self._thread.start()

    def _come_and_go(self) -> None:
        last = ""
        while not self._stop.is_set():
            enough = self._dice.randint(1, 40)
            with Listener(self._client, self._path, last) as ear:
                self.visits += 1
                until(lambda ear=ear, enough=enough: len(ear.heard) >= enough or ear.comments or ear.over.is_set(), 60)
            self.heard += ear.heard
            last = next((one.id for one in reversed(self.heard) if one.id), "")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


class Slow(Listener):
    """A reader that takes a few bytes, and then a rest; `release` lets it read on."""

    def __init__(self, client: httpx2.Client, path: str) -> None:
        super().__init__(client, path)
        self.release = threading.Event()

    def _hear(self, heard: Heard) -> None:
        super()._hear(heard)
        self.release.wait()


def states(heard: list[Heard], job: str) -> list[str]:
    """The states in which a job was seen, each once in a row."""
    told = [one.data["state"] for one in heard if one.event == "job" and one.data["id"] == job]
    return [state for state, _ in itertools.groupby(told)]


def sees(reader: Listener | Comer, job: str, final: dict[str, str]) -> None:
    """Waits until the job's last state is what the reader has heard last of it."""
    until(lambda: states(reader.heard, job)[-1:] == [final[job]], 60, f"the end of {job}")


def test_two_hundred_jobs_are_told_in_order_and_whole(rig: Rig, caller: httpx2.Client) -> None:
    # Given a listener from the start, one that comes and goes, and one that does not read on
    with Listener(caller, FARM) as whole, Slow(caller, FARM) as slow:
        comer = Comer(caller, FARM, 1)
        # When jobs are submitted, one run of them and many by themselves, and some of them are cancelled
        run = made(caller.post(JOBS, json={"chain": CHAIN, "count": RUN, "seed": 1}))
        ids = [job["id"] for job in run["jobs"]]
        with Listener(caller, f"{RUNS}/{run['run']}/events") as of_run:
            ears: list[Listener] = []
            for number in range(COUNT - RUN):
                job = made(caller.post(JOBS, json={"chain": CHAIN, "seed": 1000 + number}))["jobs"][0]["id"]
                ids.append(job)
                if number % 10 == 3:
                    ears.append(Listener(caller, f"{JOBS}/{job}/events").__enter__())
                if number % 10 == 7:
                    caller.post(f"{JOBS}/{job}/cancel")
                if number == COUNT // 2:
                    late, before = Listener(caller, FARM).__enter__(), len(ids)
            until(lambda: all(rig.farm.ledger.job(job).state in ENDED for job in ids), 240, "the end of all jobs")
            truth = {job: [event.state for event in rig.farm.ledger.events(job)] for job in ids}
            final = {job: found[-1] for job, found in truth.items()}
            # Then who listens from the start sees each job's last state, and so does who comes and goes
            for job in ids:
                sees(whole, job, final)
                sees(comer, job, final)
            for job in ids[:RUN]:
                sees(of_run, job, final)
            for ear in ears:
                assert ear.over.wait(60)
                assert (ear.heard[-1].event, ear.heard[-1].data["state"]) == ("end", final[ear.heard[-1].data["id"]])
                ear.__exit__()
            comer.stop()
            # And who has read next to nothing sees the truth once it reads
            assert len(slow.heard) <= 1
            slow.release.set()
            for job in ids:
                sees(slow, job, final)
            for job in ids[before:]:
                sees(late, job, final)
    late.__exit__()
    assert comer.visits > 3
    assert {one.data["id"] for one in of_run.heard} == set(ids[:RUN])
    for heard in (whole.heard, comer.heard, slow.heard, late.heard, of_run.heard):
        for job in ids:
            seen = states(heard, job)
            # Never another order than the ledger's, nothing that it has not, and no progress that goes back
            rest = iter(truth[job])
            assert all(state in rest for state in seen), (job, seen, truth[job])
            shares = [one.data["progress"] for one in heard if one.data["id"] == job]
            assert shares == sorted(shares)
    # And the ids of a stream rise, so that whoever comes back misses nothing
    places = [tuple(map(int, one.id.split("-"))) for one in whole.heard if one.id]
    assert places == sorted(places)
