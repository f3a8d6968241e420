"""A farm worker without artefacts: it claims, rings and commits, but fetches, runs and stores nothing."""

from __future__ import annotations

from collections.abc import Sequence

from farm.records import Commit
from workers import worker
from workers.lease import Lease
from workers.worker import Work, Worker


class Bare(Worker):
    """Commits a constant."""

    def _make(self, works: Sequence[Work], lease: Lease) -> list[Commit]:
        lease.phase("upload")
        return [Commit(work.claim, "{}", work.claim.finishing) for work in works]


if __name__ == "__main__":
    worker.Worker = Bare  # type: ignore[misc]
    worker.main()
