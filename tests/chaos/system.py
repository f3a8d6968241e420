"""Which farm suffers? Its own Valkey and S3, a proxy on each link, and supervisors whose children work on fakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis
from pydantic import SecretStr

from farm import models
from farm.client import Farm
from farm.places import Places
from farm.servers import Process, await_server, await_store, environment, start_s3
from farm.settings import Settings
from farm.stage import kinds
from farm.store import Store
from tests.chaos import recorder, stages
from tests.chaos.history import Writer
from tests.conftest import TINY, Valkey
from tests.e2e.proxy import Proxy
from tests.e2e.rig import CHECKPOINT, ROOT

LEASE_S = 2.0
TIMES = {
    "FARM_LEASE_S": str(LEASE_S),
    "FARM_TICK_S": "0.5",
    "FARM_DEAF_S": "3",
    "FARM_BACKOFF_S": "0.1",
    "FARM_BACKOFF_MAX_S": "1",
    "FARM_DRAIN_GRACE_S": "5",
    "FARM_ISOLATE_S": "0.5",
    "FARM_LIMIT_STEP_S": "5",
    "FARM_LIMIT_FETCH_S": "90",
    "FARM_LIMIT_ENCODE_S": "5",
    "FARM_LIMIT_UPLOAD_S": "90",
    "FARM_LIMIT_LOAD_S": "60",
    "FARM_LIMIT_IDLE_S": "20",
}
"""Short, so that hundreds of faults fit. A fetch and an upload may take three timeouts of the store's client. Every
worker here fails several times in a row, and is not to be blamed for long."""
SLOTS = (",".join(stages.QUEUES[:2]), ",".join(stages.QUEUES[2:]))
"""Two children per supervisor, two queues each."""
NAMES = ("sup0", "sup1", "sup2")
"""Three supervisors: every queue has three workers, and two while one is away."""
DISK = 8 << 20
"""Bytes of the small disk that one supervisor's data folder lies on."""


@dataclass
class System:
    """The farm under test, in `folder`. `farm` is a client behind the producer's proxy, `judge` one without."""

    folder: Path
    valkey: Valkey
    places: Places
    write: Writer
    traps: recorder.Traps
    starter: ThreadPoolExecutor
    to_valkey: Proxy
    to_s3: Proxy
    produced: Proxy
    farm: Farm
    judge: Farm
    disk: Path | None
    env: dict[str, str] = field(default_factory=dict)
    supervisors: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    slots: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    s3: Process | None = None

    @property
    def redis(self) -> redis.Redis:
        """A direct connection to the Valkey."""
        return redis.Redis.from_url(self.valkey.url, decode_responses=True, socket_timeout=5)

    def start_s3(self) -> None:
        """Starts the S3 server on its data; it answers and reads afterwards."""
        # The kernel ends it with the thread that started it, so that is one that lives as long as the farm.
        self.s3 = self.starter.submit(start_s3, self.folder, self.places).result()
        await_server("s3", self.s3, self.folder, self.places)
        await_store(Store(self.judge.settings))

    def kill_s3(self) -> None:
        """Kills the S3 server where it stands."""
        assert self.s3
        self.s3.kill()
        self.s3.wait()

    def supervise(self, name: str, slots: tuple[str, ...] = SLOTS, **env: str) -> None:
        """Starts the supervisor `name`, one child per slot; again with those that it had at first."""
        command = [sys.executable, "-m", "workers.supervisor", "--name", name]
        for slot in self.slots.setdefault(name, slots):
            command += ["--slot", slot]
        data = self.disk if self.disk and name == NAMES[-1] else self.folder / name
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self.supervisors[name] = subprocess.Popen(
                command,
                env={**os.environ, **self.env, "FARM_DATA": str(data), **env},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> list[int]:
        """Ends the supervisors by SIGTERM; their exit statuses."""
        for process in self.supervisors.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        found = []
        for process in self.supervisors.values():
            try:
                found.append(process.wait(40))
            except subprocess.TimeoutExpired:
                process.kill()
                found.append(process.wait())
        return found


def install(folder: Path) -> dict[str, str]:
    """The fake stages as an installed package, and their checkpoint: the variables that make a process find both."""
    site, weights = folder / "site", folder / "weights"
    info = site / "fakes-1.0.dist-info"
    info.mkdir(parents=True)
    weights.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[farm.stages]\nfakes = {stages.__name__}\n")
    (site / "sitecustomize.py").write_text(f"from {recorder.__name__} import wrap\n\nwrap()\n")
    (weights / "config.json").write_text("{}")
    quoted = ", ".join(f'"{kind}"' for kind in stages.KINDS)
    fakes = CHECKPOINT.format(name=stages.CHECKPOINT, folder=weights, kinds=quoted)
    (folder / "catalog.toml").write_text(TINY.read_text() + fakes)
    return {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "FARM_CATALOG": str(folder / "catalog.toml")}


@contextmanager
def system(folder: Path, small_disk: bool = True, **times: str) -> Iterator[System]:
    """A farm in `folder` with its servers up and no supervisor yet; ended whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir()
    undo: list[Callable[[], object]] = []
    try:
        added = install(folder)
        sys.path.insert(0, str(folder / "site"))
        undo.append(lambda: (sys.path.remove(str(folder / "site")), kinds.cache_clear()))
        kinds.cache_clear()
        valkey = Valkey(folder / "valkey").start()
        undo.append(valkey.kill)
        places, starter = Places.new(), ThreadPoolExecutor(1)
        proxies = [Proxy(valkey.port), Proxy(places.s3_ports["s3"]), Proxy(valkey.port)]
        undo += [proxy.stop for proxy in proxies]
        reached = {key: value for key, value in places.connection().items() if key.startswith("s3_")}
        shared = {"bucket": "chaos", "data": folder, "models": folder / "models", "catalog": folder / "catalog.toml"}
        lease = {"lease_s": LEASE_S}
        judge = Settings.load(redis_url=valkey.url, **reached, **shared, **lease)

        def through(proxy: Proxy) -> SecretStr:
            return SecretStr(valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/"))

        farm = judge.model_copy(update={"redis_url": through(proxies[2])})
        worker = judge.model_copy(
            update={"redis_url": through(proxies[0]), "s3_endpoint": f"http://127.0.0.1:{proxies[1].port}"}
        )
        disk = _mount(folder / "disk") if small_disk else None
        if disk:
            undo.append(lambda: subprocess.run(["umount", "-l", str(disk)], check=False))
        found = System(
            folder, valkey, places, Writer(folder / "history", "harness"), recorder.Traps(folder), starter, *proxies,
            Farm(farm), Farm(judge), disk,
        )  # fmt: skip
        undo += [found.farm.close, found.judge.close]
        found.env = {
            **environment(worker), **added, **TIMES, **times, "FARM_MODELS": str(folder / "models"),
            "OMP_NUM_THREADS": "1", recorder.FOLDER: str(folder),
        }  # fmt: skip
        models.pull(found.judge.catalog, stages.CHECKPOINT)
        undo.append(starter.shutdown)
        undo.append(found.kill_s3)
        found.start_s3()
        undo.append(found.stop)
        yield found
    finally:
        for step in reversed(undo):
            with suppress(Exception):
                step()


def _mount(path: Path) -> Path | None:
    """A small disk of its own at `path`; None where this process may not mount."""
    path.mkdir()
    asked = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)]
    return path if subprocess.run(asked, capture_output=True, check=False).returncode == 0 else None
