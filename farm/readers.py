"""What does the ledger say of jobs, events, queues, workers and the quarantine?

Nothing here moves anything; `watch` alone writes, a mark that somebody looks.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence

from farm.errors import NotFound
from farm.records import Attempt, Event, JobRecord, Minute, Quarantined, QueueState, WorkerRecord, place_of
from farm.rows import read_attempt, read_event, read_job, read_minute, read_quarantined, read_queue, read_worker
from farm.scripts import Server
from farm.tags import check_tag

READ = 200
"""Jobs that one script reads: some 20 ms of the server's time."""
LOOKED = 5000
"""Executions of which one script says whether they are committed: some 5 ms of the server's time."""
WATCHED_MS = 5000
"""For so long after somebody looked pictures are made, milliseconds: streams look twice a second, people less often."""


class Readers:
    """The calls of the ledger that only look."""

    _server: Server

    def job(self, job: str) -> JobRecord:
        """The job with its stages, as they are at one moment.

        Raises:
            NotFound: there is no such job, or it has passed its retention.
        """
        found = self.read([job])
        if not found:
            raise NotFound(f"there is no job {job}")
        return found[0]

    def read(self, jobs: Sequence[str], *, whole: bool = True) -> list[JobRecord]:
        """Those of `jobs` that there are, with their stages unless not `whole`; 200 with each look."""
        found: list[JobRecord] = []
        for start in range(0, len(jobs), READ):
            chunk = jobs[start : start + READ]
            found += [read_job(row) for row in self._server.call("job", int(whole), len(chunk), *chunk)]
        return found

    def jobs(
        self,
        state: str | None = None,
        run: str | None = None,
        limit: int = 50,
        before_ms: float | None = None,
        *,
        owner: str | None = None,
        tag: str | None = None,
        whole: bool = False,
    ) -> list[JobRecord]:
        """Up to `limit` jobs, newest first, with their stages where `whole`.

        `before_ms` is the last page's oldest `created_ms`, which no two jobs share: no job is twice on the pages or
        missing. Only jobs that fit are looked at, whatever else there is; of a tag's in one state, all with that tag.

        Raises:
            InvalidJob: there is no such tag.
        """
        tag = "" if tag is None else check_tag(tag)
        before = "+inf" if before_ms is None else f"({before_ms:.4f}"
        found: list[JobRecord] = []
        while before:
            asked = state or "", run or "", owner or "", tag, limit - len(found), before, int(whole)
            rows, before = self._server.call("jobs", *asked)
            found += [read_job(row) for row in rows]
        return found

    def gone(self, jobs: Sequence[str]) -> list[str]:
        """Those of `jobs` that are deleted, or have passed their retention."""
        return list(self._server.call("gone", len(jobs), *jobs))

    def watch(self, execs: Sequence[str]) -> None:
        """Has whoever runs these show pictures of them for `WATCHED_MS`: without that none are made."""
        self._server.call("watch", WATCHED_MS, len(execs), *execs)

    def preview(self, exec: str) -> bytes | None:
        """The newest picture of a running stage, as `show` was given it; None where there is none yet. It `watch`es."""
        self.watch([exec])
        found = self._server.run("GET", f"preview:{exec}")
        return base64.b64decode(found) if found else None

    def events(self, job: str | None, after: str = "0-0", block_ms: int | None = None) -> list[Event]:
        """The events of the job (of all jobs for None) after the id `after`, waiting up to `block_ms` for the first."""
        name = f"events:{job}" if job else "events"
        until = time.monotonic() + (block_ms or 0) / 1000
        while True:
            left_ms = max(0, int((until - time.monotonic()) * 1000))
            # Shorter than the socket's timeout, so that a quiet stream is not taken for a dead server.
            if (found := self._server.read_stream(name, after, min(left_ms, 1000))) or not left_ms:
                return [read_event(*row) for row in found]

    def last_event(self) -> str:
        """The id of the last event of all jobs; "0-0" where there was none."""
        found = self._server.run("XREVRANGE", "events", "+", "-", "COUNT", "1")
        return str(found[0][0]) if found else "0-0"

    def keeps(self, after: str) -> bool:
        """Whether all events of all jobs after the id `after` can still be read: of many, the oldest are dropped."""
        first = self._server.run("XRANGE", "events", "-", "+", "COUNT", "1")
        return bool(first) and place_of(first[0][0]) <= place_of(after)

    def ended(self, since_ms: int, most: int = -1) -> list[str]:
        """The jobs that have ended since, the earliest first; of more than `most` the newest. -1: all of them."""
        found: list[tuple[float, str]] = []
        for name in ("ended", "kept"):  # those without a tag, and those with one
            rows = self._server.run(
                "ZREVRANGEBYSCORE", name, "+inf", str(since_ms), "WITHSCORES", "LIMIT", "0", str(most)
            )
            found += [(float(score), job) for job, score in zip(rows[::2], rows[1::2], strict=True)]
        return [job for _, job in sorted(found)[-most if most > 0 else 0 :]]

    def queues(self) -> list[QueueState]:
        """Every queue that ever had work or a worker, by name."""
        return sorted(map(read_queue, self._server.call("queues")), key=lambda one: one.queue)

    def workers(self) -> list[WorkerRecord]:
        """The live workers, by name."""
        return sorted((read_worker(row) for row in self._server.call("workers")), key=lambda one: one.worker)

    def minutes(self, count: int) -> list[Minute]:
        """What was done in each of the last `count` minutes, at most a day's, the oldest first."""
        return [read_minute(row) for row in self._server.call("minutes", count)]

    def isolated(self, worker: str) -> float:
        """For how many seconds the worker is given nothing, because it failed all it tried; 0 for a sound one."""
        return float(self._server.call("isolated", worker)) / 1000

    def committed(self, execs: Sequence[str]) -> list[str]:
        """Those of `execs` whose output is there already, so that no job waits for them."""
        found: list[str] = []
        for start in range(0, len(execs), LOOKED):
            chunk = execs[start : start + LOOKED]
            found += self._server.call("committed", len(chunk), *chunk)
        return found

    def quarantine(self, limit: int = 0) -> list[str]:
        """The names of the executions in quarantine, newest first; all of them for 0."""
        return list(self._server.run("ZREVRANGE", "quarantine", "0", str(limit - 1)))

    def quarantined(self, execs: Sequence[str]) -> list[Quarantined]:
        """Those of `execs` that are in quarantine, in the order given."""
        found: list[Quarantined] = []
        for start in range(0, len(execs), READ):
            chunk = execs[start : start + READ]
            found += [read_quarantined(row) for row in self._server.call("quarantined", len(chunk), *chunk)]
        return found

    def attempts(self, exec: str) -> list[Attempt]:
        """The last ten failed attempts at an execution, oldest first."""
        return [read_attempt(row) for _, row in self._server.read_stream(f"x:{exec}:causes", "0-0", 0)]

    def quarantined_jobs(self, exec: str) -> list[str]:
        """The jobs that the execution's quarantine has ended and that nobody has retried since."""
        return sorted(self._server.run("SMEMBERS", f"x:{exec}:ended"))

    def stats(self) -> dict[str, int]:
        """What the ledger counted since it began: submitted, claims, commits, stale_commits, lapses and so on."""
        return {name: int(value) for name, value in self._server.call("stats")}
