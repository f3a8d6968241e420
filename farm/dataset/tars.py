"""How is a sample found in a tar, and put into one?

A sample is some members of one key, one after the other. It can be taken from one tar to another byte by byte.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from farm.errors import BadBlob, Conflict

PICTURES = ("png", "webp", "jpg")
"""Extensions of a sample's picture."""
STEP = 1 << 20
"""Bytes that are copied at once."""
_KEY = re.compile(r"[0-9]{9}")
_EXTENSION = re.compile(r"(stage[0-9]\.)?(png|webp|jpg|safetensors)|txt|json")
"""What a shard names its members with. An export makes names of files from both, and its shards may be strangers'."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample in a tar, readable while the tar is open; `files` are its members: extension to place and bytes."""

    key: str
    start: int
    end: int
    files: Mapping[str, tuple[int, int]]
    _file: BinaryIO

    def read(self, extension: str) -> bytes:
        """The bytes of one member.

        Raises:
            BadBlob: there is no such member.
        """
        if extension not in self.files:
            raise BadBlob(f"the sample {self.key} has no {extension}")
        place, size = self.files[extension]
        self._file.seek(place)
        return self._file.read(size)

    def known(self) -> dict[str, Any]:
        """What the sample's JSON says.

        Raises:
            BadBlob: it is no JSON object.
        """
        try:
            found = json.loads(self.read("json"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BadBlob(f"the JSON of the sample {self.key} cannot be read")
        return found

    def picture(self) -> tuple[str, bytes]:
        """The extension and the bytes of the picture.

        Raises:
            BadBlob: there is none.
        """
        for extension in PICTURES:
            if extension in self.files:
                return extension, self.read(extension)
        raise BadBlob(f"the sample {self.key} has no picture")

    def copy(self, to: BinaryIO) -> None:
        """Writes all of it to another tar, byte by byte."""
        _copy(self._file, self.start, self.end, to)


@contextmanager
def entries(tar: Path) -> Iterator[Iterator[Entry]]:
    """The samples of a shard's tar in its order; the tar is open as long as they are looked at.

    Raises:
        BadBlob: (also while they are looked at) it is no whole tar, or has something else in it.
    """
    try:
        with tar.open("rb") as file:
            yield _entries(tar, file)
    except OSError as error:
        raise BadBlob(f"{tar.name} cannot be read: {error.strerror}") from None


def _entries(tar: Path, file: BinaryIO) -> Iterator[Entry]:
    key, start, end, files = "", 0, 0, dict[str, tuple[int, int]]()
    try:
        with tarfile.open(tar, "r:") as opened:
            for member in opened:
                name, _, extension = member.name.partition(".")
                if not (_KEY.fullmatch(name) and _EXTENSION.fullmatch(extension)):
                    raise BadBlob(f"{tar.name} has {member.name[:80]!r}, which is nothing of a sample")
                if name != key and files:
                    yield Entry(key, start, end, files, file)
                if name != key:
                    key, start, files = name, member.offset, {}
                if extension in files:
                    raise BadBlob(f"{tar.name} has {member.name} twice")
                files[extension] = (member.offset_data, member.size)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            # Without this a tar that was cut after a member would read like a whole one.
            if file.seek(0, 2) < end + 2 * tarfile.BLOCKSIZE:
                raise BadBlob(f"{tar.name} is not whole")
    except (tarfile.TarError, EOFError) as error:
        raise BadBlob(f"{tar.name} cannot be read: {error}") from None
    if files:
        yield Entry(key, start, end, files, file)


class TarWriter:
    """A tar that is written sample by sample, in which nothing depends on when, where or by whom.

    Use it in a `with`, then `close` it: what was not closed is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, tuple[int, int]] = {}
        """Where each sample begins and ends, by key."""
        self._file = path.open("w+b")
        self._end, self._closed = 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._closed:
            self.path.unlink(missing_ok=True)

    def add(self, key: str, files: Mapping[str, bytes]) -> None:
        """Adds one sample: extension to bytes, in this order. Raises Conflict where there is one of this key."""
        self._check(key)
        pieces = list[bytes]()
        for extension, data in files.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size, info.mode = len(data), 0o644
            pieces += [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % tarfile.BLOCKSIZE)]
        self._file.writelines(pieces)
        self._note(key, sum(map(len, pieces)))

    def copy(self, entry: Entry) -> None:
        """Adds a sample of another tar as it is. Raises Conflict where there is one of this key."""
        self._check(entry.key)
        entry.copy(self._file)
        self._note(entry.key, entry.end - entry.start)

    def close(self) -> None:
        """Ends the tar, its samples in the order of their keys."""
        keys = list(self.places)
        if keys != sorted(keys):
            fresh = self.path.with_name(f"{self.path.name}.sorted")
            with TarWriter(fresh) as sorted_:
                for key in sorted(keys):
                    start, end = self.places[key]
                    _copy(self._file, start, end, sorted_._file)
                    sorted_._note(key, end - start)
                sorted_.close()
            self.places = sorted_.places
            fresh.replace(self.path)
        else:
            self._file.write(bytes(2 * tarfile.BLOCKSIZE))
            self._file.write(bytes(-(self._end + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))
        self._file.close()
        self._closed = True

    def _check(self, key: str) -> None:
        if key in self.places:
            raise Conflict(f"the sample {key} is in this shard already")

    def _note(self, key: str, size: int) -> None:
        """Remembers where the sample is that was written last."""
        self.places[key] = self._end, self._end + size
        self._end += size


def _copy(source: BinaryIO, start: int, end: int, to: BinaryIO) -> None:
    source.seek(start)
    while start < end:
        data = source.read(min(STEP, end - start))
        if not data:
            raise BadBlob("the tar ends within a sample")
        to.write(data)
        start += len(data)
