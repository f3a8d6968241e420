"""Datasets on a farm of real processes, for tests: their files, their feeders, what lies in the store."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from farm.dataset.asking import Asked, ask
from farm.dataset.desk import Datasets
from farm.dataset.drafts import Planned
from farm.dataset.files import Files
from farm.dataset.folder import Folder
from farm.dataset.peeking import look
from farm.dataset.sources import source_of
from farm.dataset.spec import DatasetSpec
from tests.e2e.rig import ROOT, Rig, until

T = TypeVar("T")
SLOTS = ("text2img.tiny", "img2img.tiny")
CHAIN = {
    "stages": [
        {"kind": "text2img", "checkpoint": "tiny", "width": 64, "height": 64, "num_inference_steps": 2},
        {"kind": "img2img", "checkpoint": "tiny", "num_inference_steps": 2, "strength": 0.5},
    ]
}
"""Two stages of the tiny family, some 30 ms each."""
FRUIT = ("apple", "pear", "plum", "lemon", "fig", "melon", "cherry", "lime")


def table(path: Path, rows: int) -> Path:
    """A CSV of prompts with a label, all of them different."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "label"])
        writer.writerows([f"a {FRUIT[row % len(FRUIT)]}, number {row}", FRUIT[row % len(FRUIT)]] for row in range(rows))
    return path


def planned(rig: Rig, path: Path, name: str, **asked: object) -> Planned:
    """The plan of a file with two seeds of every row, in shards of eight, unless said otherwise."""
    given = {"chain": CHAIN, "sweep": [{"seed": [1, 2]}], "shard_samples": 8, **asked}
    return Datasets(rig.farm).plan(source_of(path), name, folder=path.parent, **given)  # type: ignore[arg-type]


def asked(rig: Rig, name: str, text: str, **given: Any) -> None:
    """Has a dataset of a table be asked for as the API asks, for nobody in particular."""
    head = Path(tempfile.mkdtemp()) / "rows.csv"
    head.write_text(text)
    file = f"{hashlib.sha256(text.encode()).hexdigest()}/rows.csv"
    files = Files(rig.farm.store, "")
    files.put(file, head, look(head))
    spec = DatasetSpec(**{"name": name, "chain": CHAIN, "shard_samples": 8, **given})
    ask(rig.farm, Asked(spec=spec, file=files.key(file), file_name="rows.csv", format="csv"))


def fed(rig: Rig, name: str, text: str, **given: Any) -> None:
    """Has a dataset of a table be planned, and made to its end."""
    asked(rig, name, text, **given)
    feeder = FeederProcess(rig).start()
    try:
        desk = Datasets(rig.farm)
        feeder.brings(lambda: desk.status(name).state == "planned", f"{name} to be planned")
        desk.start(name)
        done(rig, name)
    finally:
        feeder.stop()


class FeederProcess:
    """The process that feeds the farm's datasets, as `farm up` starts it."""

    def __init__(self, rig: Rig, **env: str) -> None:
        self._rig, self._env = rig, env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> FeederProcess:
        log = (self._rig.folder / "feeder.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "farm.dataset.serve", "--parent", str(os.getpid())],
            env={**os.environ, **self._rig.env, **self._env}, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        return self

    def brings(self, condition: Callable[[], T], what: str) -> T:
        """The first truthy value of `condition`, waited for as long as this process lives."""

        def look() -> T:
            assert self.process is not None
            assert self.process.poll() is None, f"the feeder ended before {what}; feeder.log says why"
            return condition()

        return until(look, 240, what)

    def kill(self) -> None:
        """Ends it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


def done(rig: Rig, name: str, timeout_s: float = 240) -> None:
    """Waits until every sample of a dataset was tried."""
    desk = Datasets(rig.farm)
    until(lambda: desk.status(name).state == "done", timeout_s, f"{name}: {desk.status(name)}")


def shards(rig: Rig, name: str) -> dict[str, str]:
    """The SHA-256 of every tar and table of a dataset, by name."""
    folder = Folder(rig.farm.store, name)
    paths = [path for path in folder.names("shards/") if path.endswith((".tar", ".parquet"))]
    return {path: hashlib.sha256(folder.read(path) or b"").hexdigest() for path in paths}


def jobs_left(rig: Rig) -> Sequence[str]:
    """Ids of jobs and executions that the ledger still has."""
    client = rig.farm.ledger._server._redis
    return [key for key in client.keys("*") if ":job:" in key or (":x:" in key)]
