"""How is a dataset followed until it is done, and how is it told of in a line?"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from farm.cli.outcome import Outcome, is_plain, load_settings, open_farm, say, settings_here
from farm.errors import StageFailed

if TYPE_CHECKING:
    from farm.dataset.desk import Datasets
    from farm.dataset.status import Status
    from farm.remote.datasets import RemoteDatasets
    from farm.remote.sync import RemoteFarm
    from farm.settings import Settings

    AnyDatasets = Datasets | RemoteDatasets

TURN_S = 8.0
"""So long the farm's own feeder has to see that a dataset is to run, before a command feeds it itself, seconds."""
UNFED_S = 15.0
"""So long a dataset may have nobody who feeds it before that is told, seconds."""
LOOK_S = 1.0
"""Pause between two looks at a dataset that is waited for, seconds."""


@contextmanager
def open_datasets() -> Iterator[AnyDatasets]:
    """The datasets of the farm that the settings name: by FARM_URL over HTTP, else by its own servers."""
    if load_settings().url:
        with open_farm() as farm:
            from farm.remote.datasets import RemoteDatasets

            yield RemoteDatasets(cast("RemoteFarm", farm))
    else:
        with opened("dataset") as (desk, _):
            yield desk


@contextmanager
def opened(command: str) -> Iterator[tuple[Datasets, Any]]:
    """The datasets of the farm that the settings name, and the farm."""
    settings = settings_here(command)
    from farm.dataset.shelves import installed

    with installed():
        from farm.client import Farm
        from farm.dataset.desk import Datasets
    with closing(Farm(settings)) as farm:
        yield Datasets(farm), farm


def line_of(status: Status) -> str:
    """A dataset in a line."""
    if status.refused is not None:
        return f"{status.name}  refused: {status.refused['message']}"
    if status.state == "planning":
        return f"{status.name}  planning, {status.rows:,} rows read"
    told = [
        f"{status.name}  {status.state}",
        f"{status.done + status.open.get('done', 0):,} of {status.samples:,} samples",
        f"{status.failed:,} failed" if status.failed else "",
        f"{status.shards_done} of {status.shards} shard{'s' * (status.shards != 1)}",
        f"{status.size_bytes / 1e6:,.1f} MB",
        f"{status.rate:.1f} a second" if status.rate else "",
        f"{span(status.eta_s)} left" if status.eta_s else "",
        f"does not go on: {status.trouble['message']}" if status.trouble else "",
    ]
    return ", ".join(filter(None, told))


def unfed(status: Status) -> str:
    """What to do where a dataset waits for somebody who plans or feeds it; "" where it does not."""
    waits = status.state in ("planning", "running") and not status.fed and status.trouble is None
    return "nobody plans or feeds it now; if that lasts, `farm up` does, or `farm dataset feed`" if waits else ""


def span(seconds: float | None) -> str:
    """A time as people say it."""
    left = seconds or 0.0
    if left < 120:
        return f"{left:.0f} s"
    if left < 7200:
        return f"{left / 60:.0f} min"
    return f"{left / 3600:.1f} h"


def fed(desk: Datasets, settings: Settings, name: str) -> Outcome:
    """Follows a dataset until it is done, feeding it where nobody else does."""
    from farm.dataset.serve import feed as run_feeder

    stop, wrong = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            if desk.has_feeder():  # which sees it within a moment
                stop.wait(TURN_S)
            run_feeder(settings, stop, name)
        except BaseException as error:  # noqa: BLE001 — raised again where it is waited for
            wrong.append(error)

    thread = threading.Thread(target=work, name="feeder")
    thread.start()
    try:
        found = followed(desk, name, thread.is_alive)
    finally:
        stop.set()
        thread.join()
    if wrong:
        raise wrong[0]
    return found


def followed(desk: AnyDatasets, name: str, is_fed: Callable[[], bool] | None = None) -> Outcome:
    """Shows how far a dataset is until it is done, or until `is_fed` says that its feeder has ended."""
    try:
        found = _followed(desk, name, is_fed)
    except KeyboardInterrupt:
        alone = is_fed is not None and not cast("Datasets", desk).has_feeder()
        others = f"the farm goes on with it; `farm dataset pause {name}` holds it"
        say(f"left; {f'`farm dataset run {name}` goes on with it' if alone else others}")
        raise
    failed = f"{found.failed:,} samples could not be made" if found.state == "done" and found.failed else ""
    hint = f"`farm dataset status {name}` says why, `farm dataset retry {name}` tries them again"
    error = StageFailed(failed, code="job_failed", hint=hint) if failed else None
    return Outcome(asdict(found), [line_of(found)], error)


def _followed(desk: AnyDatasets, name: str, is_fed: Callable[[], bool] | None) -> Status:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    plain, last, unfed = is_plain(sys.stderr), "", Unfed(name)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=plain) as bars:
        bar = bars.add_task(name, total=None, told="")
        while True:
            alive = is_fed is None or is_fed()
            status = desk.status(name)
            if is_fed is None:
                unfed.look(status)
            ended = status.done + status.failed + sum(status.open.get(one, 0) for one in ("done", "failed"))
            rate = f"{status.rate:.1f}/s" if status.rate else ""
            left = f"{span(status.eta_s)} left" if status.eta_s else ""
            told = f"{status.failed} failed" if status.failed else ""
            bars.update(bar, total=status.samples, completed=ended, told="  ".join(filter(None, (rate, left, told))))
            if plain and (line := line_of(status)) != last:
                say(line)
                last = line
            if status.state != "running" or not alive:
                return status
            time.sleep(LOOK_S)


class Unfed:
    """Tells once that a dataset waits for somebody who plans or feeds it."""

    def __init__(self, name: str) -> None:
        self._name, self._since, self._told = name, time.monotonic(), False

    def look(self, status: Status) -> None:
        """Looks at how far it is."""
        now = time.monotonic()
        if status.fed:
            self._since = now
        elif now - self._since > UNFED_S and not self._told:
            self._told = True
            say(f"{self._name} waits: nobody feeds that farm's datasets; `farm up` there does, or `farm dataset feed`")
