"""Would the harness see a loss? The same nemesis on a plain Celery chain, with every flag that promises reliability.

Four solo workers, late acknowledgements, rejection on a lost worker, a prefetch of one, a short visibility timeout:
what a careful builder writes. Sparse chains, so that workers are idle between them, and workers that stand still while
they wait for a message and then die: the message was popped, and no list holds it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from celery import Celery, chain

from tests.conftest import Valkey
from tests.e2e.rig import ROOT

VISIBILITY_S = 3
"""Seconds until Celery gives an unacknowledged message to another worker."""
WORKERS = 4
SCALES = {"full": (40, 12, 3, 1), "short": (9, 1, 1, 1)}
"""Of each scale: freezes that end in a kill, plain kills, deletions of the queue, pieces of garbage."""
SETTLE_S = 4 * VISIBILITY_S
"""After the last fault nothing is called lost before so long, seconds."""

URL = "CONTROL_URL"
app = Celery("naive", broker=os.environ.get(URL, "memory://"), set_as_current=False)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    broker_transport_options={
        "visibility_timeout": VISIBILITY_S,
        "unacked_restore_interval": 1,
        "socket_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 5,
    },
)


@app.task(name="naive.stage")
def stage(job: str, at: int) -> None:
    """One stage of 30 ms, noted where the judge sees it."""
    time.sleep(0.03)
    redis.Redis.from_url(os.environ[URL]).sadd(f"done:{at}", job)


def run(seed: int, scale: str, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """What the naive build lost: `chains`, `faults`, `lost`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    freezes, kills, deletions, garbage = SCALES[scale]
    faults = ["freeze"] * freezes + ["kill"] * kills + ["delete"] * deletions + ["garbage"] * garbage
    dice = random.Random(f"{seed} control")
    dice.shuffle(faults)
    valkey = Valkey(folder / "valkey").start()
    app.conf.broker_url = valkey.url
    workers = [_start(valkey.url, folder, index) for index in range(WORKERS)]
    client = redis.Redis.from_url(valkey.url, decode_responses=True)
    lock, sent, pauses = threading.Lock(), 0, random.Random(f"{seed} pauses")
    try:

        def send() -> None:
            nonlocal sent
            with lock:
                chain(*(stage.si(f"{sent}", at) for at in range(4))).apply_async()
                sent += 1

        def nemesis() -> None:
            for fault in faults:
                # Whoever has just begun waits for nothing yet.
                _until_listening(client, workers, valkey.url, folder)
                time.sleep(dice.uniform(0.1, 0.5))
                victim = workers[dice.randrange(WORKERS)]
                if fault == "delete":
                    client.delete("celery")
                elif fault == "garbage":
                    client.lpush("celery", b"\x80\x04garbage")
                else:
                    if fault == "freeze":
                        victim.send_signal(signal.SIGSTOP)
                        send()
                        send()
                        time.sleep(dice.uniform(0.2, 0.9))
                    victim.kill()
                    victim.wait()
            _until_listening(client, workers, valkey.url, folder)

        thread = threading.Thread(target=nemesis, daemon=True)
        thread.start()
        while thread.is_alive():
            send()
            time.sleep(pauses.uniform(0.15, 0.35))
        thread.join()
        say(f"control: {len(faults)} faults, {sent} chains; waiting {SETTLE_S} s for what Celery gives back")
        until = time.monotonic() + SETTLE_S
        while client.scard("done:3") < sent and time.monotonic() < until:
            time.sleep(0.2)
        lost = sent - client.scard("done:3")
        return {"chains": sent, "faults": len(faults), "freezes": freezes, "lost": int(lost)}
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        client.close()
        valkey.kill()


def text(found: dict[str, Any]) -> str:
    """The control arm's figures as a table for people."""
    return (
        f"| the control arm, a Celery chain | |\n|---|---|\n"
        f"| faults ({found['freezes']} freezes that end in a kill) | {found['faults']} |\n"
        f"| chains sent | {found['chains']} |\n| lost | {found['lost']} |\n"
    )


def _start(url: str, folder: Path, index: int) -> subprocess.Popen[bytes]:
    """One solo worker of the naive build."""
    # Without its chatter at start, a worker that waits in BRPOP waits for tasks.
    quiet = ["--without-mingle", "--without-gossip", "--without-heartbeat", "--loglevel=WARNING"]
    command = [sys.executable, "-m", "celery", "-A", __name__, "worker", "--pool=solo", *quiet]
    with (folder / f"worker{index}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, f"--hostname=naive{index}-{time.monotonic_ns()}@%h"],
            env={**os.environ, URL: url, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _until_listening(client: redis.Redis, workers: list[subprocess.Popen[bytes]], url: str, folder: Path) -> None:
    """Returns when every worker waits for a message; starts the dead ones again, as anybody's supervisor does."""
    until = time.monotonic() + 60
    while sum(one["cmd"] == "brpop" for one in client.client_list()) < WORKERS:
        assert time.monotonic() < until, "the naive workers did not start"
        for at, worker in enumerate(workers):
            if worker.poll() is not None:
                workers[at] = _start(url, folder, at)
        time.sleep(0.05)
