"""Which datasets are fed, and by which process?

`farm up` runs this beside the API; elsewhere `farm dataset feed` does, or `farm dataset run`, for its own dataset
alone. Each takes the seat of a dataset first (see `farm.dataset.seats`).
"""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import structlog

from farm.client import Farm
from farm.dataset.asking import carry_out_apart, is_asked
from farm.dataset.feeding import Feeder
from farm.dataset.folder import Folder, datasets
from farm.dataset.leftovers import EVERY_S, clear
from farm.dataset.metrics import serve_metrics
from farm.dataset.seats import ANY, Seats
from farm.errors import Busy, FarmError, NotFound, Unavailable
from farm.log import log_to_stderr
from farm.parent import die_with_parent
from farm.settings import Settings

_log = structlog.get_logger(__name__)
ROUND_S = 0.2
"""Pause between two rounds in which nothing moved, seconds."""
AGAIN_S = 5.0
"""What could not be planned is tried again after so long, seconds: meanwhile the others have their turn."""
REST_S = 20.0
"""What was wrong with a dataset is tried again after so long, seconds."""
LOOK_S = 2.0
"""How often new datasets to feed are looked for, seconds."""
DONE_AT_ONCE = 50
"""Of datasets that were done when they were looked at so many are looked at again each time, in turn: each is a request
for which those that are fed wait."""


def feed(settings: Settings, stop: threading.Event, only: str | None = None) -> None:
    """Feeds the datasets that are to run, or `only` one until it is done, until `stop`; waits for servers.

    Raises:
        NotFound: there is no dataset `only`.
    """
    feeding = Feeding(settings, stop, only)
    if settings.dataset_metrics_port and only is None:  # whoever feeds all of them has the port
        serve_metrics(settings.dataset_metrics_port)
    try:
        feeding.run()
    finally:
        feeding.close()


class Feeding:
    """The datasets that this process feeds. What is wrong with one of them does not keep the others waiting."""

    def __init__(self, settings: Settings, stop: threading.Event, only: str | None) -> None:
        self._settings, self._stop, self._only = settings, stop, only
        self._farm, self._seats = Farm(settings), Seats(settings)
        self._planning = Planning(settings, self._seats, stop)
        self._feeders: dict[str, Feeder] = {}
        self._pool = ThreadPoolExecutor(1, "publishing")
        self._rests: dict[str, float] = {}
        self._done: dict[str, None] = {}
        """Datasets that were done at the last look, the one whose look was the longest ago first."""
        self._looked, self._cleared, self._trouble = -LOOK_S, -EVERY_S, ""
        self._clearing: threading.Thread | None = None

    def close(self) -> None:
        """Waits for what is being published, which looks at `stop`, and closes the connections."""
        self._pool.shutdown()
        self._farm.close()

    def run(self) -> None:
        """Rounds until the process is to stop, or the only dataset is done. Raises NotFound."""
        with self._seats.held():
            while not self._stop.is_set():
                moved, away = False, ""
                try:
                    self._look()
                except Unavailable as error:
                    away = error.code
                for name in list(self._feeders):
                    found = self._round(name)
                    if isinstance(found, Unavailable):
                        away = found.code
                    elif found is None and self._only is not None:
                        return
                    else:
                        moved = moved or bool(found)
                if away and away != self._trouble:
                    _log.warning("feeder", error=away)
                self._trouble = away
                if not moved:
                    self._stop.wait(1.0 if away else ROUND_S)

    def _look(self) -> None:
        """Begins to feed datasets that are to run and that nobody feeds, and to plan what was asked for."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        if self._only is None and self._seats.take(ANY):
            self._clear()
        names = datasets(self._farm.store) if self._only is None else [self._only]
        there = set(names)
        self._done = {name: None for name in self._done if name in there}
        later = set(list(self._done)[DONE_AT_ONCE:])
        for name in names:
            if name in self._feeders or name in later or time.monotonic() < self._rests.get(name, 0.0):
                continue
            self._done.pop(name, None)
            try:
                self._consider(name)
            except Unavailable:
                raise
            except NotFound:
                if self._only is not None:
                    raise
            except Exception as error:  # noqa: BLE001 — whatever is wrong with one, the others are fed
                self._rest(name, error)

    def _clear(self) -> None:
        """Has what is left of asking deleted now and then, by a thread: feeding goes on meanwhile."""
        if time.monotonic() - self._cleared < EVERY_S or (self._clearing is not None and self._clearing.is_alive()):
            return
        self._cleared = time.monotonic()
        # A daemon: where this process ends first, the next one deletes what is left.
        self._clearing = threading.Thread(target=_clear_left, args=(self._settings,), name="clearing", daemon=True)
        self._clearing.start()

    def _consider(self, name: str) -> None:
        """Begins to feed or plan a dataset, if it is to be. Raises NotFound, BadBlob, Unavailable."""
        folder = Folder(self._farm.store, name)
        control = folder.control()
        if self._only is None and control.state == "done":
            self._done[name] = None
            return
        plan = folder.planned()
        if self._only is None and plan is None:
            if is_asked(folder):
                self._planning.begin(name)
            return
        if plan and control.state == "running" and self._are_many(plan.owner):
            if not self._seats.holder(name):  # another process may feed it, and has fewer
                most = self._settings.max_fed_datasets
                folder.tell_trouble(Busy(f"{most} of its owner's are fed at a time; it waits until another is done"))
            self._rests[name] = time.monotonic() + REST_S
            return
        wanted = control.state == "running" or (control.state == "paused" and not control.held)
        if (wanted or self._only) and self._seats.take(name):
            try:
                self._feeders[name] = Feeder(self._farm, name, self._settings.dataset_open, self._pool, self._stop)
            except BaseException:
                self._leave(name)
                raise

    def _are_many(self, owner: str) -> bool:
        """Whether this process feeds as many datasets of an owner as it may; nobody in particular has no limit."""
        fed = sum(one.plan.owner == owner for one in self._feeders.values())
        return bool(owner) and 0 < self._settings.max_fed_datasets <= fed

    def _round(self, name: str) -> bool | Unavailable | None:
        """One round of one dataset: whether anything moved, or None where it is over, or what is away."""
        feeder = self._feeders[name]
        try:
            if not self._seats.keeps(name):
                _log.warning("dataset_taken", dataset=name)
                del self._feeders[name]
                return False
            moved = feeder.tick()
            if not feeder.is_over:
                return moved
            _log.info("dataset_done", dataset=name)
        except Unavailable as error:
            return error
        except NotFound:
            _log.info("dataset_deleted", dataset=name)
        except Exception as error:  # noqa: BLE001 — as in `_look`
            self._rest(name, error)
            return False
        self._leave(name)
        return None

    def _rest(self, name: str, error: Exception) -> None:
        """Leaves a dataset alone for a while, and says in its folder what is wrong."""
        told = error if isinstance(error, FarmError) else FarmError(f"{type(error).__name__}: {error}"[:500])
        _log.error("dataset_rests", dataset=name, error=told.code, message=told.message, exc_info=told is not error)
        self._rests[name] = time.monotonic() + REST_S
        with suppress(Unavailable):
            Folder(self._farm.store, name).tell_trouble(told)
        self._leave(name)

    def _leave(self, name: str) -> None:
        self._feeders.pop(name, None)
        with suppress(Unavailable):
            self._seats.leave(name)


def _clear_left(settings: Settings) -> None:
    """Deletes what is left of asking, on connections of its own: those of a feeder that stops are closed."""
    try:
        with closing(Farm(settings)) as farm:
            clear(farm.store, time.time())
    except Exception as error:  # noqa: BLE001 — whatever is wrong with what is left, datasets are fed
        _log.error("not_cleared", error=type(error).__name__, exc_info=True)


class Planning:
    """Has planned what was asked for, one dataset at a time, and watches it in a thread: feeding goes on meanwhile."""

    def __init__(self, settings: Settings, seats: Seats, stop: threading.Event) -> None:
        self._settings, self._seats, self._stop = settings, seats, stop
        self._thread: threading.Thread | None = None
        self._rests: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """Has the dataset planned, if none is being planned, and if it was not tried just now."""
        if self._thread is not None and self._thread.is_alive():
            return
        if time.monotonic() < self._rests.get(name, 0.0) or not self._seats.take(name):
            return
        # No daemon: the end of this process waits until the planner has ended and its files are gone.
        self._thread = threading.Thread(target=self._plan, args=(name,), name="planning")
        self._thread.start()

    def _is_over(self) -> bool:
        return self._stop.is_set() or not threading.main_thread().is_alive()

    def _plan(self, name: str) -> None:
        farm = Farm(self._settings)
        try:
            carry_out_apart(farm, name, self._is_over)
        except Exception as error:  # noqa: BLE001 — it is tried again, by this process or the next
            _log.error("not_planned", dataset=name, error=type(error).__name__, exc_info=True)
        finally:
            farm.close()
            self._rests[name] = time.monotonic() + AGAIN_S
            with suppress(Unavailable):
                self._seats.leave(name)


def main(argv: Sequence[str] | None = None) -> None:
    """The feeder's process beside a farm on one machine; people call `farm dataset feed`."""
    parser = argparse.ArgumentParser(prog="farm.dataset.serve", description=main.__doc__)
    parser.add_argument("--parent", type=int, required=True, help="pid of the process that it ends with")
    given = parser.parse_args(argv)
    die_with_parent(given.parent, signal.SIGTERM)
    settings = Settings.load()
    log_to_stderr(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    feed(settings, stop)


if __name__ == "__main__":
    main()
