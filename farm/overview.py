"""What does a farm say of itself: queues, workers, quarantine, presets, stage kinds, checkpoints?"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from farm.catalog import Adapter, Catalog, Checkpoint, Weights
from farm.errors import Conflict, NotFound
from farm.manual import about
from farm.records import Attempt, Quarantined, QueueState, RunRecord, WorkerRecord
from farm.settings import Settings
from farm.stage import kinds

if TYPE_CHECKING:
    from farm.broker import Broker
    from farm.chains import NamedChains
    from farm.ledger import Ledger
    from farm.runs import Verb
    from farm.store import Store

PATIENCE_S = 1.8
"""How long a submit waits for a server, all tries together. Source: design, trouble is told within 3 s; the command
line takes nearly one of them to start."""


class Overview:
    """The farm that the settings name, as far as it is only looked at, and its workers steered."""

    round_s = 0.2
    """Pause between two looks at jobs, seconds."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.load()

    @cached_property
    def catalog(self) -> Catalog:
        """The checkpoints and presets."""
        return Catalog.load(self.settings)

    @cached_property
    def ledger(self) -> Ledger:
        """The truth in Redis."""
        from farm.ledger import Ledger  # what the catalog says is told without Redis' client

        return Ledger(self.settings)

    @cached_property
    def broker(self) -> Broker:
        """The doorbells."""
        from farm.broker import Broker  # Celery takes its time to import, and a look needs none

        return Broker(self.settings)

    @cached_property
    def inbox(self) -> Store:
        """The artifacts in S3, for input images and saved chains: what it keeps waiting is told so within 3 s."""
        from farm.store import Store

        return Store(self.settings, PATIENCE_S)

    @cached_property
    def chains(self) -> NamedChains:
        """The chains that have a name."""
        from farm.chains import NamedChains

        return NamedChains(self.catalog, self.inbox)

    def close(self) -> None:
        """Sends the doorbells that are still to be rung, and closes the connections."""
        for name in ("broker", "ledger"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    # ------------------------------------------------------------------------------------------------ runs

    def runs(self, limit: int = 50) -> list[RunRecord]:
        """The newest runs first."""
        return self.ledger.runs(limit)

    def run_record(self, run: str) -> RunRecord:
        """A run: how many of its jobs are in each state. Raises NotFound."""
        return self.ledger.run(run)

    def cancel_run(self, run: str) -> RunRecord:
        """Ends all unended jobs of a run; how it is then. Raises NotFound."""
        return self._steer_run(run, "cancel")

    def pause_run(self, run: str) -> RunRecord:
        """Holds all unended jobs of a run after the stages that run now. Raises NotFound."""
        return self._steer_run(run, "pause")

    def resume_run(self, run: str) -> RunRecord:
        """Lets the paused jobs of a run go on. Raises NotFound."""
        return self._steer_run(run, "resume")

    def retry_run(self, run: str) -> RunRecord:
        """Queues the failed, quarantined, cancelled and expired jobs of a run again. Raises NotFound."""
        return self._steer_run(run, "retry")

    def _steer_run(self, run: str, verb: Verb) -> RunRecord:
        _, queues = self.ledger.steer_run(run, verb)
        self.broker.ring(queues)
        return self.ledger.run(run)

    # ------------------------------------------------------------------------------------------------ machines

    def queues(self) -> list[QueueState]:
        """Every queue that ever had work or a worker, by name."""
        return self.ledger.queues()

    def workers(self) -> list[WorkerRecord]:
        """The live workers, by name."""
        return self.ledger.workers()

    def stats(self) -> dict[str, int]:
        """What the ledger has counted since it began."""
        return self.ledger.stats()

    def drain(self, worker: str) -> None:
        """Gives a worker nothing more; what it runs it finishes. Raises NotFound."""
        self._drain(worker, on=True)

    def resume(self, worker: str) -> None:
        """Gives a drained worker work again. Raises NotFound."""
        self._drain(worker, on=False)

    def _drain(self, worker: str, *, on: bool) -> None:
        if worker not in {one.worker for one in self.ledger.workers()}:
            raise NotFound("there is no such live worker")
        self.ledger.drain(worker, on)

    # ------------------------------------------------------------------------------------------------ quarantine

    def quarantined(self, limit: int = 100) -> list[Quarantined]:
        """What is in quarantine, the newest first."""
        return self.ledger.quarantined(self.ledger.quarantine(limit))

    def failures(self, exec: str) -> tuple[Quarantined, list[Attempt], list[str]]:
        """A quarantined recipe, its last failed attempts, and the jobs that it ended. Raises NotFound."""
        found = self.ledger.quarantined([exec])
        if not found:
            raise NotFound(f"{exec[:12]} is not in quarantine", hint="`farm quarantine ls` lists what is")
        return found[0], self.ledger.attempts(exec), self.ledger.quarantined_jobs(exec)

    def retry_quarantined(self, exec: str) -> list[str]:
        """Queues all jobs that the quarantine of `exec` ended again, and says which; those retried before stay so.

        Raises:
            NotFound: it ended none, or all have been retried.
        """
        waiting, retried = self.ledger.quarantined_jobs(exec), []
        if not waiting:
            raise NotFound(f"no job is held by a quarantine of {exec[:12]}")
        for job in waiting:
            with suppress(Conflict, NotFound):  # retried by somebody else, or past its retention
                self.broker.ring(self.ledger.retry(job))
                retried.append(job)
        return retried

    def drop_quarantined(self, exec: str) -> None:
        """Lifts a quarantine and forgets its cause; its jobs stay ended. Raises NotFound."""
        self.ledger.drop(exec)

    # ------------------------------------------------------------------------------------------------ what can be drawn

    def presets(self, saved: bool = True) -> list[dict[str, Any]]:
        """The chains that have a name: name, description, stages, `fields` (what is the chain's own, as its prompt).

        The catalog's come first; those that people `saved` have an owner and say when. Without `saved` the catalog's
        alone, for which no store is asked.
        """
        return [one.facts for one in self.chains.ls(saved=saved)]

    def preset(self, name: str) -> dict[str, Any]:
        """One chain that has a name, as `presets` tells it. Raises NotFound."""
        return self.chains.show(name).facts

    def delete_chain(self, name: str) -> None:
        """Deletes a saved chain; jobs and datasets that were asked for with it stay as they are.

        Raises:
            NotFound: there is none.
            Conflict: the catalog has it.
        """
        self.chains.delete(name)

    def kinds(self) -> list[dict[str, Any]]:
        """The installed stage kinds (see `farm.manual.about`)."""
        return [about(kind, stage) for kind, stage in kinds().items()]

    def weights(self) -> list[dict[str, Any]]:
        """The catalog's checkpoints and adapters; `size_bytes`: what they take on the disk where they are `pulled`."""
        return [self._told(one) for one in (*self.catalog.checkpoints.values(), *self.catalog.adapters.values())]

    def _told(self, found: Weights) -> dict[str, Any]:
        from farm import models

        own: dict[str, Any] = {"kinds": [], "space": None, "native": None, "recommended": {}}
        if isinstance(found, Checkpoint):
            own = {
                "kinds": found.kinds, "space": found.space, "native": found.native,
                "recommended": found.recommended.model_dump(mode="json", exclude_none=True),
            }  # fmt: skip
        return {
            "name": found.name,
            "type": found.type if isinstance(found, Adapter) else "checkpoint",
            "family": found.family,
            **own,
            "source": found.repo or found.folder or found.file or found.build,
            "licence": found.licence,
            "pulled": self.catalog.lock_path(found).exists(),
            "size_bytes": models.size_bytes(self.catalog, found),
        }
