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
from contextlib import suppress

import structlog

from farm.client import Farm
from farm.dataset.asking import Stopped, carry_out, is_asked
from farm.dataset.feeding import Feeder
from farm.dataset.folder import Folder, datasets
from farm.dataset.seats import Seats
from farm.errors import FarmError, NotFound, Unavailable
from farm.log import log_to_stderr
from farm.parent import die_with_parent
from farm.settings import Settings

_log = structlog.get_logger(__name__)
ROUND_S = 0.2
"""Pause between two rounds in which nothing moved, seconds."""
LOOK_S = 2.0
"""How often new datasets to feed are looked for, seconds."""


def feed(settings: Settings, stop: threading.Event, only: str | None = None) -> None:
    """Feeds the datasets that are to run, or `only` one until it is done, until `stop`.

    Raises:
        NotFound: there is no dataset `only`.
        Unavailable: at the start a server does not answer; later it waits for them.
    """
    farm, seats = Farm(settings), Seats(settings)
    feeders: dict[str, Feeder] = {}
    planning = Planning(settings, seats, stop)
    looked, trouble = 0.0, ""
    with seats.held():
        try:
            while not stop.is_set():
                moved = False
                try:
                    if only is not None and not feeders and not seats.take(only):
                        stop.wait(1.0)
                        continue
                    if only is not None and not feeders:
                        feeders[only] = Feeder(farm, only, settings.dataset_open)
                    if only is None and time.monotonic() - looked > LOOK_S:
                        _look(farm, seats, feeders, planning, settings)
                        looked = time.monotonic()
                    for name, feeder in list(feeders.items()):
                        if not seats.keeps(name):
                            _log.warning("dataset_taken", dataset=name)
                            del feeders[name]
                            continue
                        moved = _round(name, feeder, feeders, seats) or moved
                        if only is not None and feeder.is_over:
                            return
                    found = ""
                except Unavailable as error:
                    found = error.code
                if found and found != trouble:
                    _log.warning("feeder", error=found)
                trouble = found
                if not moved:
                    stop.wait(1.0 if found else ROUND_S)
        finally:
            farm.close()


def _round(name: str, feeder: Feeder, feeders: dict[str, Feeder], seats: Seats) -> bool:
    """One round of one dataset; whether anything moved. Raises Unavailable."""
    moved, gone = False, False
    try:
        moved = feeder.tick()
    except NotFound:
        gone = True
        _log.warning("dataset_deleted", dataset=name)
    if gone or feeder.is_over:
        _log.info("dataset_left", dataset=name)
        del feeders[name]
        seats.leave(name)
    return moved


class Planning:
    """Plans what was asked for, one dataset at a time, in a thread: feeding goes on meanwhile."""

    def __init__(self, settings: Settings, seats: Seats, stop: threading.Event) -> None:
        self._settings, self._seats, self._stop = settings, seats, stop
        self._thread: threading.Thread | None = None

    def begin(self, name: str) -> None:
        """Plans the dataset, if none is being planned."""
        if self._thread is None or not self._thread.is_alive():
            if not self._seats.take(name):
                return
            self._thread = threading.Thread(target=self._plan, args=(name,), name="planning", daemon=True)
            self._thread.start()

    def _plan(self, name: str) -> None:
        farm = Farm(self._settings)
        try:
            carry_out(farm, name, self._stop.is_set)
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001 — it is tried again, by this process or the next
            _log.error("not_planned", dataset=name, error=type(error).__name__, exc_info=True)
        finally:
            farm.close()
            with suppress(Unavailable):
                self._seats.leave(name)


def _look(farm: Farm, seats: Seats, feeders: dict[str, Feeder], planning: Planning, settings: Settings) -> None:
    """Begins to feed datasets that are to run and that nobody feeds, and to plan what was asked for."""
    for name in datasets(farm.store):
        if name in feeders:
            continue
        if (folder := Folder(farm.store, name)).planned() is None:
            if is_asked(folder):
                planning.begin(name)
            continue
        if folder.control().state not in ("running", "paused") or not seats.take(name):
            continue
        try:
            feeders[name] = Feeder(farm, name, settings.dataset_open)
        except FarmError as error:
            _log.error("dataset_not_fed", dataset=name, error=error.code, message=error.message)
            seats.leave(name)
            if isinstance(error, Unavailable):
                raise


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
