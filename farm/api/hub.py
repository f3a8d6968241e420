"""Where are the jobs that somebody watches, as soon as it changes?

One task reads the ledger's event stream for all watchers; another looks twice a second at running jobs, for a step
leaves no event, and a third now and then at queued ones, whose place in the line changes with every other job. What a
watcher gets is a job's whole snapshot, so nothing depends on what came before. Snapshots are read and offered under one
lock, so no feed ever gets an older state after a newer one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import anyio
import structlog

from farm.api.feed import Feed, Told
from farm.api.readings import Readings, newest_of
from farm.api.views import Snapshot
from farm.errors import Busy, FarmError, RateLimited
from farm.records import PAUSING, JobRecord

GATHER_S = 0.05
"""Pause between two looks for events, seconds: what happens meanwhile is told together."""
GATHER_EACH_S, GATHER_MAX_S = 0.001, 0.5
"""So much longer for each watcher, and the longest: what is told at once costs each of them one write. Source: with 200
watchers and 50 submits per second, a quarter of the process's time was writing."""
LOOK_S = 0.5
"""Pause between two looks at the running jobs, seconds."""
LINE_S = 2.0
"""Pause between two looks at the queued jobs, seconds."""
RETRY_S = 0.5
"""Pause after the ledger did not answer, seconds."""
MAX_LOOKED_AT = 200
"""Running jobs that one look reads, and queued ones that somebody watches alone; further ones have their turn later."""
MAX_IN_LINE = 2000
"""Queued jobs that are looked at again though nobody watches one of them alone; `CHUNK` of them in one look."""
MANY = 1000
"""Events that one look brings at most: with so many, some may have passed unseen."""
MAX_FEEDS, MAX_FEEDS_EACH = 1000, 250
"""Watchers at the same time, and those of one owner."""
CHUNK = 50
"""Jobs that are read in one go, so that others get at the lock in between."""
MAX_ENDED = 10_000
"""Ends that are made up for where the stream keeps less than has happened: as many as it has events."""
_log = structlog.get_logger(__name__)


class Hub:
    """The watchers of one API process."""

    def __init__(self, readings: Readings) -> None:
        self.readings = readings
        self._feeds: set[Feed] = set()
        self._reading = anyio.Lock()
        self._position = ""
        # What was told last of each, as a hash.
        self._running: dict[str, int] = {}
        self._queued: dict[str, int] = {}

    async def run(self) -> None:
        """Serves the watchers until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._forever, self._tail)
            tasks.start_soon(self._forever, self._look)
            tasks.start_soon(self._forever, self._look_at_the_line)

    @contextmanager
    def watching(self, feed: Feed) -> Iterator[None]:
        """Offers `feed` what it wants, meanwhile.

        Raises:
            RateLimited: (`too_many_streams`) its owner has very many already.
            Busy: very many watch already.
        """
        if Counter(one.owner for one in self._feeds)[feed.owner] >= MAX_FEEDS_EACH:
            raise RateLimited(f"{MAX_FEEDS_EACH} event streams of this owner are open", code="too_many_streams")
        if len(self._feeds) >= MAX_FEEDS:
            raise Busy()
        self._feeds.add(feed)
        try:
            yield
        finally:
            self._feeds.discard(feed)

    async def follow(self, jobs: Iterable[str]) -> None:
        """Has jobs be looked at for a watcher who was told of them before, maybe by another process.

        Nothing else would: steps and places in the line leave no event.

        Raises:
            Unavailable: the ledger does not answer.
        """
        left = iter(jobs)
        while chunk := list(islice(left, CHUNK)):
            async with self._reading:
                for record in await self.readings.as_of(dict.fromkeys(chunk, ""), self._position):
                    self._note(record, new=True)

    async def catch_up(self, feed: Feed, needed: Mapping[str, str] | None = None) -> list[Told]:
        """The next events of what `feed` begins with: of the jobs in `needed`, where it begins now.

        Only the last of all has an id: a reader that breaks off before has not caught up. What has been offered since
        it began is told afterwards, and not here.

        Raises:
            Unavailable: the ledger does not answer.
        """
        if needed is not None:
            feed.needed, feed.position = dict(needed), self._position
        chunk = dict(islice(feed.needed.items(), CHUNK))
        async with self._reading:
            found = await self.readings.as_of(chunk, self._position)
            fresh = [
                Told("", record.state, self._note(record, new=True))
                for record in found
                if feed.wants(record) and record.job not in feed.pending
            ]
        for job in chunk:
            del feed.needed[job]
        if fresh and not feed.needed:
            fresh[-1] = replace(fresh[-1], id=feed.position)
        return fresh

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
            newest = await self._made_up_for() | newest
        wide, watched = any(feed.job is None for feed in self._feeds), {feed.job for feed in self._feeds}
        self.readings.stir(newest, lambda job: wide or job in watched)
        await self._tell({job: place for job, place in newest.items() if wide or job in watched}, rows[-1].id)
        self._position = rows[-1].id
        await anyio.sleep(min(GATHER_MAX_S, GATHER_S + GATHER_EACH_S * len(self._feeds)))

    async def _made_up_for(self) -> dict[str, str]:
        """The jobs that may have changed unseen, for more has happened than the stream keeps: what is known, what has
        ended since, and the newest that have not."""
        ended = await self.readings.ended_since(self._position, MAX_ENDED)
        return dict.fromkeys(self.readings.known(), "") | ended | await self.readings.unended(None)

    async def _look(self) -> None:
        """One look at the running jobs, whose steps leave no event."""
        await anyio.sleep(LOOK_S)
        await self._tell(dict.fromkeys(islice(self._running, MAX_LOOKED_AT), ""), self._position)

    async def _look_at_the_line(self) -> None:
        """One look at queued jobs, first at those that somebody waits for alone; each look puts them last."""
        await anyio.sleep(LINE_S)
        alone = {feed.job for feed in self._feeds}
        first = islice((job for job in self._queued if job in alone), MAX_LOOKED_AT)
        others = islice((job for job in self._queued if job not in alone), CHUNK)
        await self._tell(dict.fromkeys([*first, *others], ""), self._position)

    async def _tell(self, places: Mapping[str, str], position: str) -> None:
        """Offers all feeds the jobs in `places`, as they are now."""
        left = iter(places)
        while chunk := list(islice(left, CHUNK)):
            async with self._reading:
                found = await self.readings.read(chunk, position)
                for job in set(chunk) - {record.job for record in found}:
                    self._forget(job)  # it has passed its retention
                for record in found:
                    self._offer(record, places[record.job], self._feeds)
                await self.readings.watch([record for record in found if record.job in self._running])

    def _offer(self, record: JobRecord, place: str, feeds: Iterable[Feed]) -> None:
        """Offers the record to those of `feeds` that want it; without a place only where it has changed."""
        wanting = [feed for feed in feeds if feed.wants(record)]
        before = self._forget(record.job)
        if not wanting:
            return  # nobody looks at it, so its steps are not followed
        data = self._note(record)
        if place or hash(data) != before:
            for feed in wanting:
                feed.offer(record.job, Told(place, record.state, data))

    def _note(self, record: JobRecord, *, new: bool = False) -> str:
        """The record's snapshot as JSON; what runs or is queued is looked at again.

        `new`: it is for a watcher who has just come. Others have still to be told whatever is new in it.
        """
        data = Snapshot.of(record).model_dump_json()
        # A stage may still run of a job that is paused: its end leaves no event that would say so.
        state = "running" if record.state == "paused" and record.waits_for == PAUSING else record.state
        followed = {"running": self._running, "queued": self._queued}.get(state)
        if followed is None or (new and record.job in followed):
            return data
        if followed is self._running or len(followed) < MAX_IN_LINE or self._is_watched_alone(record.job):
            followed[record.job] = hash(data)
        return data

    def _is_watched_alone(self, job: str) -> bool:
        return any(feed.job == job for feed in self._feeds)

    def _forget(self, job: str) -> int | None:
        """What was told last of a followed job, as a hash; it is followed no more."""
        was_running, was_queued = self._running.pop(job, None), self._queued.pop(job, None)
        return was_queued if was_running is None else was_running
