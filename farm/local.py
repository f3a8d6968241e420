"""What runs while `farm up` runs, and what does `farm demo` show?

The embedded servers (`farm.servers`), one supervisor with a child per stage, and the API. All are watched: what dies is
started again, on its own data and address. State stays in the data folder, so a job submitted before a stop
goes on after the next start.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from farm import models
from farm.catalog import Catalog
from farm.client import Farm
from farm.errors import FarmError, InvalidJob, Unavailable
from farm.handle import JobHandle
from farm.ledger import FAN
from farm.plan import queue_name
from farm.scripts import Server
from farm.servers import Servers, environment
from farm.settings import CONNECTION_FILE, Settings, read_connection
from farm.tokens import Tokens

_log = structlog.get_logger(__name__)
RESTART_S = 1.0
"""Pause between two looks at what runs, seconds."""
API_PORTS = range(8400, 8500)
"""The API listens on the first of these that is free."""
READY_S = 300.0
"""Longest wait for all workers to have loaded their checkpoints, seconds."""
PAGE_S = 12 * 3600
"""How long the printed link to the dashboard lets one in, seconds. Source: a working day, as a session's."""
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
    with _listen() as listener:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        with running(settings, slots, say, stop, listener) as farm:
            if not stop.is_set():
                say(f"The farm is up; its data is in {farm.settings.data}. Ctrl+C stops it.")
                say(f"The dashboard is at {page_link(farm.settings, _url(listener))}")
                say("The link lets whoever has it in for twelve hours; `farm token create` makes other tokens.")
                say(f"The API is at {_url(listener)}/api/v1/openapi.json.")
                say('In another terminal: farm render "a cat on a green background" --wait -o out/')
            stop.wait()
            say("Stopping: running stages finish or are given back.")


@contextmanager
def running(
    settings: Settings,
    slots: Sequence[str] | None = None,
    say: Say = print,
    stop: threading.Event | None = None,
    listener: socket.socket | None = None,
) -> Iterator[Farm]:
    """The one-machine farm, from start to stop; yields a client once all workers are ready, or `stop` is set.

    The API answers what comes to `listener`; without one there is none. Raises as `up`.
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
    with Servers(settings, {"api_url": _url(listener)} if listener else {}) as servers:
        keeper = Keeper(servers, slots, listener)
        farm = Farm(servers.settings)
        try:
            say("Starting the workers: " + ", ".join(slots))
            # Entries of workers that were killed with the last farm would pass for those that start now.
            for gone in farm.ledger.workers():
                farm.ledger.unregister(gone.worker, gone.boot)
            if listener and (token := _first_token(servers.settings)):
                say("The API's first token, with every scope; it is not shown again:")
                say(token)
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


def _listen() -> socket.socket:
    """The socket of the API. It stays with the farm: while the API is started again, callers wait."""
    for port in API_PORTS:
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    taken = f"every port from {API_PORTS[0]} to {API_PORTS[-1]} of 127.0.0.1 is taken"
    raise Unavailable(taken, hint="end what listens there: the API needs one")


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def api_url(settings: Settings) -> str:
    """Where the API of the farm that runs in the data folder is; "" where it has none."""
    with suppress(OSError, ValueError, AttributeError):
        return str(json.loads((settings.data / CONNECTION_FILE).read_text()).get("api_url", ""))
    return ""


def page_link(settings: Settings, url: str) -> str:
    """The dashboard's address, with a token for twelve hours in the part that a browser sends to nobody."""
    server = Server(settings)
    try:
        return f"{url}/#token={Tokens(server).create('admin', ['admin'], PAGE_S)[1]}"
    finally:
        server.close()


def _first_token(settings: Settings) -> str:
    server = Server(settings, FAN)
    try:
        return Tokens(server).first()
    finally:
        server.close()


@dataclass
class Part:
    """A Python module that runs as a child of the farm, and ends with it."""

    words: list[str]
    log: Path
    fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self, settings: Settings) -> None:
        """Starts the process."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.words, "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=self.fds,
                env={**os.environ, **environment(settings)},
                start_new_session=True,
            )


class Keeper:
    """Keeps the supervisor, the API and the servers running, from a thread."""

    def __init__(self, servers: Servers, slots: Sequence[str], listener: socket.socket | None = None) -> None:
        self._servers, logs = servers, servers.settings.data / "logs"
        self.log = logs / "workers.log"
        supervisor = ["workers.supervisor", "--name", "local", *(word for slot in slots for word in ("--slot", slot))]
        self._parts = {"supervisor": Part(supervisor, self.log)}
        self._parts["feeder"] = Part(["farm.dataset.serve"], logs / "feeder.log")
        if listener is not None:
            fd = listener.fileno()
            self._parts["api"] = Part(["farm.api.serve", "--socket", str(fd)], logs / "api.log", (fd,))
        self._stopped, self._ended, self._lock = False, threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="keeper")

    def start(self) -> None:
        """Starts the supervisor and the API, and watches."""
        # From this thread, which lives as long as the farm: the kernel ends a child with the thread that forked it.
        for part in self._parts.values():
            part.start(self._servers.settings)
        self._thread.start()

    def stop(self) -> None:
        """Ends both by SIGTERM: open calls are answered, and the supervisor's children drain."""
        try:
            with self._lock:
                self._stopped = True
            living = [part.process for part in self._parts.values() if part.process and part.process.poll() is None]
            for process in living:
                process.terminate()
            for process in living:
                process.wait()
        finally:
            # Only now: what the thread started again gets a SIGTERM from the kernel when the thread ends.
            self._ended.set()
            if self._thread.ident is not None:
                self._thread.join()

    def _keep(self) -> None:
        while not self._ended.wait(RESTART_S):
            with self._lock:
                if not self._stopped:
                    self._mend()

    def _mend(self) -> None:
        # Each by itself: what cannot be started keeps nothing else from it.
        with _told():
            for name in self._servers.revive():
                _log.warning("server_restarted", server=name)
        for name, part in self._parts.items():
            with _told():
                if part.process is not None and part.process.poll() is not None:
                    _log.warning(f"{name}_restarted", status=part.process.returncode)
                    part.start(self._servers.settings)


@contextmanager
def _told() -> Iterator[None]:
    """Logs what could not be started."""
    try:
        yield
    except (FarmError, OSError) as error:
        _log.error("not_restarted", error=str(error))


def demo(
    settings: Settings,
    out: Path,
    seed: int | None,
    show: Callable[[list[JobHandle]], None],
    say: Say = print,
    *,
    stay: bool = False,
) -> list[JobHandle]:
    """Renders one four-stage chain and one chain that begins with an image; both results lie in `out` afterwards.

    Uses the farm that runs in the data folder, or starts one and stops it again: at once, or where it shall `stay`, so
    that its dashboard can be tried, at Ctrl+C. `show` displays jobs until they end.
    """
    with _reachable(settings, say, stay) as (farm, page):
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
        if page:
            say(f"The dashboard is at {page}")
            say("The farm goes on so that you can try it. Ctrl+C stops it.")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
            say("Stopping: running stages finish or are given back.")
        return jobs


@contextmanager
def _reachable(settings: Settings, say: Say, stay: bool) -> Iterator[tuple[Farm, str]]:
    """The running farm, or one that is started; with the link to its dashboard where that is to stay."""
    catalog = Catalog.load(settings)
    if _answers(settings):
        if url := api_url(settings):
            say(f"A farm runs already; its dashboard is at {page_link(settings, url)}")
        with Farm(settings) as farm:
            yield farm, ""
    elif stay:
        with _listen() as listener, running(settings, default_slots(catalog), say, None, listener) as farm:
            yield farm, page_link(farm.settings, _url(listener))
    else:
        shown = {stage["kind"] for stage in catalog.presets["hires"].stages}
        slots = [slot for slot in default_slots(catalog) if slot.partition(".")[0] in shown]
        with running(settings, slots, say) as farm:
            yield farm, ""


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
