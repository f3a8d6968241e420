"""How do samples become jobs, and ended jobs shards?

One `Feeder` a dataset. A round of it (`tick`) opens shards as long as few are in work, looks which of those have ended,
and publishes them. Nothing is remembered that cannot be read again: what is left to do is the plan without the shards
that are there. Every job has an idempotency key of its sample's, so a feeder that was killed, or a second one, finds
the jobs that run already; a ledger that lost everything is filled again. A shard's bytes follow from its samples'
recipes, so it is the same one whoever makes it, and however often.

Samples run one to a pipeline call (`limit=1` in `workers.worker`), so no picture depends on what ran beside it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import structlog

from farm.client import Farm
from farm.dataset.folder import Folder
from farm.dataset.metrics import show_open
from farm.dataset.moulds import Moulds, run_of
from farm.dataset.plans import Plan
from farm.dataset.publishing import READERS, Publisher, Shard
from farm.errors import Conflict, NotFound
from farm.job import MAX_DEADLINE_S
from farm.ledger import CHUNK
from farm.records import OPEN
from farm.runs import Verb
from farm.scripts import Server
from farm.webhooks import Webhooks

_log = structlog.get_logger(__name__)
LOOK_S = 2.0
"""How often the operator's wishes are read, seconds."""
TRIES = 3
"""So often a shard is submitted anew whose jobs turn out to be of other recipes."""
RATE_S = 60.0
"""Images a second are counted over so long."""
RESTED = 4
"""So many windows of published shards are looked through at the start for jobs that a dead feeder left."""


class Feeder:
    """Feeds one dataset. `open_samples`: so many are in the ledger at a time, or two shards if those have more.

    Shards are published by a thread of `pool`, so that the others go on; between two pictures it looks at `stop`.
    """

    def __init__(
        self, farm: Farm, name: str, open_samples: int, pool: Executor, stop: threading.Event | None = None
    ) -> None:
        self._farm, self.name, self._pool = farm, name, pool
        self.folder = Folder(farm.store, name)
        self.plan: Plan = self.folder.plan()
        self._publisher = Publisher(farm, self.folder, self.plan, self._check, stop or threading.Event())
        self._moulds = Moulds(farm, self.plan.spec, plan=self.plan)
        self._window = max(2, open_samples // self.plan.spec.shard_samples)
        self._control, self._looked = self.folder.control(), 0.0
        self._open: dict[int, Shard] = {}
        self._todo: deque[int] = deque()
        self._whole: dict[int, tuple[int, int, int]] = {}
        self._ended: deque[tuple[float, int]] = deque()
        self._ended_last, self._told = 0.0, -LOOK_S
        self._troubled = self.folder.read("trouble.json") is not None
        self.round = self._control.round
        self._survey()

    # ------------------------------------------------------------------------------------------------ a round

    def tick(self) -> bool:
        """One round; whether anything moved.

        Raises:
            Unavailable: a server is away; the next round goes on.
            NotFound: the dataset was deleted.
        """
        self._look()
        if self._control.round != self.round and not self._open:
            self._survey()
        if self._control.state == "paused":
            return self._hold()
        moved = False
        for shard in list(self._open.values()):
            moved = self._advance(shard) or moved
        moved = self._fill() or moved
        self._tell()
        done = not self._todo and not self._open and self._control.round == self.round
        # Whoever steers it meanwhile is heard first.
        if done and self.folder.control() == self._control:
            if set(range(self.plan.shards)).difference(self.folder.numbers()):
                self._survey()  # one was taken for lost meanwhile
                return True
            self._announce()
            self._control = self.folder.steer(state="done")
        return moved

    @property
    def is_over(self) -> bool:
        """Whether nobody need feed it: every sample was tried, or all of its jobs are paused."""
        return self._control.state == "done" or (self._control.state == "paused" and self._control.held)

    def _look(self) -> None:
        """Reads what the operator wants, now and then. Raises NotFound where the dataset was deleted."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._check()
        control = self.folder.control()
        if self._troubled:
            self.folder.delete(["trouble.json"])
            self._troubled = False
        if control.priority != self._control.priority:
            self._reprioritise([job for shard in self._open.values() for job in shard.jobs], control.priority)
        self._control, self._looked = control, time.monotonic()

    def _check(self) -> None:
        """Raises NotFound where the dataset was deleted, or is another one by now."""
        if self.folder.plan().identity != self.plan.identity:
            raise NotFound(f"the dataset {self.name!r} was deleted")

    def _reprioritise(self, jobs: list[str], priority: int) -> None:
        for record in self._farm.ledger.read(jobs, whole=False):
            if record.state in OPEN and record.priority != priority:
                with suppress(Conflict, NotFound):  # it has ended since
                    self._farm.ledger.reprioritise(record.job, priority)

    def _survey(self) -> None:
        """Finds what is left to do, and what a feeder before this one left behind."""
        self.round, self._whole, self._ended_last = self._control.round, {}, 0.0
        again, rounds = set[int](), dict[int, int]()
        with ThreadPoolExecutor(READERS) as readers:
            for stats in readers.map(self._publisher.there, self.folder.numbers()):
                if stats is None:
                    continue  # taken for lost just now, or of a dataset of this name that was deleted
                self._count(stats)
                if stats["failed"] and stats["round"] < self.round:
                    again.add(stats["shard"])
                rounds[stats["shard"]] = stats["round"]
        self._todo = deque(sorted({*range(self.plan.shards)} - {*rounds} | again))
        first = self._todo[0] if self._todo else self.plan.shards
        for number, round in rounds.items():
            if number >= first - RESTED * self._window and number not in again:
                self._farm.ledger.forget(self._farm.ledger.run_jobs(self._run(number, round)))

    def _count(self, stats: dict[str, Any]) -> None:
        """Counts a shard that is there, as it is now."""
        size_bytes = sum(file["bytes"] for file in stats["files"].values())
        self._whole[stats["shard"]] = stats["successes"], stats["failed"], size_bytes
        self._ended_last = max(self._ended_last, stats["ended"])

    def _progress(self) -> dict[str, int]:
        """What the shards that are there come to."""
        sums = [sum(column) for column in zip(*self._whole.values(), strict=True)] or [0, 0, 0]
        return {"shards": len(self._whole), "done": sums[0], "failed": sums[1], "size_bytes": sums[2]}

    def _run(self, number: int, round: int) -> str:
        return run_of(self.plan.identity, number, round)

    # ------------------------------------------------------------------------------------------------ pausing

    def _hold(self) -> bool:
        """Pauses the jobs of the shards in work, after a restart those that are in the ledger; says so in the end.

        What is being published is published. Whoever resumes it finds the paused jobs (see `_advance`).
        """
        for shard in list(self._open.values()):
            if shard.publishing:
                self._advance(shard)
        for number in list(self._open) or list(self._todo)[: RESTED * self._window]:
            self._steer(number, "pause")
        self._tell(at_once=True)
        if not any(shard.publishing for shard in self._open.values()) and self.folder.control() == self._control:
            self._control = self.folder.steer(held=True)
        return False

    def _steer(self, number: int, verb: Verb) -> None:
        round = self._open[number].round if number in self._open else self.round
        try:
            _, queues = self._farm.ledger.steer_run(self._run(number, round), verb)
        except NotFound:
            return
        self._farm.broker.ring(queues)

    # ------------------------------------------------------------------------------------------------ feeding

    def _fill(self) -> bool:
        """Opens shards while there is room; whether one was opened."""
        moved = False
        while self._todo and len(self._open) < self._window:
            samples = self.folder.samples(self._todo[0])
            before = self._publisher.there(self._todo[0])
            if before is not None:
                failed = {one["key"] for one in before["failures"]}
                samples = [sample for sample in samples if sample.key in failed]
            number = self._todo.popleft()
            self._open[number] = Shard(number, samples, self.round)
            moved = True
        for shard in self._open.values():
            if len(shard.jobs) < len(shard.samples):
                self._submit(shard)
        return moved

    def _submit(self, shard: Shard) -> None:
        """Submits what of a shard is not submitted yet; where a server fails, the rest is for the next round."""
        while len(shard.jobs) < len(shard.samples):
            chunk = shard.samples[len(shard.jobs) : len(shard.jobs) + CHUNK]
            jobs = [self._moulds.job(one, shard.round, self._control.priority, MAX_DEADLINE_S) for one in chunk]
            try:
                found = self._farm.submit(jobs, self.plan.owner)
            except Conflict as error:
                if error.code != "idempotency_conflict" or shard.conflicts >= TRIES:
                    raise
                # The catalog or a policy changed since these were submitted: one shard is of one recipe.
                _log.warning("recipes_changed", dataset=self.name, shard=shard.number)
                shard.conflicts += 1
                self._drop(shard)
                return
            # An earlier feeder may have submitted them at another priority, and have ended before it lifted anything.
            self._reprioritise([handle.id for handle in found if handle.existed], self._control.priority)
            if shard.round:
                self._lift([handle.id for handle in found])
            shard.jobs += [handle.id for handle in found]

    def _drop(self, shard: Shard) -> None:
        """Cancels and forgets all jobs of a shard, to submit them anew."""
        with suppress(NotFound):
            self._farm.ledger.cancel_run(self._run(shard.number, shard.round))
        self._farm.ledger.forget(self._farm.ledger.run_jobs(self._run(shard.number, shard.round)))
        shard.jobs = []

    def _lift(self, jobs: list[str]) -> None:
        """Lifts the quarantine in which jobs of a retry ended untried; of an owner's dataset only an admin may."""
        if self.plan.owner:
            return
        for record in self._farm.ledger.read(jobs, whole=False):
            if record.state == "quarantined" and not record.started_ms:
                self._farm.broker.ring(self._farm.ledger.retry(record.job))

    def _advance(self, shard: Shard) -> bool:
        """Goes on with a shard as far as its jobs are; whether it did."""
        if shard.publishing is not None:
            return shard.publishing.done() and self._published(shard)
        if len(shard.jobs) < len(shard.samples):
            return False
        try:
            record = self._farm.ledger.run(self._run(shard.number, shard.round))
        except NotFound:
            record = None
        shard.states = record.states if record else {}
        if record is None or record.count < len(shard.jobs):
            stats = self._publisher.there(shard.number)
            if stats is not None and stats["round"] >= shard.round:  # by another feeder
                self._count(stats)
                del self._open[shard.number]
            else:  # the ledger lost them; those that it has are found by their keys
                shard.jobs = []
            return True
        if shard.states.get("paused"):
            self._steer(shard.number, "resume")
            return True
        if shard.ended < record.count:
            return False
        shard.publishing = self._pool.submit(self._publisher.publish, shard)
        return True

    def _published(self, shard: Shard) -> bool:
        """Takes note of what came of publishing a shard. Raises what that raised."""
        done, shard.publishing = shard.publishing, None
        if done is None or (stats := done.result()) is None:
            return True
        # Before the jobs are forgotten: whatever is away then, the shard is there.
        self._count(stats)
        del self._open[shard.number]
        self._farm.ledger.forget(shard.jobs)
        self._tell(at_once=True)
        return True

    # ------------------------------------------------------------------------------------------------ telling

    def _announce(self) -> None:
        """Leaves word for webhooks that every sample was tried."""
        told = {"id": self.name, "owner": self.plan.owner, "samples": self.plan.samples, "round": self.round}
        # Not the time of now: whoever says it again after a crash says the same.
        told |= {"ended": round(self._ended_last * 1000), **self._progress()}
        server = Server(self._farm.settings)
        try:
            Webhooks(server).tell(f"{self.name}:{self.round}", json.dumps(told))
        finally:
            server.close()

    def _tell(self, at_once: bool = False) -> None:
        """Writes how far it is, every few seconds."""
        now = time.monotonic()
        if not at_once and now - self._told < LOOK_S:
            return
        self._told, progress = now, self._progress()
        states: Counter[str] = Counter()
        for shard in self._open.values():
            states.update(shard.states)
        ended = progress["done"] + sum(shard.ended for shard in self._open.values())
        show_open(self.name, states)
        self._ended.append((now, ended))
        while now - self._ended[0][0] > RATE_S and len(self._ended) > 2:
            self._ended.popleft()
        before, span = self._ended[0][1], now - self._ended[0][0]
        rate = max(0.0, (ended - before) / span) if span > 1 else None
        told = {**progress, "round": self.round, "open": states, "open_shards": sorted(self._open)}
        told |= {"again": sum(self._whole[one][1] for one in (*self._todo, *self._open) if one in self._whole)}
        told |= {"rate": rate and round(rate, 3), "updated": round(time.time(), 3)}
        self.folder.write("progress.json", json.dumps(told).encode(), "application/json")
