"""How are runs, jobs that were submitted together, looked at and steered in the ledger?

A run's jobs are listed by state, so that nothing is counted or sought: a run of 10^5 jobs is told as fast as one of
ten. Steering goes through its jobs a script's worth at a time, so nobody else is kept waiting.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Literal

from farm.errors import NotFound
from farm.records import ENDED, OPEN, RunRecord
from farm.rows import read_run
from farm.scripts import Server
from farm.settings import Settings

Verb = Literal["cancel", "pause", "resume", "retry"]
STEERED: dict[Verb, Sequence[str]] = {
    "cancel": OPEN,
    "pause": ("queued", "running"),
    "resume": ("paused",),
    "retry": tuple(sorted(ENDED - {"done"})),
}
"""The states in which jobs are steered so; those in others stay as they are."""
MOVED = 200
"""Jobs that one script steers: some 20 ms of the server's time."""


class Runs:
    """The calls of the ledger that concern runs."""

    _server: Server
    _settings: Settings

    def run(self, run: str) -> RunRecord:
        """How the run's jobs are.

        Raises:
            NotFound: there is no such run, or all of its jobs have passed their retention.
        """
        found = self._server.call("run", 1, run)
        if not found:
            raise NotFound("there is no such run")
        return read_run(found[0])

    def runs(self, limit: int = 50, before_ms: float | None = None, *, owner: str | None = None) -> list[RunRecord]:
        """Up to `limit` runs, the newest first; `before_ms` is the `created_ms` of the last page's oldest."""
        before = "+inf" if before_ms is None else f"({before_ms:.4f}"
        return [read_run(row) for row in self._server.call("run", 0, owner or "", limit, before)]

    def run_jobs(self, run: str) -> list[str]:
        """The ids of the run's jobs, the oldest first; none where there is no such run."""
        return list(self._server.run("ZRANGE", f"run:{run}", "0", "-1"))

    def steer_run(self, run: str, verb: Verb, max_open: int = 0, *, lift: bool = True) -> tuple[int, set[str]]:
        """How many jobs of the run were steered, each as the call for one job does, and the queues made ready.

        Not all at one moment: who looks meanwhile sees some of them moved. `max_open` and `lift` as for `Ledger.retry`;
        jobs whose quarantine may not be lifted stay as they are.

        Raises:
            NotFound: there is no such run.
            QuotaExceeded: some may be open again, and the owner may have no more.
            Unavailable: some may be steered, and the others not: call again.
        """
        self.run(run)
        moved, queues, call = 0, set[str](), secrets.token_hex(8)
        limits = self._settings.max_pending, max_open, int(lift)
        for state in STEERED[verb]:
            after = "-inf"
            while after:
                found, after, ready = self._server.call("steer", verb, run, state, after, MOVED, call, *limits)
                moved += found
                queues.update(ready)
        return moved, queues

    def cancel_run(self, run: str) -> int:
        """How many jobs of the run this has cancelled; those that had ended stay as they are.

        Raises:
            NotFound: there is no such run.
            Unavailable: some may be cancelled, and the others not: call again.
        """
        return self.steer_run(run, "cancel")[0]
