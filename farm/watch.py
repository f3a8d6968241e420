"""What changes on the farm, as it changes?

Two things are looked at: the ledger's stream of events, which has every transition, and the jobs that run, whose steps
make no event. Whoever reads slowly misses what was in between, never where a job is now.
"""

from __future__ import annotations

from collections.abc import Iterator

from farm.errors import NotFound
from farm.handle import ROUND_S, patient
from farm.ledger import Ledger
from farm.records import ENDED, OPEN
from farm.snapshot import Snapshot

NEWEST = 100
"""Unended jobs of each state that a watcher of everything begins with. Source: as the API's (`farm.api.readings`)."""
QUIET_MS = 1000
"""How long one look for further events blocks while nothing runs, milliseconds; shorter than the socket's timeout."""


def changes_of(ledger: Ledger, run: str | None) -> Iterator[Snapshot]:
    """Where the jobs of a run, or all for None, are, whenever that changes; without end.

    Begins with where they are: all jobs of the run, or the newest that have not ended. Deleted jobs are not told.

    Raises:
        NotFound: there is no such run.
        Unavailable: the ledger was away for longer than `farm.handle.AWAY_S`.
    """
    after = patient(ledger.last_event)
    stirred = patient(lambda: _begin(ledger, run))
    told: dict[str, Snapshot] = {}
    while True:
        running = [job for job, one in told.items() if one.state == "running"]
        looked = list({**dict.fromkeys(stirred), **dict.fromkeys(running)})
        for record in patient(lambda: ledger.read(looked)):  # noqa: B023 — called at once
            if run not in (None, record.run):
                continue
            if told.get(record.job) != (found := Snapshot.of(record)):
                told[record.job] = found
                yield found
            if record.state in ENDED:
                del told[record.job]
        block_ms = round(ROUND_S * 1000) if "running" in {one.state for one in told.values()} else QUIET_MS
        events = patient(lambda: ledger.events(None, after, block_ms))  # noqa: B023
        stirred = [event.job for event in events]
        if events and after != "0-0" and not patient(lambda: ledger.keeps(after)):  # noqa: B023
            stirred = patient(lambda: _begin(ledger, run))  # the stream has dropped some of them
        after = events[-1].id if events else after


def _begin(ledger: Ledger, run: str | None) -> list[str]:
    """The jobs that a watcher is told first."""
    if run is None:
        found = [one for state in OPEN for one in ledger.jobs(state=state, limit=NEWEST)]
        return [record.job for record in sorted(found, key=lambda record: record.created_ms)]
    if not (jobs := ledger.run_jobs(run)):
        raise NotFound("there is no such run")
    return jobs
