"""What does one watcher still have to be told?

At most one snapshot of each job, the newest: a reader that is slow misses what was in between, and costs no memory. Of
what it begins with only the names wait, and each is read when its turn has come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from farm.records import JobRecord

AT_ONCE = 20
"""Events that are sent together: some 10 KiB."""


@dataclass(frozen=True)
class Told:
    """One event for a watcher: the snapshot as JSON, and its place in the ledger's stream, "" for a mere step."""

    id: str
    state: str
    data: str


@dataclass(eq=False)
class Feed:
    """What waits for one watcher, in the order of the stream. `job` is given where it watches a single one.

    `needed`: the jobs of which it has yet to be told where they were at `position`, each at least as it was at its own
    place in the stream.
    """

    wants: Callable[[JobRecord], bool]
    owner: str = ""
    job: str | None = None
    needed: dict[str, str] = field(default_factory=dict)
    position: str = ""
    pending: dict[str, Told] = field(default_factory=dict)
    awake: anyio.Event = field(default_factory=anyio.Event)

    def offer(self, job: str, told: Told) -> None:
        """Keeps the newest of each job: whatever stands behind an id that was sent has a later one."""
        if told.id:
            self.pending.pop(job, None)
        elif job in self.pending:
            # A step's snapshot takes the place and the id of the event that it makes obsolete.
            told = Told(self.pending[job].id, told.state, told.data)
        self.pending[job] = told
        self.awake.set()

    async def take(self) -> list[Told]:
        """The next events, waited for. Few, so that a slow reader gets the others as they are when it comes again."""
        while not self.pending:
            self.awake = anyio.Event()
            await self.awake.wait()
        return [self.pending.pop(job) for job in list(itertools.islice(self.pending, AT_ONCE))]
