"""Who rings where work waits, what is a child judged by, and what becomes of those of a dead supervisor?"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import redis

from farm.broker import Broker, bell_queue
from farm.ledger import Ledger
from farm.parent import EX_TEMPFAIL
from farm.reconcile import reconciling
from farm.settings import Settings
from tests.e2e.rig import until
from tests.test_ledger import job, serve, submit
from workers.supervisor import Supervisor

CHILD = """
import signal, sys
from farm.parent import die_with_parent
die_with_parent(int(sys.argv[1]), signal.SIGKILL)
print("lives", flush=True)
signal.pause()
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@contextmanager
def reconciled(settings: Settings) -> Iterator[tuple[Ledger, redis.Redis]]:
    """A reconciler in a thread, rounds of a tenth of a second; the ledger, and the server of the doorbells."""
    brisk = settings.model_copy(update={"tick_s": 0.1})
    ledger, broker = Ledger(brisk), Broker(brisk)
    raw = redis.Redis.from_url(settings.redis_url.get_secret_value(), decode_responses=True)
    try:
        with reconciling(brisk, ledger, broker, "me"):
            yield ledger, raw
    finally:
        broker.close()
        ledger.close()
        raw.close()


def rounds(raw: redis.Redis, count: int) -> None:
    """Waits for so many rounds of the reconciler."""
    for _ in range(count):
        last = raw.get("{farm}:reap:last")
        until(lambda last=last: raw.get("{farm}:reap:last") != last, 60)


def test_a_lost_doorbell_is_rung_again(settings: Settings) -> None:
    key = bell_queue(settings, "q0").name
    with reconciled(settings) as (ledger, raw):
        # Given work whose doorbell was never rung, and a worker
        serve(ledger, "w1")
        submit(ledger, job("a"))
        for _ in range(2):
            # Then it is rung
            until(lambda: raw.llen(key) == 1, 30)
            # When it is lost
            raw.delete(key)


def test_no_more_is_rung_than_workers_can_hear(settings: Settings) -> None:
    key = bell_queue(settings, "q0").name
    with reconciled(settings) as (ledger, raw):
        # Given much work, and two workers
        serve(ledger, "w1", "w2")
        submit(ledger, *(job(f"j{i}") for i in range(20)))
        # Then
        until(lambda: raw.llen(key) == 2, 30)
        rounds(raw, 5)
        assert raw.llen(key) == 2


def test_a_child_is_heard_before_it_is_judged(settings: Settings) -> None:
    # Given a child that reported in time, and a supervisor that got no turn until that time was over
    supervisor = Supervisor(settings, "s", ["q0"])
    (slot,) = supervisor.slots
    slot.marks, child = os.pipe()
    supervisor._selector.register(slot.marks, selectors.EVENT_READ, partial(supervisor._hear_marks, slot))
    slot.process = subprocess.Popen(["sleep", "60"])
    try:
        os.write(child, b"step 60\n")
        slot.deadline = time.monotonic() - 1
        # When it looks after the child, Then it lives
        supervisor._watch(slot)
        assert (slot.phase, slot.killed_for) == ("step", "")
        # And one that reported nothing more is killed
        slot.deadline = time.monotonic() - 1
        supervisor._watch(slot)
        assert slot.process.wait(20) < 0
        assert slot.killed_for == "no progress in phase step"
    finally:
        slot.process.kill()
        slot.process.wait()
        for end in (slot.marks, child):
            os.close(end)
        supervisor.broker.close()
        supervisor.ledger.close()


def test_a_child_ends_with_its_killed_supervisor() -> None:
    # Given
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    # When
    parent.kill()
    parent.wait()
    # Then
    try:
        child.wait(20)
    finally:
        if child.is_running():
            child.kill()


def test_a_child_whose_supervisor_is_gone_already_ends_at_once() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD, str(os.getppid())], timeout=60, capture_output=True)
    assert (child.returncode, child.stdout) == (EX_TEMPFAIL, b"")
