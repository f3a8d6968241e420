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
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import structlog

from farm.client import Farm
from farm.dataset.folder import Folder, Plan
from farm.dataset.metrics import count_shard, show_open
from farm.dataset.moulds import Moulds, run_of
from farm.dataset.sharding import ShardWriter, Written, write
from farm.dataset.spec import Failed, Picture, Sample
from farm.errors import BadBlob, Conflict, NotFound
from farm.job import MAX_DEADLINE_S
from farm.ledger import CHUNK
from farm.records import OPEN, JobRecord
from farm.runs import Verb
from farm.scripts import Server
from farm.webhooks import Webhooks

_log = structlog.get_logger(__name__)
READERS = 4
"""Threads that read results from the store, decode and measure them: half of the time they wait, or hold no lock."""
LOOK_S = 2.0
"""How often the operator's wishes are read, seconds."""
TRIES = 3
"""So often a picture is made that turns out to be gone or damaged each time."""
RATE_S = 60.0
"""Images a second are counted over so long."""
RESTED = 4
"""So many windows of published shards are looked through at the start for jobs that a dead feeder left."""


@dataclass
class Shard:
    """One shard in work: its samples, and the job of each."""

    number: int
    samples: list[Sample]
    round: int
    jobs: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.time)
    states: dict[str, int] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)
    """How often each sample's picture was gone or damaged, by key."""
    conflicts: int = 0
    """How often its jobs were found to be of other recipes."""
    publishing: Future[dict[str, Any] | None] | None = None

    @property
    def ended(self) -> int:
        """How many of its jobs have ended."""
        return sum(count for state, count in self.states.items() if state not in OPEN)


class Moved(Exception):
    """Jobs of a shard are gone or open again since it was looked at: it is to be looked at anew."""


class Feeder:
    """Feeds one dataset. `open_samples`: so many are in the ledger at a time, or two shards if those have more.

    Shards are published by a thread of `pool`, so that the others go on; between two pictures it looks at `stop`.
    """

    def __init__(
        self, farm: Farm, name: str, open_samples: int, pool: Executor, stop: threading.Event | None = None
    ) -> None:
        self._farm, self.name, self._pool, self._stop = farm, name, pool, stop or threading.Event()
        self.folder = Folder(farm.store, name)
        self.plan: Plan = self.folder.plan()
        self._moulds = Moulds(farm, self.plan.spec, plan=self.plan)
        self._form = self.plan.spec, self.plan.columns, self.plan.parameters
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
            self._reprioritise(control.priority)
        self._control, self._looked = control, time.monotonic()

    def _check(self) -> None:
        """Raises NotFound where the dataset was deleted, or is another one by now."""
        if self.folder.plan().identity != self.plan.identity:
            raise NotFound(f"the dataset {self.name!r} was deleted")

    def _reprioritise(self, priority: int) -> None:
        for shard in self._open.values():
            for record in self._farm.ledger.read(shard.jobs, whole=False):
                if record.state in OPEN:
                    with suppress(Conflict, NotFound):  # it has ended since
                        self._farm.ledger.reprioritise(record.job, priority)

    def _survey(self) -> None:
        """Finds what is left to do, and what a feeder before this one left behind."""
        self.round, self._whole, self._ended_last = self._control.round, {}, 0.0
        again, rounds = set[int](), dict[int, int]()
        with ThreadPoolExecutor(READERS) as readers:
            for stats in readers.map(self.folder.stats, self.folder.numbers()):
                if stats.get("dataset") != self.plan.identity:
                    continue  # of a dataset of this name that was deleted
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
            before = self._there(self._todo[0])
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

    def _there(self, number: int) -> dict[str, Any] | None:
        """What is known of a shard of this dataset that is there."""
        stats = self.folder.found(number)
        return stats if stats is not None and stats.get("dataset") == self.plan.identity else None

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
            if shard.round:
                self._lift([handle.id for handle in found if not handle.existed])
            shard.jobs += [handle.id for handle in found]

    def _drop(self, shard: Shard) -> None:
        """Cancels and forgets all jobs of a shard, to submit them anew."""
        with suppress(NotFound):
            self._farm.ledger.cancel_run(self._run(shard.number, shard.round))
        self._farm.ledger.forget(self._farm.ledger.run_jobs(self._run(shard.number, shard.round)))
        shard.jobs = []

    def _lift(self, jobs: list[str]) -> None:
        """Lifts the quarantine in which new jobs of a retry ended at once; of an owner's dataset only an admin may."""
        if self.plan.owner:
            return
        for record in self._farm.ledger.read(jobs, whole=False):
            if record.state == "quarantined":
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
            stats = self._there(shard.number)
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
        shard.publishing = self._pool.submit(self._publish, shard)
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

    # ------------------------------------------------------------------------------------------------ publishing

    def _publish(self, shard: Shard) -> dict[str, Any] | None:
        """The stats of the shard that was written from what its jobs made; None where they have to go on first."""
        began, before, lost = time.monotonic(), self._there(shard.number), list[str]()
        failed = list[Failed]()
        with TemporaryDirectory(prefix="shard-") as temporary:
            with ShardWriter(Path(temporary), shard.number, *self._form) as writer:
                try:
                    for sample, job, written in self._pictures(shard, failed):
                        if self._stop.is_set():
                            return None
                        try:
                            writer.put(written.result())
                        except BadBlob as error:
                            _log.warning("picture_lost", dataset=self.name, sample=sample.key, error=error.message)
                            shard.lost[sample.key] += 1
                            if shard.lost[sample.key] < TRIES:
                                lost.append(job)
                            else:
                                failed.append(Failed(sample, "failed", error.code, error.message))
                except Moved:
                    shard.jobs = []
                    return None
                if lost:
                    # What a job made is gone or damaged: it is made again. The others are found by their keys.
                    self._farm.ledger.forget(lost)
                    shard.jobs = []
                    return None
                if before is not None:
                    with self.folder.tar(shard.number) as old:
                        writer.keep(old)
                made = writer.finish(failed)
            stats = {**made.facts, "count": self.plan.samples_of(shard.number), "dataset": self.plan.identity}
            stats |= {"round": shard.round, "began": round(shard.began, 3), "ended": round(time.time(), 3)}
            self._check()
            self.folder.publish(shard.number, made.tar, made.parquet, stats)
        seconds = round(time.monotonic() - began, 2)
        count_shard(self.name, stats, seconds)
        _log.info("shard", dataset=self.name, shard=shard.number, samples=stats["successes"], seconds=seconds)
        return stats

    def _pictures(self, shard: Shard, failed: list[Failed]) -> Iterator[tuple[Sample, str, Future[Written]]]:
        """What the jobs of a shard made, in order and read ahead a little; the others are added to `failed`.

        Raises:
            Moved: a job is gone, or open again.
        """
        ahead = deque[tuple[Sample, str, Future[Written]]]()
        with ThreadPoolExecutor(READERS) as readers:
            for start in range(0, len(shard.jobs), CHUNK):
                found = self._farm.ledger.read(shard.jobs[start : start + CHUNK], whole=False)
                records = {one.job: one for one in found}
                for sample, job in zip(shard.samples[start : start + CHUNK], shard.jobs[start:], strict=False):
                    record = records.get(job)
                    if record is None or record.state in OPEN:
                        raise Moved
                    if record.state != "done":
                        failed.append(Failed(sample, record.state, record.code, record.message))
                        continue
                    ahead.append((sample, job, readers.submit(self._written, sample, record)))
                    if len(ahead) > 2 * READERS:
                        yield ahead.popleft()
            yield from ahead

    def _written(self, sample: Sample, record: JobRecord) -> Written:
        """What the shard has of what a job made. Raises BadBlob where that is gone or damaged."""
        store, keep = self._farm.store, self.plan.spec.keep
        outputs: list[dict[str, Any]] = [json.loads(output) for output in record.outputs]
        kept: dict[str, bytes] = {}
        for index, output in enumerate(outputs[:-1]):
            if "base" in keep and "kept" in output:
                kept[f"stage{index}.png"] = store.get_blob(output["kept"]["blob"], output["kept"]["bytes"])
            if "latents" in keep and output["medium"] == "latents":
                kept[f"stage{index}.safetensors"] = store.get_blob(output["blob"], output["bytes"])
        last = outputs[-1]
        data = store.get_blob(last["blob"], last["bytes"])
        picture = Picture(sample, data, json.loads(record.spec)["recipes"], last["made"], kept)
        return write(picture, *self._form)

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
        told |= {"rate": rate and round(rate, 3), "updated": round(time.time(), 3)}
        self.folder.write("progress.json", json.dumps(told).encode(), "application/json")
