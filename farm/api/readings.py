"""What does the ledger say of watched jobs, and how is it asked no more often than needed?

What was read of a job is known until its next event, so that a hundred watchers who come at once cost one reading. A
place in the ledger's event stream is an id of two numbers, `<milliseconds>-<count>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import anyio

from farm.api.threads import in_thread
from farm.client import Farm
from farm.errors import NotFound
from farm.records import Event, JobRecord, place_of

BLOCK_MS = 1000
"""How long one look for further events blocks, milliseconds; shorter than the ledger's socket timeout."""
NEWEST = 100
"""Unended jobs of each state that a watcher of everything begins with."""
LISTED_S = 1.0
"""How long a list of those serves whoever comes, seconds."""
MAX_KNOWN = 2000
"""Jobs whose last reading is kept."""
NOW = f"{2**64 - 1}-0"
"""The place behind all events: what is needed as of it is read anew."""


class Readings:
    """The ledger as watchers read it. Every call may raise Unavailable."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._known: dict[str, tuple[str, JobRecord]] = {}
        self._listed, self._stirred = dict[str, str](), dict[str, str]()
        self._listed_at, self._listing = -math.inf, anyio.Lock()

    async def read(self, jobs: Iterable[str], position: str) -> list[JobRecord]:
        """The records of `jobs`, but of those past their retention; `position`: a place that they cover."""
        asked = list(jobs)
        found = await in_thread(self._records, asked) if asked else []
        for job in asked:
            self._known.pop(job, None)
        self._known |= {record.job: (position, record) for record in found}
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        return found

    async def as_of(self, needed: Mapping[str, str], position: str) -> list[JobRecord]:
        """The records of the jobs in `needed`, each at least as it was at its place there ("" for any)."""
        known = {job: self._known[job] for job in needed if job in self._known}
        missing = [
            job for job, place in needed.items() if job not in known or place_of(known[job][0]) < place_of(place)
        ]
        found = {job: record for job, (_, record) in known.items()}
        found |= {record.job: record for record in await self.read(missing, position)}
        return [found[job] for job in needed if job in found]

    def stir(self, newest: Mapping[str, str], watched: Callable[[str], bool]) -> None:
        """Takes note of jobs with events, and of the last one's place; what nobody watches is known no more."""
        if self._listing.locked() or anyio.current_time() - self._listed_at <= LISTED_S:
            self._stirred |= newest
        for job in newest:
            if not watched(job):
                self._known.pop(job, None)

    def known(self) -> list[str]:
        """The jobs of which something is known."""
        return list(self._known)

    async def events(self, after: str) -> list[Event]:
        """The events of all jobs after the place `after`, waited for a second."""
        return await in_thread(self._farm.ledger.events, None, after, BLOCK_MS)

    async def newest(self) -> str:
        """The place of the last event there is."""
        return await in_thread(self._farm.ledger.last_event)

    async def reaches(self, after: str) -> bool:
        """Whether the stream still has all that came after the place `after`."""
        return await in_thread(self._farm.ledger.keeps, after)

    async def since(self, after: str) -> dict[str, str] | None:
        """The jobs with events after `after`, each with the place of its last; None where these are no longer there."""
        return await in_thread(self._since, after) if await self.reaches(after) else None

    def _since(self, after: str) -> dict[str, str]:
        found: dict[str, str] = {}
        while rows := self._farm.ledger.events(None, after):
            found = newest_of(rows, found)
            after = rows[-1].id
        return found

    async def unended(self) -> dict[str, str]:
        """The newest jobs that have not ended, the oldest first, and what has had events since it was looked."""
        async with self._listing:
            if anyio.current_time() - self._listed_at > LISTED_S:
                self._stirred = {}
                self._listed, self._listed_at = await in_thread(self._list), anyio.current_time()
        return self._listed | self._stirred

    def _list(self) -> dict[str, str]:
        states = ("queued", "paused", "running")
        found = [record for state in states for record in self._farm.ledger.jobs(state=state, limit=NEWEST)]
        return {record.job: "" for record in sorted(found, key=lambda record: record.created_ms)}

    def _records(self, jobs: list[str]) -> list[JobRecord]:
        found = []
        for job in jobs:
            with suppress(NotFound):
                found.append(self._farm.ledger.job(job))
        return found


def newest_of(rows: Iterable[Event], before: dict[str, str] | None = None) -> dict[str, str]:
    """The jobs of the events, in the order of each one's last, with its place; after those in `before`."""
    found = before or {}
    for row in rows:
        found.pop(row.job, None)
        found[row.job] = row.id
    return found
