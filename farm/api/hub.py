"""Where are the jobs that somebody watches, as soon as it changes?

One task reads the ledger's event stream for all watchers; another looks twice a second at running jobs, for a step
leaves no event. What a watcher gets is a job's whole snapshot, so nothing depends on what came before. Snapshots are
read and offered under one lock, so no feed ever gets an older state after a newer one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import anyio
import structlog

from farm.api.feed import Feed, Told
from farm.api.readings import Readings, newest_of
from farm.api.views import Snapshot
from farm.errors import FarmError, Unavailable
from farm.records import JobRecord

GATHER_S = 0.05
"""Pause between two looks for events, seconds: what happens meanwhile is told together."""
GATHER_EACH_S, GATHER_MAX_S = 0.001, 0.5
"""So much longer for each watcher, and the longest: what is told at once costs each of them one write. Source: with 200
watchers and 50 submits per second, a quarter of the process's time was writing."""
LOOK_S = 0.5
"""Pause between two looks at the running jobs, seconds."""
RETRY_S = 0.5
"""Pause after the ledger did not answer, seconds."""
MAX_LOOKED_AT = 200
"""Running jobs that one look reads."""
MANY = 1000
"""Events that one look brings at most: with so many, some may have passed unseen."""
MAX_FEEDS = 1000
"""Watchers at the same time."""
CHUNK = 50
"""Jobs that are read in one go, so that others get at the lock in between."""
_log = structlog.get_logger(__name__)


class Hub:
    """The watchers of one API process."""

    def __init__(self, readings: Readings) -> None:
        self.readings = readings
        self._feeds: set[Feed] = set()
        self._reading = anyio.Lock()
        self._position = ""
        self._running: dict[str, str] = {}

    async def run(self) -> None:
        """Serves the watchers until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._forever, self._tail)
            tasks.start_soon(self._forever, self._look)

    @contextmanager
    def watching(self, feed: Feed) -> Iterator[None]:
        """Offers `feed` what it wants, meanwhile.

        Raises:
            Unavailable: very many watch already.
        """
        if len(self._feeds) >= MAX_FEEDS:
            raise Unavailable("too many watch at once")
        self._feeds.add(feed)
        try:
            yield
        finally:
            self._feeds.discard(feed)

    async def catch_up(self, feed: Feed, needed: Mapping[str, str]) -> None:
        """Begins `feed` with the jobs in `needed`, each at least as it was at its place there.

        Raises:
            Unavailable: the ledger does not answer.
        """
        position, fresh, left = self._position, dict[str, Told](), iter(needed.items())
        while chunk := dict(islice(left, CHUNK)):
            async with self._reading:
                for record in await self.readings.as_of(chunk, self._position):
                    if feed.wants(record):
                        fresh[record.job] = Told("", record.state, self._note(record, new=True))
        feed.begin(fresh, position)

    async def _forever(self, turn: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await turn()
            except FarmError as error:
                _log.warning("hub", error=error.code)
                await anyio.sleep(RETRY_S)
            except Exception:  # noqa: BLE001 — without this task nobody would hear of anything any more
                _log.exception("hub")
                await anyio.sleep(RETRY_S)

    async def _tail(self) -> None:
        """One look for further events."""
        self._position = self._position or await self.readings.newest()
        rows = await self.readings.events(self._position)
        if not rows:
            return
        newest = newest_of(rows)
        if len(rows) >= MANY and not await self.readings.reaches(self._position):
            # More has happened than the stream keeps: whatever is known may have changed.
            newest = dict.fromkeys(self.readings.known(), "") | newest
        wide, watched = any(feed.job is None for feed in self._feeds), {feed.job for feed in self._feeds}
        self.readings.stir(newest, lambda job: wide or job in watched)
        await self._tell({job: place for job, place in newest.items() if wide or job in watched}, rows[-1].id)
        self._position = rows[-1].id
        await anyio.sleep(min(GATHER_MAX_S, GATHER_S + GATHER_EACH_S * len(self._feeds)))

    async def _look(self) -> None:
        """One look at the running jobs, whose steps leave no event."""
        await anyio.sleep(LOOK_S)
        await self._tell(dict.fromkeys(islice(self._running, MAX_LOOKED_AT), ""), self._position)

    async def _tell(self, places: Mapping[str, str], position: str) -> None:
        """Offers all feeds the jobs in `places`, as they are now."""
        left = iter(places)
        while chunk := list(islice(left, CHUNK)):
            async with self._reading:
                found = await self.readings.read(chunk, position)
                for job in set(chunk) - {record.job for record in found}:
                    self._running.pop(job, None)  # it has passed its retention
                for record in found:
                    self._offer(record, places[record.job], self._feeds)
                await self.readings.watch([record for record in found if record.job in self._running])

    def _offer(self, record: JobRecord, place: str, feeds: Iterable[Feed]) -> None:
        """Offers the record to those of `feeds` that want it; without a place only where it has changed."""
        wanting = [feed for feed in feeds if feed.wants(record)]
        before = self._running.pop(record.job, None)
        if not wanting:
            return  # nobody looks at it, so its steps are not followed
        data = self._note(record)
        if place or data != before:
            for feed in wanting:
                feed.offer(record.job, Told(place, record.state, data))

    def _note(self, record: JobRecord, *, new: bool = False) -> str:
        """The record's snapshot as JSON; what runs is looked at again.

        `new`: it is for a watcher who has just come. Others have still to be told whatever is new in it.
        """
        data = Snapshot.of(record).model_dump_json()
        if record.state == "running" and not (new and record.job in self._running):
            self._running[record.job] = data
        return data
