"""What runs while `farm up` runs, and what does `farm demo` show?

The embedded servers (`farm.servers`), and one supervisor with a child per stage. Both are watched: a server or
supervisor that dies is started again on its own data. State stays in the data folder, so a job submitted before a stop
goes on after the next start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from farm import models
from farm.catalog import Catalog
from farm.client import Farm
from farm.errors import FarmError, InvalidJob, Unavailable
from farm.handle import JobHandle
from farm.job import queue_name
from farm.servers import Servers, environment
from farm.settings import Settings, read_connection

_log = structlog.get_logger(__name__)
RESTART_S = 1.0
"""Pause between two looks at the servers and the supervisor, seconds."""
READY_S = 300.0
"""Longest wait for all workers to have loaded their checkpoints, seconds."""
Say = Callable[[str], None]


def default_slots(catalog: Catalog) -> list[str]:
    """One slot per stage kind, each with the default checkpoint of its kind."""
    return [queue_name(kind, name) for kind, name in catalog.defaults.items()]


def up(settings: Settings, slots: Sequence[str] | None = None, say: Say = print) -> None:
    """Runs the one-machine farm in the foreground until SIGINT or SIGTERM, then drains the workers and stops it all.

    Raises:
        Conflict: a farm runs in this data folder already.
        Unavailable: a server does not start, or the wheels for it are missing.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with running(settings, slots, say, stop) as farm:
        if not stop.is_set():
            say(f"The farm is up; its data is in {farm.settings.data}. Ctrl+C stops it.")
            say('In another terminal: farm render "a cat on a green background" --wait -o out/')
        stop.wait()
        say("Stopping: running stages finish or are given back.")


@contextmanager
def running(
    settings: Settings, slots: Sequence[str] | None = None, say: Say = print, stop: threading.Event | None = None
) -> Iterator[Farm]:
    """The one-machine farm, from start to stop; yields a client once all workers are ready, or `stop` is set.

    Raises as `up`.
    """
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the data folder {settings.data} cannot be used: {error.strerror}"
        raise FarmError(reason, code="bad_file", hint="FARM_DATA names another one") from None
    catalog = Catalog.load(settings)
    stop = stop or threading.Event()
    slots = list(slots or default_slots(catalog))
    for queue in {queue for slot in slots for queue in slot.split(",")}:
        name = queue.partition(".")[2]
        if name not in catalog.checkpoints:
            raise InvalidJob(f"no checkpoint {name!r} in the catalog for the queue {queue}", code="unknown_checkpoint")
        if not stop.is_set():
            _have(catalog, name, say)
    with Servers(settings) as servers:
        keeper = Keeper(servers, slots)
        farm = Farm(servers.settings)
        try:
            say("Starting the workers: " + ", ".join(slots))
            # Entries of workers that were killed with the last farm would pass for those that start now.
            for gone in farm.ledger.workers():
                farm.ledger.unregister(gone.worker, gone.boot)
            keeper.start()
            _await_workers(farm, len(slots), keeper.log, stop)
            yield farm
        finally:
            keeper.stop()
            farm.close()


def _have(catalog: Catalog, name: str, say: Say) -> None:
    """Builds a local checkpoint that is not there yet, or is another version's; others are pulled by hand: they may be
    large."""
    checkpoint = catalog.checkpoints[name]
    try:
        catalog.lock(checkpoint)
        if not models.is_outdated(catalog, checkpoint):
            return
    except InvalidJob:
        if checkpoint.build is None:
            raise
    say(f"Building the checkpoint {name}.")
    models.pull(catalog, name)


def _await_workers(farm: Farm, count: int, log: Path, stop: threading.Event) -> None:
    until = time.monotonic() + READY_S
    while True:
        with suppress(Unavailable):  # the keeper starts a server again that has died meanwhile
            if len(farm.ledger.workers()) >= count:
                return
        if stop.wait(0.1):
            return
        if time.monotonic() > until:
            raise Unavailable(f"the workers are not ready after {READY_S:.0f} s", hint=f"see {log}")


class Keeper:
    """Keeps the supervisor and the servers running, from a thread."""

    def __init__(self, servers: Servers, slots: Sequence[str]) -> None:
        self._servers, self._slots = servers, slots
        self.log = servers.settings.data / "logs" / "workers.log"
        self._stopped, self._ended, self._lock = False, threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="keeper")
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the supervisor and watches."""
        # From this thread, which lives as long as the farm: the kernel ends a child with the thread that forked it.
        self._supervise()
        self._thread.start()

    def stop(self) -> None:
        """Ends the supervisor by SIGTERM: its children drain."""
        try:
            with self._lock:
                self._stopped = True
            if self._supervisor is not None and self._supervisor.poll() is None:
                self._supervisor.terminate()
                self._supervisor.wait()
        finally:
            # Only now: what the thread started again gets a SIGTERM from the kernel when the thread ends.
            self._ended.set()
            if self._thread.ident is not None:
                self._thread.join()

    def _supervise(self) -> None:
        command = [sys.executable, "-m", "workers.supervisor", "--name", "local", "--parent", str(os.getpid())]
        for slot in self._slots:
            command += ["--slot", slot]
        with self.log.open("ab") as out:
            self._supervisor = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **environment(self._servers.settings)},
                start_new_session=True,
            )

    def _keep(self) -> None:
        while not self._ended.wait(RESTART_S):
            with self._lock:
                if not self._stopped:
                    self._mend()

    def _mend(self) -> None:
        try:
            for name in self._servers.revive():
                _log.warning("server_restarted", server=name)
            if self._supervisor is not None and self._supervisor.poll() is not None:
                _log.warning("supervisor_restarted", status=self._supervisor.returncode)
                self._supervise()
        except (FarmError, OSError) as error:
            _log.error("not_restarted", error=str(error))


def demo(
    settings: Settings, out: Path, seed: int | None, show: Callable[[list[JobHandle]], None], say: Say = print
) -> list[JobHandle]:
    """Renders one four-stage chain and one chain that begins with an image; both results lie in `out` afterwards.

    Uses the farm that runs in the data folder, or starts one and stops it again. `show` displays jobs until they end.
    """
    with _reachable(settings, say) as farm:
        out.mkdir(parents=True, exist_ok=True)
        _draw(out / "input.png")
        jobs = [
            farm.render("a red apple on a blue background", chain="hires", seed=seed),
            farm.render(
                "a basketball on a blue background",
                chain="img-hires",
                image=out / "input.png",
                strength=0.8,
                seed=seed,
            ),
        ]
        say("A chain from a prompt: text2img → img2img → upscale_latent → upscale.")
        say("A chain from an image: img2img → upscale_latent → upscale.")
        show(jobs)
        for job in jobs:
            for result, path in zip(job.results, job.download(out), strict=True):
                say(f"{result.uri}  {result.size}  {path}")
        return jobs


@contextmanager
def _reachable(settings: Settings, say: Say) -> Iterator[Farm]:
    if _answers(settings):
        with Farm(settings) as farm:
            yield farm
    else:
        catalog = Catalog.load(settings)
        shown = {stage["kind"] for stage in catalog.preset("hires").stages}
        slots = [slot for slot in default_slots(catalog) if slot.partition(".")[0] in shown]
        with running(settings, slots, say) as farm:
            yield farm


def _answers(settings: Settings) -> bool:
    """Whether a farm runs in the data folder; a killed one leaves its connection file behind."""
    if not read_connection(settings.data):
        return False
    with Farm(settings) as farm:
        try:
            farm.ledger.ping()
        except Unavailable:
            return False
    return True


def _draw(path: Path) -> None:
    """An orange disc on blue, of the side that the demo family was made for: what img2img makes a basketball of."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (256, 256), (40, 98, 230))
    ImageDraw.Draw(picture).ellipse((48, 48, 208, 208), fill=(245, 140, 30))
    picture.resize((64, 64), Image.Resampling.LANCZOS).save(path)
