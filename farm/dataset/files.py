"""Where does the file lie that a dataset is asked for with?

Under its owner and its SHA-256, with its first rows beside it, so that nobody reads a large file for a look at them::

    <prefix>datasets-files/<owner>/<sha256>/rows.csv
    <prefix>datasets-files/<owner>/<sha256>/rows.csv.first.json.gz     written last

Whoever names a file names it by hash and name below their own owner: others' files cannot be named.
"""

from __future__ import annotations

import gzip
import re
from contextlib import closing
from pathlib import Path

from farm.dataset.peeking import Head
from farm.errors import NotFound
from farm.s3 import reaching
from farm.store import Store

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
        with reaching("write a file of rows"):
            with path.open("rb") as data:
                self._store.client.put_object(
                    Bucket=self._store.bucket, Key=key, Body=data, ContentType="application/octet-stream"
                )
            packed = gzip.compress(head.write().encode(), 6, mtime=0)
            self._store.client.put_object(Bucket=self._store.bucket, Key=_head_of(key), Body=packed)

    def head(self, file: str) -> Head:
        """What a file begins with. Raises NotFound where there is no such file of this owner's."""
        if not re.fullmatch(ID, file):
            raise NotFound("there is no such file")
        with reaching("read a file of rows"):
            found = self._store.client.get_object(Bucket=self._store.bucket, Key=_head_of(self.key(file)))
            with closing(found["Body"]) as body:
                return Head.read(gzip.decompress(body.read()))


def _head_of(key: str) -> str:
    return f"{key}.first.json.gz"
