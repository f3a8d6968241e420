"""How do the pictures of ended jobs become a shard?

Read ahead by a few threads, in the order of the samples, and written as they come: of a shard only a few pictures are
in memory. What a job made and is gone or damaged is made again, some times.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import structlog

from farm.client import Farm
from farm.dataset.folder import Folder
from farm.dataset.metrics import count_shard
from farm.dataset.plans import Plan
from farm.dataset.sharding import ShardWriter, Written, write
from farm.dataset.spec import Failed, Picture, Sample
from farm.errors import BadBlob
from farm.ledger import CHUNK
from farm.records import OPEN, JobRecord

_log = structlog.get_logger(__name__)
READERS = 4
"""Threads that read results from the store, decode and measure them: half of the time they wait, or hold no lock."""
TRIES = 3
"""So often a picture is made that turns out to be gone or damaged each time."""


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


class Publisher:
    """Writes shards of one dataset; between two pictures it looks at `stop`. `check` raises where it was deleted."""

    def __init__(
        self, farm: Farm, folder: Folder, plan: Plan, check: Callable[[], None], stop: threading.Event
    ) -> None:
        self._farm, self._folder, self._plan, self._check, self._stop = farm, folder, plan, check, stop
        self._form = plan.spec, plan.columns, plan.parameters

    def there(self, number: int) -> dict[str, Any] | None:
        """What is known of a shard of this dataset that is there."""
        stats = self._folder.found(number)
        return stats if stats is not None and stats.get("dataset") == self._plan.identity else None

    def publish(self, shard: Shard) -> dict[str, Any] | None:
        """The stats of the shard that was written from what its jobs made; None where they have to go on first.

        Where a later try of it is there already, the stats of that.
        """
        began, before, lost = time.monotonic(), self.there(shard.number), list[str]()
        failed = list[Failed]()
        if before is not None and before["round"] > shard.round:
            return before
        if before is None and self._is_part(shard):  # it was taken for lost meanwhile
            self._begin_anew(shard)
            return None
        with TemporaryDirectory(prefix="shard-") as temporary:
            with ShardWriter(Path(temporary), shard.number, *self._form) as writer:
                try:
                    for sample, job, written in self._pictures(shard, failed):
                        if self._stop.is_set():
                            return None
                        try:
                            writer.put(written.result())
                        except BadBlob as error:
                            _log.warning(
                                "picture_lost", dataset=self._folder.name, sample=sample.key, error=error.message
                            )
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
                    try:
                        with self._folder.tar(shard.number) as old:
                            writer.keep(old)
                    except BadBlob as error:
                        _log.warning(
                            "shard_damaged", dataset=self._folder.name, shard=shard.number, error=error.message
                        )
                        if self._is_part(shard):
                            self._begin_anew(shard)
                            return None
                made = writer.finish(failed)
            stats = {**made.facts, "count": self._plan.samples_of(shard.number), "dataset": self._plan.identity}
            stats |= {"round": shard.round, "began": round(shard.began, 3), "ended": round(time.time(), 3)}
            self._check()
            if not self._folder.publish(shard.number, made.tar, made.parquet, stats):
                _log.warning("shard_overtaken", dataset=self._folder.name, shard=shard.number)
                return None
        seconds = round(time.monotonic() - began, 2)
        count_shard(self._folder.name, stats, before, seconds)
        _log.info("shard", dataset=self._folder.name, shard=shard.number, samples=stats["successes"], seconds=seconds)
        return stats

    def _is_part(self, shard: Shard) -> bool:
        """Whether only what failed of it is tried again, and the rest kept."""
        return len(shard.samples) < self._plan.samples_of(shard.number)

    def _begin_anew(self, shard: Shard) -> None:
        """Has all of a shard made again: what an earlier try made of it is gone or damaged."""
        shard.samples, shard.jobs = self._folder.samples(shard.number), []

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
        store, keep = self._farm.store, self._plan.spec.keep
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
