"""From where are shards read, and to where is a dataset written?

Wherever that is, an export needs no more than this. Here both are folders of this machine; `farm.dataset.folder` has
the same for the store, `farm.remote.shelves` for a farm elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from farm.dataset.scores import tar_of
from farm.errors import BadBlob, FieldError, InvalidJob, NotFound, Unavailable
from farm.s3 import reaching
from farm.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

_STATS = re.compile(r"(\d{5})_stats\.json")


@contextmanager
def installed() -> Iterator[None]:
    """Around imports: says which package of the extra `dataset` is missing. Raises Unavailable."""
    try:
        import pyarrow  # noqa: F401 — imported late by most of what needs it

        yield
    except ModuleNotFoundError as error:
        raise Unavailable(f"datasets need {error.name}", hint="pip install 'latent-farm[dataset]'") from None


class Shards(Protocol):
    """The whole shards of one dataset."""

    def numbers(self) -> Sequence[int]:
        """Which there are, ascending."""

    def tar(self, number: int) -> AbstractContextManager[Path]:
        """A local copy of the tar, for as long as it is needed."""

    def parquet(self, number: int) -> AbstractContextManager[Path]:
        """A local copy of the table, for as long as it is needed."""

    def scores(self, number: int) -> pa.Table | None:
        """What was measured of its pictures later: `key`, and columns of numbers; None where nothing was."""

    def stats(self, number: int) -> dict[str, Any]:
        """The facts that were written with it (`farm.dataset.sharding.Shard`)."""


@contextmanager
def sound(shards: Shards, number: int, end: Literal["tar", "parquet"]) -> Iterator[Path]:
    """A local copy of a shard's file, which is the one that was written. Raises BadBlob."""
    name = f"{number:05d}.{end}"
    with shards.tar(number) if end == "tar" else shards.parquet(number) as path:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shards.stats(number)["files"][name]["sha256"]:
            hint = "`farm dataset verify` says what is wrong, with --repair it is made again"
            raise BadBlob(f"{name} is not the file that was written", hint=hint)
        yield path


class ShardFolder:
    """Shards in a local folder, by the names that they have in the store; scores are `00042_scores.parquet`.

    `notes`: the folder in which their stats and scores lie, if not in the same one.

    Raises:
        NotFound: there is no such folder, or no shard in it.
    """

    def __init__(self, folder: Path, notes: Path | None = None) -> None:
        self.folder, self.notes = folder, folder if notes is None else notes
        names = [path.name for path in self.notes.iterdir()] if self.notes.is_dir() else []
        self._numbers = sorted(int(found[1]) for found in map(_STATS.fullmatch, names) if found)
        if not self._numbers:
            raise NotFound(f"{folder}: no shard is here", hint="a shard is 00000.tar, .parquet and _stats.json")

    def numbers(self) -> Sequence[int]:
        return self._numbers

    @contextmanager
    def tar(self, number: int) -> Iterator[Path]:
        yield _file(self.folder, f"{number:05d}.tar")

    @contextmanager
    def parquet(self, number: int) -> Iterator[Path]:
        yield _file(self.folder, f"{number:05d}.parquet")

    def scores(self, number: int) -> pa.Table | None:
        path = self.notes / f"{number:05d}_scores.parquet"
        if not path.exists():
            return None
        table = read_table(path)
        # Scores of a tar that was written again since then are none; a table may also not say of which it speaks.
        return table if tar_of(table) in ("", self.stats(number)["files"][f"{number:05d}.tar"]["sha256"]) else None

    def stats(self, number: int) -> dict[str, Any]:
        name = f"{number:05d}_stats.json"
        return read_stats(_file(self.notes, name).read_bytes(), name)


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise BadBlob(f"{name} is missing")
    return path


class Target(Protocol):
    """Where a dataset is written; its files have relative names such as `data/train-00000.tar`."""

    def names(self) -> set[str]:
        """Which files are there now."""

    def read(self, name: str) -> bytes:
        """The bytes of one."""

    def put(self, name: str, path: Path) -> None:
        """Writes one, a copy of the local file at `path`, whole or not at all."""

    def remove(self, name: str) -> None:
        """Removes one."""


class TargetFolder:
    """A local folder, which need not be there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> set[str]:
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidJob(errors=(FieldError("out", f"{self.folder} is a file; give a folder", "bad_file"),))
        if self.folder.resolve() == Path(self.folder.anchor):
            raise InvalidJob(errors=(FieldError("out", "a folder of its own, not the whole disk", "bad_file"),))
        paths = self.folder.rglob("*")
        return {path.relative_to(self.folder).as_posix() for path in paths if not path.is_dir()}

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def put(self, name: str, path: Path) -> None:
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f".{place.name}.part")
        shutil.copyfile(path, fresh)
        fresh.replace(place)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


class TargetBucket:
    """A place in S3, `s3://bucket/prefix`, reached as the farm's own store is.

    Raises:
        InvalidJob: it is not written so.
    """

    def __init__(self, store: Store, uri: str) -> None:
        found = re.fullmatch(r"s3://([a-z0-9.-]{3,63})/(.+?)/*", uri)
        if found is None:
            raise InvalidJob(errors=(FieldError("out", "a folder, or s3://BUCKET/PREFIX"),))
        self._store, self._client, self._bucket, self._prefix = store, store.client, found[1], found[2] + "/"

    def names(self) -> set[str]:
        with reaching("list an export"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            return {one["Key"][len(self._prefix) :] for page in pages for one in page.get("Contents", [])}

    def read(self, name: str) -> bytes:
        with reaching("read an export"):
            return self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()

    def put(self, name: str, path: Path) -> None:
        self._store.put_file(self._bucket, self._prefix + name, path)

    def remove(self, name: str) -> None:
        with reaching("delete an export"):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)


def read_stats(data: bytes, name: str) -> dict[str, Any]:
    """The facts of a shard in what was written of them. Raises BadBlob."""
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadBlob(f"{name} cannot be read")
    return found


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a Parquet file, or these columns of it."""
    return _parquet(path, lambda file: file.read(columns))


def read_schema(path: Path) -> pa.Schema:
    """The fields of the table in a Parquet file."""
    return _parquet(path, lambda file: file.schema_arrow)


def _parquet(path: Path, look: Callable[[Any], Any]) -> Any:
    """What `look` finds in a Parquet file.

    Raises:
        BadBlob: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return look(file)
    except (pa.ArrowException, OSError) as error:
        raise BadBlob(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from None
