"""Where does a dataset lie in the store, and how is it written whole?

Every object is one write, which a reader sees whole or not at all. What is only valid together is written so that what
names the others comes last: `plan.json` after the samples, `NNNNN_stats.json` after the shard.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from farm.dataset.files import drop
from farm.dataset.plans import Plan, parsed, read_plan, read_samples, unlike
from farm.dataset.scores import tar_of, written
from farm.dataset.shelves import read_stats, read_table
from farm.dataset.sources import BLOCK_BYTES, stored
from farm.dataset.spec import Sample
from farm.dataset.status import State
from farm.errors import BadBlob, Conflict, FarmError, FieldError, InvalidJob, NotFound, Unavailable
from farm.s3 import reaching
from farm.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

STEER_TRIES = 20
"""So often an operator's wish is written again that another one came before."""
WRITERS = 4
"""Threads that write the parts of a plan."""


class Control(BaseModel):
    """What the operator wants of a dataset; that it is `done`, its feeder says.

    `round` counts the retries: what failed in an earlier one is tried again. `held`: its jobs are paused, and nobody
    need feed it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State = "planned"
    priority: int = Field(50, ge=0, le=100)
    round: int = 0
    held: bool = False


class Folder:
    """The objects of one dataset. Every call may raise Unavailable."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    # ------------------------------------------------------------------------------------------------ objects

    def key(self, path: str) -> str:
        """The key of one object."""
        return f"{root(self.store)}{self.name}/{path}"

    def read(self, path: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        found = self.tagged(path)
        return None if found is None else found[0]

    def tagged(self, path: str) -> tuple[bytes, str] | None:
        """The same with the ETag of what it is now, for `write_over`."""
        try:
            with reaching("read a file of a dataset"):
                found = self.store.client.get_object(Bucket=self.store.bucket, Key=self.key(path))
                with closing(found["Body"]) as body:
                    return body.read(), found["ETag"]
        except NotFound:
            return None

    def write(self, path: str, data: bytes | Path, content_type: str = "application/octet-stream") -> None:
        """Writes an object, from memory or from a file."""
        if isinstance(data, Path):
            self.store.put_file(self.store.bucket, self.key(path), data, content_type)
            return
        with reaching("write a file of a dataset"):
            self.store.client.put_object(**self._arguments(path, data, content_type))

    def write_first(self, path: str, data: bytes, content_type: str) -> bool:
        """Whether this writer was the first to write the object; otherwise nothing was written."""
        with reaching("write a file of a dataset"):
            return self.store.put_first(self._arguments(path, data, content_type))

    def write_over(self, path: str, data: bytes, content_type: str, etag: str) -> bool:
        """Whether the object of this ETag was there still, and was replaced; otherwise nothing was written."""
        with reaching("write a file of a dataset"):
            return self.store.put_over(self._arguments(path, data, content_type), etag)

    def _arguments(self, path: str, data: bytes, content_type: str) -> dict[str, Any]:
        return {"Bucket": self.store.bucket, "Key": self.key(path), "Body": data, "ContentType": content_type}

    def names(self, part: str) -> list[str]:
        """The names of the objects that begin with `part`, sorted."""
        start = self.key("")
        with reaching("list a dataset"):
            pages = self.store.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.store.bucket, Prefix=start + part
            )
            return sorted(one["Key"][len(start) :] for page in pages for one in page.get("Contents", []))

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes objects, a thousand with each request."""
        drop(self.store, [self.key(path) for path in paths], "delete of a dataset")

    # ------------------------------------------------------------------------------------------------ plan

    def plan(self) -> Plan:
        """What the dataset is. Raises NotFound where none of this name was planned."""
        data = self.read("plan.json")
        if data is None:
            raise NotFound(f"there is no dataset {self.name!r}", hint="`farm dataset ls` lists them")
        return read_plan(data, self.name)

    def write_plan(self, plan: Plan, folder: Path, wanted: Callable[[], object] | None = None) -> bool:
        """Writes a plan and its samples, which lie in `folder` shard by shard; False if it is there already.

        `wanted` raises where the plan was asked for and is not any more; without it nobody may have asked for one.

        Raises:
            Conflict: there is another dataset of this name, or another one was asked for.
        """
        if (there := self.planned()) is not None:
            return self._same(there, plan)
        if wanted is None:
            wanted = self._check_unasked
        # What a deletion that broke off has left, or who fed a dataset of this name that was deleted.
        self.delete([*self.names("shards/"), "progress.json", "control.json", "trouble.json"])
        with ThreadPoolExecutor(WRITERS) as writers:
            for start in range(0, plan.shards, 2 * WRITERS):
                wanted()
                some = range(start, min(start + 2 * WRITERS, plan.shards))
                list(writers.map(lambda number: self._write_samples(plan, number, folder), some))
        wanted()
        fresh = self.write_first("plan.json", plan.model_dump_json(indent=1).encode(), "application/json")
        there = plan if fresh else self.plan()
        # What plannings have left that broke off, or came later than this one or the other.
        self.delete(path for path in self.names("plan/") if there.is_of_others(path))
        return fresh or self._same(there, plan)

    def _write_samples(self, plan: Plan, number: int, folder: Path) -> None:
        self.write(plan.path_of(number), folder / "plan" / f"{number:05d}.jsonl.gz", "application/gzip")

    def _check_unasked(self) -> None:
        if self.read("asked.json") is not None:
            raise self.taken()

    def planned(self) -> Plan | None:
        """The same, or None."""
        try:
            return self.plan()
        except NotFound:
            return None

    def _same(self, there: Plan, plan: Plan) -> bool:
        # Of what an earlier build did not write, nothing is known.
        known = there.model_fields_set
        if there.model_dump(include=known) != plan.model_dump(include=known):
            # Of somebody else's no more is told than that it is there.
            others = there.owner != plan.owner
            raise self.taken("" if others else unlike(there.spec, plan.spec, there.source, plan.source))
        return False

    def taken(self, why: str = "") -> Conflict:
        """What is wrong where another dataset has this one's name; `why` it is another one."""
        hint = "choose another name, or delete it with `farm dataset rm`"
        return Conflict("there is another dataset of this name already" + (f": {why}" if why else ""), hint=hint)

    def samples(self, number: int) -> list[Sample]:
        """The samples of one shard, as planned."""
        data = self.read(self.plan().path_of(number))
        if data is None:
            raise NotFound(f"the plan of shard {number} of {self.name!r} is gone")
        return read_samples(data, number)

    # ------------------------------------------------------------------------------------------------ control

    def control(self) -> Control:
        """What the operator wants of it."""
        data = self.read("control.json")
        return Control() if data is None else parsed(Control, data, f"what is wanted of {self.name!r}")

    def steer(self, **changes: Any) -> Control:
        """Changes that; of two who change the same at a time the last one wins, and nothing else is lost.

        Raises:
            NotFound: there is no such dataset.
            BadBlob: what is wanted of it cannot be read.
        """
        for _ in range(STEER_TRIES):
            self.plan()
            there = self.tagged("control.json")
            before = Control() if there is None else parsed(Control, there[0], f"what is wanted of {self.name!r}")
            control = Control.model_validate({**before.model_dump(), **changes})
            told = "control.json", control.model_dump_json().encode(), "application/json"
            if self.write_first(*told) if there is None else self.write_over(*told, there[1]):
                return control
        raise Unavailable(f"very many steer {self.name!r} at the same time")

    def tell_trouble(self, error: FarmError) -> None:
        """Says why the dataset does not go on."""
        told = {"code": error.code, "message": error.message, "errors": [asdict(one) for one in _errors(error)]}
        self.write("trouble.json", json.dumps(told).encode(), "application/json")

    # ------------------------------------------------------------------------------------------------ shards

    def numbers(self) -> list[int]:
        """The shards that are there, whole."""
        ends = "_stats.json"
        return [int(name[len("shards/") : -len(ends)]) for name in self.names("shards/") if name.endswith(ends)]

    def has(self, number: int) -> bool:
        """Whether shard `number` is there, whole or damaged."""
        name = f"shards/{number:05d}_stats.json"
        return name in self.names(name)

    def found(self, number: int) -> dict[str, Any] | None:
        """What is known of a shard: counts, hashes, what failed. None where it is not there, or not whole.

        Raises:
            BadBlob: it cannot be read.
        """
        name = f"{number:05d}_stats.json"
        data = self.read(f"shards/{name}")
        return None if data is None else read_stats(data, name)

    def stats(self, number: int) -> dict[str, Any]:
        """The same of a shard that is there. Raises NotFound."""
        if (stats := self.found(number)) is None:
            raise NotFound(f"there is no shard {number} of {self.name!r}")
        return stats

    def publish(self, number: int, tar: Path, parquet: Path, stats: dict[str, Any]) -> bool:
        """Writes a shard; it is there once its stats are, which come last.

        False where there is one of a later round of the same dataset, or another writer's stats came meanwhile.
        """
        name = f"{number:05d}_stats.json"
        if (there := self.tagged(f"shards/{name}")) is not None:
            facts = read_stats(there[0], name)
            if facts.get("dataset") == stats.get("dataset") and facts.get("round", 0) > stats.get("round", 0):
                return False
        self.write(f"shards/{number:05d}.tar", tar, "application/x-tar")
        self.write(f"shards/{number:05d}.parquet", parquet, "application/vnd.apache.parquet")
        data = json.dumps(stats, sort_keys=True, indent=1, ensure_ascii=False).encode()
        told = f"shards/{name}", data, "application/json"
        try:
            return self.write_first(*told) if there is None else self.write_over(*told, there[1])
        except NotFound:  # it was taken for lost meanwhile
            return False

    @contextmanager
    def tar(self, number: int) -> Iterator[Path]:
        """The shard's tar as a file of this machine, for a while. Raises BadBlob."""
        with self._local(f"shards/{number:05d}.tar") as path:
            yield path

    @contextmanager
    def parquet(self, number: int) -> Iterator[Path]:
        """The shard's table, likewise. Raises BadBlob."""
        with self._local(f"shards/{number:05d}.parquet") as path:
            yield path

    def scores(self, number: int) -> pa.Table | None:
        """What was measured of the shard's pictures later (`farm.dataset.scores`).

        None where nothing was, or where the tar was written again since then.

        Raises:
            NotFound: there is no such shard.
            BadBlob: the scores cannot be read; measured again, they can.
        """
        tar = self.stats(number)["files"][f"{number:05d}.tar"]["sha256"]
        name = f"shards/{number:05d}_scores.parquet"
        if not self.names(name):
            return None
        with self._local(name) as path:
            table = read_table(path)
        return table if tar_of(table) == tar else None

    def write_scores(self, number: int, table: pa.Table) -> None:
        """Writes what was measured of a shard's pictures, in place of what was there."""
        self.write(f"shards/{number:05d}_scores.parquet", written(table), "application/vnd.apache.parquet")

    @contextmanager
    def _local(self, path: str) -> Iterator[Path]:
        with TemporaryDirectory() as folder:
            target = Path(folder) / Path(path).name
            try:
                # Hundreds of megabytes: a connection that breaks does not end what reads all shards.
                with stored(self.store, self.store.bucket, self.key(path))() as data, target.open("wb") as file:
                    shutil.copyfileobj(data, file, BLOCK_BYTES)
            except NotFound:
                raise BadBlob(f"{target.name} is missing") from None
            yield target


def _errors(error: FarmError) -> tuple[FieldError, ...]:
    return error.errors[:20] if isinstance(error, InvalidJob) else ()


def root(store: Store) -> str:
    """Below this key all datasets lie."""
    return f"{store.prefix}datasets/"


def datasets(store: Store) -> list[str]:
    """The names of all datasets, sorted. Raises Unavailable."""
    start = root(store)
    with reaching("list the datasets"):
        pages = store.client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=start, Delimiter="/")
        return sorted(one["Prefix"][len(start) : -1] for page in pages for one in page.get("CommonPrefixes", []))
