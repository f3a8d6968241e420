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
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
from farm.errors import BadBlob, NotFound
from farm.job import MAX_DEADLINE_S
from farm.ledger import CHUNK
from farm.records import OPEN, JobRecord
from farm.scripts import Server
from farm.webhooks import Webhooks

_log = structlog.get_logger(__name__)
FETCHERS = 4
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
    lost: dict[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        """How many of its jobs have ended."""
        return sum(count for state, count in self.states.items() if state not in OPEN)


class Feeder:
    """Feeds one dataset. `open_samples`: so many are in the ledger at a time, or two shards if those have more."""

    def __init__(self, farm: Farm, name: str, open_samples: int) -> None:
        self._farm, self.name = farm, name
        self.folder = Folder(farm.store, name)
        self.plan: Plan = self.folder.plan()
        self._moulds = Moulds(farm, self.plan.spec)
        self._window = max(2, open_samples // self.plan.spec.shard_samples)
        self._control, self._looked, self._held = self.folder.control(), 0.0, False
        self._open: dict[int, Shard] = {}
        self._todo: deque[int] = deque()
        self._ended: deque[tuple[float, int]] = deque()
        self._ended_last = 0.0
        self._troubled = self.folder.read("trouble.json") is not None
        self.round = self._control.round
        self._progress: dict[str, int] = {"shards": 0, "done": 0, "failed": 0, "size_bytes": 0}
        self._survey()

    # ------------------------------------------------------------------------------------------------ a round

    def tick(self) -> bool:
        """One round; whether anything moved.

        Raises:
            Unavailable: a server is away; the next round goes on.
        """
        self._look()
        if self._control.round != self.round and not self._open:
            self._survey()
        if self._control.state == "paused":
            return self._hold()
        self._resume()
        moved = self._fill()
        for shard in list(self._open.values()):
            moved = self._advance(shard) or moved
        self._tell()
        done = not self._todo and not self._open and self._control.round == self.round
        # Whoever steers it meanwhile is heard first.
        if done and self.folder.control() == self._control:
            self._announce()
            self._control = self.folder.steer(state="done")
        return moved

    @property
    def is_over(self) -> bool:
        """Whether every sample was tried, and it is said so."""
        return self._control.state == "done"

    def _look(self) -> None:
        """Reads what the operator wants, now and then. Raises NotFound where the dataset was deleted."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        if self.folder.plan() != self.plan:
            raise NotFound(f"the dataset {self.name!r} was deleted")
        before, self._control = self._control, self.folder.control()
        self._looked = time.monotonic()
        if self._troubled:
            self.folder.delete(["trouble.json"])
            self._troubled = False
        if self._control.priority != before.priority:
            for shard in self._open.values():
                for record in self._farm.ledger.read(shard.jobs, whole=False):
                    if record.state in OPEN:
                        self._farm.ledger.reprioritise(record.job, self._control.priority)

    def _survey(self) -> None:
        """Finds what is left to do, and what a feeder before this one left behind."""
        self.round, there = self._control.round, self.folder.numbers()
        self._progress = dict.fromkeys(self._progress, 0)
        again, rounds = set[int](), dict[int, int]()
        for number in there:
            stats = self.folder.stats(number)
            self._count(stats)
            if stats["failed"] and stats["round"] < self.round:
                again.add(number)
            rounds[number] = stats["round"]
        self._todo = deque(sorted({*range(self.plan.shards)} - {*there} | again))
        first = self._todo[0] if self._todo else self.plan.shards
        for number in there:
            if number >= first - RESTED * self._window and number not in again:
                self._farm.ledger.forget(self._farm.ledger.run_jobs(run_of(self.name, number, rounds[number])))

    def _count(self, stats: dict[str, Any], sign: int = 1) -> None:
        self._progress["shards"] += sign
        self._progress["done"] += sign * stats["successes"]
        self._progress["failed"] += sign * stats["failed"]
        self._ended_last = max(self._ended_last, stats["ended"])
        self._progress["size_bytes"] += sign * sum(file["bytes"] for file in stats["files"].values())

    # ------------------------------------------------------------------------------------------------ pausing

    def _hold(self) -> bool:
        """Pauses the jobs of the shards in work; after a restart, those that are in the ledger."""
        if self._held:
            return False
        for number in list(self._open) or list(self._todo)[: self._window]:
            self._steer(number, "pause")
        self._held = True
        self._tell(at_once=True)
        return True

    def _resume(self) -> None:
        """Lets jobs that were paused go on."""
        if not self._held:
            return
        for number in list(self._open) or list(self._todo)[: self._window]:
            self._steer(number, "resume")
        self._held = False

    def _steer(self, number: int, verb: Any) -> None:
        round = self._open[number].round if number in self._open else self.round
        try:
            _, queues = self._farm.ledger.steer_run(run_of(self.name, number, round), verb)
        except NotFound:
            return
        self._farm.broker.ring(queues)

    # ------------------------------------------------------------------------------------------------ feeding

    def _fill(self) -> bool:
        """Opens shards while there is room; whether one was opened."""
        moved = False
        while self._todo and len(self._open) < self._window:
            number = self._todo.popleft()
            samples = self.folder.samples(number)
            if (before := self.folder.found(number)) is not None:
                failed = {one["key"] for one in before["failures"]}
                samples = [sample for sample in samples if sample.key in failed]
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
            shard.jobs += [handle.id for handle in self._farm.submit(jobs, self.plan.owner)]

    def _advance(self, shard: Shard) -> bool:
        """Publishes a shard all of whose jobs have ended; whether it did."""
        if len(shard.jobs) < len(shard.samples):
            return False
        try:
            record = self._farm.ledger.run(run_of(self.name, shard.number, shard.round))
        except NotFound:
            record = None
        shard.states = record.states if record else {}
        if record is None or record.count < len(shard.jobs):
            if self._is_published(shard):  # by another feeder
                del self._open[shard.number]
            else:  # the ledger lost them; those that it has are found by their keys
                shard.jobs = []
            return True
        if shard.ended < record.count:
            return False
        self._publish(shard)
        return True

    def _is_published(self, shard: Shard) -> bool:
        found = self.folder.found(shard.number)
        return found is not None and found["round"] >= shard.round

    # ------------------------------------------------------------------------------------------------ publishing

    def _publish(self, shard: Shard) -> None:
        """Writes the shard from what its jobs made, and forgets these."""
        began, before = time.monotonic(), self.folder.found(shard.number)
        failed, lost = list[Failed](), list[str]()
        with TemporaryDirectory(prefix="shard-") as temporary:
            with ShardWriter(Path(temporary), shard.number, self.plan.spec, self.plan.columns) as writer:
                for sample, job, written in self._pictures(shard, failed):
                    try:
                        writer.put(written.result())
                    except BadBlob as error:
                        _log.warning("picture_lost", dataset=self.name, sample=sample.key, error=error.message)
                        shard.lost[job] = shard.lost.get(job, 0) + 1
                        (lost.append(job) if shard.lost[job] < TRIES else failed.append(_given_up(sample, error)))
                if lost:
                    # What a job made is gone or damaged: it is made again. The others are found by their keys.
                    self._farm.ledger.forget(lost)
                    shard.jobs = []
                    return
                if before is not None:
                    with self.folder.tar(shard.number) as old:
                        writer.keep(old)
                made = writer.finish(failed)
            took = {"began": round(shard.began, 3), "ended": round(time.time(), 3)}
            stats = {**made.facts, "count": self.plan.samples_of(shard.number), "round": shard.round, **took}
            self.folder.publish(shard.number, made.tar, made.parquet, stats)
        self._farm.ledger.forget(shard.jobs)
        del self._open[shard.number]
        if before is not None:
            self._count(before, -1)
        self._count(stats)
        self._tell(at_once=True)
        seconds = round(time.monotonic() - began, 2)
        count_shard(self.name, stats, seconds)
        _log.info("shard", dataset=self.name, shard=shard.number, samples=stats["successes"], seconds=seconds)

    def _pictures(self, shard: Shard, failed: list[Failed]) -> Iterator[tuple[Sample, str, Future[Written]]]:
        """What the jobs of a shard made, in order and read ahead a little; the others are added to `failed`."""
        ahead = deque[tuple[Sample, str, Future[Written]]]()
        with ThreadPoolExecutor(FETCHERS) as pool:
            for start in range(0, len(shard.jobs), CHUNK):
                found = self._farm.ledger.read(shard.jobs[start : start + CHUNK], whole=False)
                records = {one.job: one for one in found}
                for sample, job in zip(shard.samples[start : start + CHUNK], shard.jobs[start:], strict=False):
                    record = records[job]
                    if record.state != "done":
                        failed.append(Failed(sample, record.state, record.code, record.message))
                        continue
                    ahead.append((sample, job, pool.submit(self._written, sample, record)))
                    if len(ahead) > 2 * FETCHERS:
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
        return write(picture, self.plan.spec, self.plan.columns)

    # ------------------------------------------------------------------------------------------------ telling

    def _announce(self) -> None:
        """Leaves word for webhooks that every sample was tried."""
        told = {"id": self.name, "owner": self.plan.owner, "samples": self.plan.samples, "round": self.round}
        # Not the time of now: whoever says it again after a crash says the same.
        told |= {"ended": round(self._ended_last * 1000), **self._progress}
        Webhooks(Server(self._farm.settings)).tell(f"{self.name}:{self.round}", json.dumps(told))

    def _tell(self, at_once: bool = False) -> None:
        """Writes how far it is, every few seconds."""
        now = time.time()
        if not at_once and self._ended and now - self._ended[-1][0] < LOOK_S:
            return
        states: dict[str, int] = {}
        for shard in self._open.values():
            for state, count in shard.states.items():
                states[state] = states.get(state, 0) + count
        ended = self._progress["done"] + sum(shard.ended for shard in self._open.values())
        show_open(self.name, states)
        self._ended.append((now, ended))
        while now - self._ended[0][0] > RATE_S and len(self._ended) > 2:
            self._ended.popleft()
        before, span = self._ended[0][1], now - self._ended[0][0]
        rate = max(0.0, (ended - before) / span) if span > 1 else None
        told = {**self._progress, "round": self.round, "open": states, "open_shards": sorted(self._open)}
        told |= {"rate": rate and round(rate, 3), "updated": round(now, 3)}
        self.folder.write("progress.json", json.dumps(told).encode(), "application/json")


def _given_up(sample: Sample, error: BadBlob) -> Failed:
    return Failed(sample, "failed", error.code, error.message)
