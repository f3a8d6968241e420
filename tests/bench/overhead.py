"""What one stage costs beside its work: four no-op stages through the farm, four no-op tasks through a Celery chain."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import redis
from celery import Celery, chain

from farm import models
from farm.catalog import Catalog
from farm.client import Farm
from farm.servers import Servers, environment
from farm.settings import Settings
from tests.bench.chains import Arms
from tests.e2e.rig import ROOT, install

STAGES = 4
STAGE_FILE = '''
"""Two stages that do nothing to a picture of 64 pixels."""

from typing import ClassVar, Literal

from PIL import Image

from farm.stage import Medium, Stage

BLANK = Image.new("RGB", (64, 64), "white")


class Source(Stage):
    """Give a blank picture."""

    kind: Literal["noop_source"] = "noop_source"
    gives: ClassVar = frozenset({Medium.IMAGE})
    needs_torch: ClassVar = False

    def load(self, checkpoint, device):
        return None

    def run(self, pipe, batch, report):
        return [BLANK for _ in batch.given]


class Noop(Source):
    """Give the picture as it is."""

    kind: Literal["noop"] = "noop"
    takes: ClassVar = frozenset({Medium.IMAGE})

    def run(self, pipe, batch, report):
        return list(batch.given)
'''
COUNTER = "bench:done"


@contextmanager
def bench(folder: Path, count: int) -> Iterator[Arms]:
    """The arms on one Valkey and S3, each with one worker process that is stopped while the others run."""
    folder.mkdir()
    added = install(folder, STAGE_FILE, ["noop_source", "noop"])
    sys.path.insert(0, added["PYTHONPATH"])
    from farm.stage import kinds

    kinds.cache_clear()
    settings = Settings.load(data=folder / "data", catalog=folder / "catalog.toml")
    models.pull(Catalog.load(settings), "none")
    with Servers(settings) as servers:
        env = {**os.environ, **environment(servers.settings), **added}
        seeds = itertools.count()
        yield {
            "raw Celery chain": lambda: by_celery(servers.settings, env, count),
            "the farm, ledger and doorbells alone": lambda: by_farm(
                servers.settings, env, count, "tests.bench.bare", seeds
            ),
            "the farm, with artefacts in S3": lambda: by_farm(servers.settings, env, count, "workers.worker", seeds),
        }


def by_farm(settings: Settings, env: dict[str, str], count: int, module: str, seeds: Iterator[int]) -> dict[str, float]:
    """`count` chains through one child of the farm, run by `module`; each is submitted by itself, as with Celery."""
    noops = [{"kind": "noop", "checkpoint": "none"}] * (STAGES - 1)
    chain_of = {"stages": [{"kind": "noop_source", "checkpoint": "none"}, *noops]}
    read, write = os.pipe()
    command = [sys.executable, "-m", module, "--name", "bench", "--queues", "noop_source.none,noop.none"]
    command += ["--parent", str(os.getpid()), "--marks", str(write)]
    try:
        with Farm(settings) as farm, process_of(command, env, write) as worker:
            wait_for(farm.ledger.workers, worker)
            cpu, began = sum(worker.cpu_times()[:2]), time.perf_counter()
            handles = [farm.render(chain=chain_of, seed=next(seeds)) for _ in range(count)]
            for handle in handles:
                handle.wait(60)
            wall, cpu = time.perf_counter() - began, sum(worker.cpu_times()[:2]) - cpu
    finally:
        os.close(read)
        os.close(write)
    return {"wall_ms": wall * 1000 / (count * STAGES), "cpu_ms": cpu * 1000 / (count * STAGES)}


@contextmanager
def process_of(command: list[str], env: dict[str, str], *fds: int) -> Iterator[psutil.Process]:
    """A worker process, ended in the end."""
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, env=env, cwd=ROOT, pass_fds=fds, stdout=null, stderr=null)
    try:
        yield psutil.Process(process.pid)
        process.terminate()
        process.wait(30)
    finally:
        process.kill()


def wait_for(condition: Callable[[], object], worker: psutil.Process, limit_s: float = 60) -> None:
    """Returns once `condition` holds; fails when the worker has ended or `limit_s` are over."""
    until = time.monotonic() + limit_s
    while not condition():
        assert worker.is_running(), "the worker has ended"
        assert worker.status() != psutil.STATUS_ZOMBIE, "the worker has ended"
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.005)


celery = Celery("raw", broker=os.environ.get("BENCH_BROKER", ""), set_as_current=False)
celery.conf.update(
    task_ignore_result=True, task_default_queue="bench-raw", worker_prefetch_multiplier=1, task_acks_late=True
)


@celery.task(name="noop", ignore_result=True)
def noop(*_: object) -> None:
    """Does nothing."""


@celery.task(name="last", ignore_result=True)
def last(*_: object) -> None:
    """Counts a finished chain."""
    celery.backend_client.incr(COUNTER)  # type: ignore[attr-defined]


def by_celery(settings: Settings, env: dict[str, str], count: int) -> dict[str, float]:
    """`count` chains of no-op tasks through one Celery worker of pool solo."""
    url = settings.redis_url.get_secret_value()
    celery.conf.broker_url = url
    client = redis.Redis.from_url(url)
    client.delete(COUNTER)
    with process_of([sys.executable, "-m", "tests.bench.raw"], {**env, "BENCH_BROKER": url}) as worker:
        chain(last.si()).apply_async()
        wait_for(lambda: client.get(COUNTER) == b"1", worker)
        cpu, began = sum(worker.cpu_times()[:2]), time.perf_counter()
        for _ in range(count):
            chain(*[noop.si()] * (STAGES - 1), last.si()).apply_async()
        wait_for(lambda: client.get(COUNTER) == str(count + 1).encode(), worker)
        wall, cpu = time.perf_counter() - began, sum(worker.cpu_times()[:2]) - cpu
    return {"wall_ms": wall * 1000 / (count * STAGES), "cpu_ms": cpu * 1000 / (count * STAGES)}
