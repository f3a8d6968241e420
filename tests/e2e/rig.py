"""A whole farm of real processes for one test: Valkey, S3, supervisors and their children."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from farm.client import Farm
from farm.records import WorkerRecord
from farm.servers import environment
from farm.settings import Settings
from tests.conftest import TINY, Valkey, own_bucket, pause

ALL = ("text2img.tiny", "img2img.tiny", "upscale_latent.tiny-x2", "upscale.tiny-x4")
ALONE = (",".join(ALL),)
"""One child for all stages, where it does not matter who runs which: it starts in a quarter of the four's time."""
START_S = 240
"""What the start of workers may take: each is 8 s of CPU, which others want, too."""
T = TypeVar("T")
ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], T], timeout_s: float = 120, what: str = "") -> T:
    """The first truthy value of `condition`, polled; fails with `what` after `timeout_s`."""
    limit = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < limit, f"waited {timeout_s} s for {what or condition}"
        pause()
    return value


CHECKPOINT = """
[checkpoints.{name}]
kinds = [{kinds}]
folder = "{folder}"
space = "tiny"
native = 64
licence = "Apache-2.0"
"""


def install(folder: Path, source: str, kinds: Sequence[str]) -> dict[str, str]:
    """A package of stage classes, as pip would install it, and two checkpoints, `none` and `none2`, for them.

    Returns the variables that make a process find both.
    """
    site, weights = folder / "site", folder / "weights"
    # A name of its own: a module that another test has imported would be found in its place.
    name = f"plugin{secrets.token_hex(4)}"
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    weights.mkdir()
    (site / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[farm.stages]\n{name} = {name}\n")
    (weights / "config.json").write_text("{}")
    quoted = ", ".join(f'"{kind}"' for kind in kinds)
    entries = [CHECKPOINT.format(name=checkpoint, folder=weights, kinds=quoted) for checkpoint in ("none", "none2")]
    (folder / "catalog.toml").write_text("".join([TINY.read_text(), *entries]))
    return {"PYTHONPATH": str(site), "FARM_CATALOG": str(folder / "catalog.toml")}


class Rig:
    """The farm under test. `env` is what its processes get; `farm` is a client of it."""

    def __init__(self, farm: Farm, env: Mapping[str, str], folder: Path, valkey: Valkey) -> None:
        self.farm, self.env, self.folder, self.valkey = farm, dict(env), folder, valkey
        self.plugin: dict[str, str] = {}
        self.supervisors: list[subprocess.Popen[bytes]] = []

    def supervise(self, slots: Sequence[str] = ALL, name: str = "rig", **env: str) -> subprocess.Popen[bytes]:
        """A supervisor of one child per slot; its output goes to a log in the test's folder."""
        command = [sys.executable, "-m", "workers.supervisor", "--name", name]
        for slot in slots:
            command += ["--slot", slot]
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(
            command, env={**os.environ, **self.env, **env}, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        self.supervisors.append(process)
        return process

    def workers(self) -> list[WorkerRecord]:
        """The live workers."""
        return self.farm.ledger.workers()

    def ready(self, count: int = len(ALL)) -> list[WorkerRecord]:
        """Waits until `count` workers are registered, while their supervisors live."""

        def registered() -> list[WorkerRecord]:
            assert any(process.poll() is None for process in self.supervisors), self.logs()[-3000:]
            found = self.workers()
            return found if len(found) >= count else []

        return until(registered, START_S, f"{count} workers\n{self.logs()[-3000:]}")

    def pid(self, queue: str) -> int:
        """The process of the one live worker that serves `queue`."""
        (found,) = until(lambda: [worker for worker in self.workers() if queue in worker.queues])
        return found.pid

    def logs(self) -> str:
        """What the farm's processes wrote."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        for process in self.supervisors:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        for process in self.supervisors:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def rig_of(farm: Farm, env: Mapping[str, str], folder: Path, valkey: Valkey) -> Iterator[Rig]:
    """A rig that is stopped at the end; its logs are shown when the test fails."""
    rig = Rig(farm, env, folder, valkey)
    try:
        yield rig
    except BaseException:
        print(rig.logs()[-20000:])
        raise
    finally:
        rig.stop()
        farm.close()


@contextmanager
def fresh_rig(folder: Path, models_dir: Path, s3: Mapping[str, str], **more: Any) -> Iterator[Rig]:
    """A farm without workers: a Valkey and a bucket of its own, short leases; `more` settings."""
    valkey = Valkey(folder / "valkey").start()
    times = {"lease_s": 3.0, "deaf_s": 3.0, "drain_grace_s": 5.0, **more}
    settings = Settings.load(
        redis_url=valkey.url, data=folder, models=models_dir, bucket=f"rig-{secrets.token_hex(6)}", **s3, **times
    )
    env = {**environment(settings), "FARM_MODELS": str(models_dir), "OMP_NUM_THREADS": "1"}
    env |= {f"FARM_{name.upper()}": str(value) for name, value in times.items()}
    farm = Farm(settings)
    try:
        with own_bucket(farm.store), rig_of(farm, env, folder, valkey) as rig:
            yield rig
    finally:
        valkey.kill()
