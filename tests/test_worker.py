"""What does a child do when a doorbell comes, and when none does?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from farm.ledger import Ledger
from farm.parent import EX_TEMPFAIL
from farm.settings import Settings
from farm.stage import Batch, Medium, Size, Stage
from tests.conftest import Valkey
from tests.test_ledger import job, state, submit
from workers.judge import Judge
from workers.lease import Lease
from workers.making import Maker, Work
from workers.result import Result
from workers.worker import Worker

DEAF = """
import threading
from farm.settings import Settings
from workers.worker import Worker
child = Worker(Settings.load(), "w1", ["q0"], lambda phase, limit_s: None)
child.broker.ring(["q0"])
child.pulse(threading.Event())
"""


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    """A child of the queue `q0`, in this process."""
    made = Worker(settings, "w1", ["q0"], lambda phase, limit_s: None)
    yield made
    made.broker.close()
    made.ledger.close()


@pytest.mark.parametrize("drained", [True, False])
def test_after_sigterm_nothing_is_claimed(settings: Settings, worker: Worker, drained: bool) -> None:
    # Given work, which here fails as soon as it is claimed
    ledger = Ledger(settings)
    submit(ledger, job("a"))
    # When a doorbell is heard after SIGTERM, or without one
    if drained:
        worker.drain.start()
    worker.answer()
    # Then
    assert state(ledger, "a") == ("queued" if drained else "running")
    assert ledger.job("a").stages[0].attempt == (0 if drained else 1)
    ledger.close()


@pytest.mark.parametrize(
    ("setting", "shows"),
    [({}, True), ({"preview_s": 0.0}, False), ({"safety": "blur"}, False), ({"safety": "refuse"}, False),
     ({"safety": "tag"}, True)],
)  # fmt: skip
@pytest.mark.parametrize("space", ["tiny", "none"])
def test_pictures_are_shown_where_they_may_be(
    settings: Settings, worker: Worker, setting: dict[str, Any], shows: bool, space: str
) -> None:
    # Given a claim of a stage whose space has a projection, or none
    submit(worker.ledger, job("a"))
    claims, _ = worker.ledger.claim(["q0"], "w1", "boot")
    work = Work(claims[0], [{"checkpoint": {"space": space}}], Stage(kind="x"), None)
    told = settings.model_copy(update=setting)
    judge = Judge(told, worker.catalog, worker.loaded)
    maker = Maker(told, worker.catalog, worker.ledger, worker.store, worker.loaded, judge)
    # When, Then
    assert (maker._screen([work]) is not None) is (shows and space == "tiny")


class Breaking(Stage):
    """A stage whose latents end the device's context when they are decoded."""

    def decoded(self, pipe: Any, latents: Any, batch: Batch) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("crash", [0, 1])
def test_what_is_kept_ends_no_stage_twice(settings: Settings, worker: Worker, crash: int) -> None:
    # Given a result of which a picture is to be kept, at the first attempt, or after a crash
    submit(worker.ledger, job("a"))
    (claim,), _ = worker.ledger.claim(["q0"], "w1", "boot")
    claim = replace(claim, crash=crash, payload=json.dumps({"keep": "image"}))
    result = Result(claim, {"blob": "b"}, "application/octet-stream", b"latents")
    work, batch = Work(claim, [{}], Breaking(kind="x"), None), Batch(Medium.LATENTS, Size(8, 8), [], [], [], [])
    worker.loaded.pipes["q0"] = None
    lease = Lease(worker.ledger, [claim], settings, worker.drain, lambda phase, limit_s: None)
    # When, Then what goes on is whole
    assert worker.maker._kept(work, result, None, batch, lease) == result
    # And the child leaves where the device broke; after a crash it is not tried again
    assert worker.loaded.leave == (crash == 0)


def test_a_child_that_hears_no_doorbell_leaves(valkey: Valkey) -> None:
    # Given an idle child that listens to nothing, and a doorbell
    env = {**os.environ, "FARM_REDIS_URL": valkey.url, "FARM_DEAF_S": "1", "FARM_LEASE_S": "3"}
    # When it has lain unheard for long, twice
    child = subprocess.run([sys.executable, "-c", DEAF], env=env, timeout=60)
    # Then another child is to be started
    assert child.returncode == EX_TEMPFAIL
