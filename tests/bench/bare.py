"""A farm worker without artefacts: it claims, rings and commits, but fetches, runs and stores nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from farm.records import Commit
from workers import worker
from workers.delivery import Delivery
from workers.lease import Lease
from workers.making import Maker, Work
from workers.result import Result
from workers.worker import Worker


class Nothing(Maker):
    """Runs nothing."""

    def make(self, works: Sequence[Work], lease: Lease) -> list[Result]:
        return [Result(work.claim, {}, "", b"") for work in works]


class Constant(Delivery):
    """Commits a constant."""

    def deliver(self, results: Sequence[Result], lease: Lease) -> set[str]:
        lease.phase("upload")
        return self._ledger.commit([Commit(one.claim, "{}", one.claim.finishing) for one in results])[1]


class Bare(Worker):
    """A worker of these."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.maker = Nothing(self.settings, self.catalog, self.ledger, self.store, self.loaded, self.judge)
        self.delivery = Constant(self.settings, self.ledger, self.store, self.spool)


if __name__ == "__main__":
    worker.Worker = Bare  # type: ignore[misc]
    worker.main()
