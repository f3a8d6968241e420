"""Where does the file lie that a dataset is asked for with?

Under its owner and its SHA-256, with its first rows beside it, so that nobody reads a large file for a look at them::

    <prefix>datasets-files/<owner>/<sha256>/rows.csv
    <prefix>datasets-files/<owner>/<sha256>/rows.csv.first.json.gz     written last

Whoever names a file names it by hash and name below their own owner: others' files cannot be named. What lies there
without its first rows cannot be named; how long a file stays: `farm.dataset.leftovers`.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.dataset.peeking import Head
from farm.errors import NotFound, Unavailable
from farm.s3 import reaching
from farm.store import Store

DELETED = 1000
"""Objects that one request deletes. Source: S3's DeleteObjects."""
HEAD = ".first.json.gz"
"""What the name of a file's first rows has behind the file's."""
ID = r"^[0-9a-f]{64}/[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}$"
"""What names a file of an owner's: its SHA-256 and its name."""


def safe_name(name: str) -> str:
    """A file's name without folders and without what is special somewhere; its end, which tells the format, stays."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "_", re.split(r"[/\\]", name)[-1])
    return found[-120:].lstrip(".") or "rows"


class Files:
    """The files of one owner. Every call may raise Unavailable."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store, self._root = store, f"{store.prefix}datasets-files/{owner or '-'}/"

    def key(self, file: str) -> str:
        """The key of a file in the store."""
        return self._root + file

    def put(self, file: str, path: Path, head: Head) -> None:
        """Stores a file, and what it begins with."""
        key = self.key(file)
        with reaching("write a file of rows"), path.open("rb") as data:
            self._store.client.put_object(
                Bucket=self._store.bucket, Key=key, Body=data, ContentType="application/octet-stream"
            )
        self.renew(file, head)

    def renew(self, file: str, head: Head) -> None:
        """Writes again what a file begins with: it was uploaded now."""
        packed = gzip.compress(head.write().encode(), 6, mtime=0)
        with reaching("write a file of rows"):
            self._store.client.put_object(Bucket=self._store.bucket, Key=self.key(file) + HEAD, Body=packed)

    def is_there(self, file: str) -> bool:
        """Whether the file and its first rows are there."""
        try:
            for key in (self.key(file) + HEAD, self.key(file)):
                self._store.about(self._store.bucket, key)
        except NotFound:
            return False
        return True

    def head(self, file: str) -> Head:
        """What a file begins with. Raises NotFound where there is no such file of this owner's."""
        if not re.fullmatch(ID, file):
            raise NotFound("there is no such file")
        with reaching("read a file of rows"):
            found = self._store.client.get_object(Bucket=self._store.bucket, Key=self.key(file) + HEAD)
            with closing(found["Body"]) as body:
                return Head.read(gzip.decompress(body.read()))


@dataclass(frozen=True)
class Upload:
    """A file of anybody's: its key, whether its first rows are there, and when it was uploaded, seconds since 1970."""

    key: str
    headed: bool
    at: float


def uploads(store: Store) -> list[Upload]:
    """All files. Raises Unavailable."""
    with reaching("list files of rows"):
        pages = store.client.get_paginator("list_objects_v2").paginate(
            Bucket=store.bucket, Prefix=f"{store.prefix}datasets-files/"
        )
        found = {one["Key"]: one["LastModified"].timestamp() for page in pages for one in page.get("Contents", [])}
    heads = {key + HEAD for key in found} & found.keys()
    return [
        Upload(key, key + HEAD in heads, found.get(key + HEAD, at)) for key, at in found.items() if key not in heads
    ]


def drop(store: Store, keys: Sequence[str], purpose: str = "delete files of rows") -> None:
    """Deletes objects, a thousand with each request. Raises Unavailable, also where some of them stay."""
    for start in range(0, len(keys), DELETED):
        some: Any = [{"Key": key} for key in keys[start : start + DELETED]]
        with reaching(purpose):
            told = store.client.delete_objects(Bucket=store.bucket, Delete={"Objects": some, "Quiet": True})
        if errors := told.get("Errors"):  # of single objects, in an answer that is none itself
            raise Unavailable(f"the store refused to {purpose}: {errors[0].get('Code', '')}")
