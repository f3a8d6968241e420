"""A farm worker without artefacts: it claims, rings and commits, but fetches, runs and stores nothing."""

from __future__ import annotations

from collections.abc import Sequence

from farm.records import Commit
from workers import worker
from workers.lease import Lease
from workers.result import Result
from workers.worker import Work, Worker


class Bare(Worker):
    """Commits a constant."""

    def _make(self, works: Sequence[Work], lease: Lease) -> list[Result]:
        return [Result(work.claim, {}, "", b"") for work in works]

    def _commit(self, results: Sequence[Result], lease: Lease) -> set[str]:
        lease.phase("upload")
        return self.ledger.commit([Commit(one.claim, "{}", one.claim.finishing) for one in results])[1]


if __name__ == "__main__":
    worker.Worker = Bare  # type: ignore[misc]
    worker.main()
