"""What does the ledger say of watched jobs, and how is it asked no more often than needed?

What was read of a job is known until its next event, so that a hundred watchers who come at once cost one reading. A
place in the ledger's event stream is an id of two numbers, `<milliseconds>-<count>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import anyio

from farm.api.threads import in_thread
from farm.client import Farm
from farm.records import Event, JobRecord, place_of

BLOCK_MS = 1000
"""How long one look for further events blocks, milliseconds; shorter than the ledger's socket timeout."""
NEWEST = 100
"""Unended jobs of each state that a watcher of everything begins with."""
LISTED_S = 1.0
"""How long a list of those serves whoever comes, seconds."""
MAX_KNOWN = 2000
"""Jobs whose last reading is kept."""
GONE = "deleted"
"""The state in which a deleted job is told, though it has no record any more."""
MAX_GONE = 10_000
"""Deleted jobs that are told so: as many as the ledger's stream has events."""
NOW = f"{2**64 - 1}-0"
"""The place behind all events: what is needed as of it is read anew."""


@dataclass
class Listed:
    """Jobs that were listed at a time, and those with events since; not old while it is being made."""

    at: float = math.inf
    jobs: dict[str, str] = field(default_factory=dict)
    stirred: dict[str, str] = field(default_factory=dict)

    def is_old(self) -> bool:
        """Whether it has served for long enough."""
        return anyio.current_time() - self.at > LISTED_S


class Readings:
    """The ledger as watchers read it. Every call may raise Unavailable."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._known: dict[str, tuple[str, JobRecord]] = {}
        self._lists, self._listing = dict[str | None, Listed](), anyio.Lock()
        self._gone: dict[str, JobRecord] = {}

    async def read(self, jobs: Iterable[str], position: str) -> list[JobRecord]:
        """The records of `jobs`, but of those past their retention; `position`: a place that they cover.

        Of a job that was deleted since something was read here there is a record that says so.
        """
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

    async def watch(self, running: Iterable[JobRecord]) -> None:
        """Has pictures made of the jobs' stages, also of those to come: the next one's first beat is to know it."""
        if execs := [stage.exec for record in running for stage in record.stages[record.at :]]:
            await in_thread(self._farm.ledger.watch, execs)

    def stir(self, newest: Mapping[str, str], watched: Callable[[str], bool]) -> None:
        """Takes note of jobs with events, and of the last one's place; what nobody watches is known no more."""
        self._lists = {owner: one for owner, one in self._lists.items() if not one.is_old()}
        for one in self._lists.values():
            one.stirred |= newest
        for job in newest:
            if not watched(job):
                self._known.pop(job, None)

    def known(self) -> list[str]:
        """The jobs of which something is known."""
        return list(self._known)

    async def events(self, after: str) -> list[Event]:
        """The events of all jobs after the place `after`, waited for a second."""
        return self._noted(await in_thread(self._farm.ledger.events, None, after, BLOCK_MS))

    async def newest(self) -> str:
        """The place of the last event there is."""
        return await in_thread(self._farm.ledger.last_event)

    async def reaches(self, after: str) -> bool:
        """Whether the stream still has all that came after the place `after`."""
        return await in_thread(self._farm.ledger.keeps, after)

    async def since(self, after: str) -> dict[str, str] | None:
        """The jobs with events after `after`, each with the place of its last; None where these are no longer there."""
        if not await self.reaches(after):
            return None
        return newest_of(self._noted(await in_thread(self._since, after)))

    async def ended_since(self, after: str, most: int) -> dict[str, str]:
        """The newest of the jobs that have ended since the place `after`, at most so many, the earliest first."""
        return dict.fromkeys(await in_thread(self._farm.ledger.ended, place_of(after)[0], most), "")

    def _since(self, after: str) -> list[Event]:
        found: list[Event] = []
        while rows := self._farm.ledger.events(None, after):
            found += rows
            after = rows[-1].id
        return found

    async def unended(self, owner: str | None) -> dict[str, str]:
        """The newest jobs of the owner (of all for None) that have not ended, the oldest first, and what has had events
        since it was looked."""
        async with self._listing:
            found = self._lists.get(owner)
            if found is None or found.is_old():
                # There before it is filled: what happens meanwhile is noted in it.
                found = self._lists[owner] = Listed()
                found.jobs = await in_thread(self._list, owner)
                found.at = anyio.current_time()
        return found.jobs | found.stirred

    def _list(self, owner: str | None) -> dict[str, str]:
        states = ("queued", "paused", "running")
        found = [one for state in states for one in self._farm.ledger.jobs(state=state, owner=owner, limit=NEWEST)]
        return {record.job: "" for record in sorted(found, key=lambda record: record.created_ms)}

    def _records(self, jobs: list[str]) -> list[JobRecord]:
        found = {record.job: record for record in self._farm.ledger.read(jobs)}
        gone = self._gone
        return [record for job in jobs if (record := found.get(job) or gone.get(job))]

    def _noted(self, rows: list[Event]) -> list[Event]:
        """`rows`; which jobs they tell to be deleted is noted, for nobody can look that up."""
        if found := {row.job: _gone(row) for row in rows if row.type == GONE}:
            gone = self._gone | found
            # A new mapping: threads read the old one meanwhile.
            self._gone = dict(islice(gone.items(), max(0, len(gone) - MAX_GONE), None))
        return rows


def _gone(row: Event) -> JobRecord:
    """What is left to tell of the job that an event says to be deleted."""
    return JobRecord(
        job=row.job, state=GONE, spec="", run=row.run, lane="", priority=0, created_ms=0, deadline_ms=0, started_ms=0,
        ended_ms=row.t, at=row.stage, n=row.stage + 1, code="", message="", idem="", outputs=(), owner=row.owner,
    )  # fmt: skip


def newest_of(rows: Iterable[Event]) -> dict[str, str]:
    """The jobs of the events, in the order of each one's last, with its place."""
    found: dict[str, str] = {}
    for row in rows:
        found.pop(row.job, None)
        found[row.job] = row.id
    return found
