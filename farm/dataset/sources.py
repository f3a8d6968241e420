"""Where do a file's bytes lie, and what are they once unpacked?

A file of this machine, or an object in S3, which is streamed and, when the connection breaks, read on from where it
broke. What comes out of `unpacked` is UTF-8 without a byte order mark, whatever of gzip, UTF-8 and UTF-16 went in.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import zlib
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from farm.errors import InvalidJob, NotFound, Unavailable

if TYPE_CHECKING:
    from botocore.response import StreamingBody

    from farm.store import Store

Format = Literal["csv", "tsv", "json", "jsonl", "parquet", "txt"]
SUFFIXES: dict[str, Format] = {
    **{f".{name}": name for name in get_args(Format)},
    ".ndjson": "jsonl",
}
"""The format that a name's end tells."""
KNOWN = "csv, tsv, json, jsonl (ndjson), txt, each also with .gz, and parquet"
S3 = "s3://"
UNPACKED_BYTES = 64 * 2**30
"""Most bytes that a gzip may hold. Source: a million rows of the longest cell."""
BLOCK_BYTES = 2**20
"""How much is read at once."""
TRIES = 4
"""Tries to go on with an object whose connection broke, from one place on."""
ZIP, GZIP, PARQUET = (b"PK\x03\x04", b"PK\x05\x06"), (b"\x1f\x8b",), (b"PAR1",)
"""First bytes. Source: APPNOTE.TXT 4.3.7 and 4.3.16; RFC 1952 §2.3.1; the Parquet file format."""
UTF16, UTF32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
LOOKED_BYTES = 2**12
"""So much of a file is looked at for an encoding that it does not tell."""
AS_UTF8 = "save it as UTF-8 (spreadsheets: “CSV UTF-8”; PowerShell: -Encoding utf8)"


@dataclass(frozen=True)
class Source:
    """A file of rows. `name` is its name without the folder, `open` gives its raw bytes, each time from the start."""

    name: str
    open: Callable[[], BinaryIO]
    format: Format
    gz: bool = False


def bad_file(name: str, why: str, hint: str = "") -> InvalidJob:
    """The refusal of a whole file."""
    return InvalidJob(f"{name}: {why}", code="bad_file", hint=hint)


def source_of(where: str | Path, *, store: Store | None = None, format: str | None = None) -> Source:
    """The file at a path or, with a `store` to read it through, at `s3://bucket/key`.

    `format` is one of `SUFFIXES` without its dot, with `.gz` where it is packed; without it the name's end tells.

    Raises:
        InvalidJob: (`bad_file`) there is no such file, or its format is not known.
        Unavailable: the store does not answer.
    """
    # A Path would make one slash of the two.
    is_object = isinstance(where, str) and where.startswith(S3)
    name = str(where).rstrip("/").rpartition("/")[2] if is_object else Path(where).name
    found, gz = format_of(name, format)
    if is_object:
        if store is None:
            raise bad_file(name, "an object in S3 needs a store to read it through")
        return Source(name, _of_object(str(where), store, name), found, gz)
    path = Path(where)
    try:
        if not path.exists():
            raise bad_file(name, "there is no such file")
        if not path.is_file():
            raise bad_file(name, "this is no file")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise bad_file(name, f"it cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    return Source(name, lambda: path.open("rb"), found, gz)


def format_of(name: str, given: str | None) -> tuple[Format, bool]:
    """The format of a file, by its name where none is given, and whether it is packed. Raises InvalidJob."""
    told = PurePosixPath(f"x.{given.lower().lstrip('.')}" if given else name.lower())
    gz = told.suffix == ".gz" or (given is not None and name.lower().endswith(".gz"))
    suffix = (told.with_suffix("") if told.suffix == ".gz" else told).suffix
    if suffix not in SUFFIXES:
        hint = "unpack it, and give the file itself" if suffix == ".zip" else f"known are {KNOWN}"
        raise bad_file(name, f"rows in {suffix!r} are not known" if suffix else "its name tells no format", hint)
    if gz and SUFFIXES[suffix] == "parquet":
        raise bad_file(name, "Parquet is packed by itself, not by gzip", "unpack it")
    return SUFFIXES[suffix], gz


def digest(source: Source) -> tuple[str, int]:
    """The SHA-256 (hex) and the number of the raw bytes.

    Raises:
        Unavailable: the store does not answer.
    """
    found, size = hashlib.sha256(), 0
    with source.open() as data:
        while block := data.read(BLOCK_BYTES):
            found.update(block)
            size += len(block)
    return found.hexdigest(), size


def unpacked(source: Source) -> io.BufferedReader[Any]:
    """The text of the file as UTF-8; bytes that are none are left in, for the row that has them to be told.

    Raises:
        InvalidJob: (`bad_file`) it is packed otherwise than told, or not text. Reading from it may raise so, too.
        Unavailable: the store does not answer.
    """
    raw = source.open()
    data: io.BufferedReader[Any] = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
    try:
        if source.gz:
            if not data.peek(2).startswith(GZIP):
                raise bad_file(source.name, "this is not gzip", "name it without .gz, or pack it")
            data = io.BufferedReader(_Unpacked(data, source.name), BLOCK_BYTES)
        return _as_utf8(data, source)
    except BaseException:
        data.close()
        raise


def _as_utf8(data: io.BufferedReader[Any], source: Source) -> io.BufferedReader[Any]:
    head = data.peek(8)[:8]
    if head.startswith(ZIP):
        raise bad_file(source.name, "this is a zip archive or a workbook", "unpack it, or save the sheet as CSV")
    if head.startswith(GZIP):
        raise bad_file(source.name, "this is packed with gzip once more than told", "unpack it, or name it .gz")
    if head.startswith(PARQUET):
        raise bad_file(source.name, "this is Parquet", "name it .parquet")
    if head.startswith(UTF32):
        raise bad_file(source.name, "this is UTF-32", AS_UTF8)
    if head.startswith(UTF16):
        return io.BufferedReader(_Recoded(data, source.name), BLOCK_BYTES)
    if b"\0" in head[:2] or _is_wide(data.peek(LOOKED_BYTES)[:LOOKED_BYTES]):
        raise bad_file(source.name, "this is no text, or UTF-16 that does not say so", AS_UTF8)
    if head.startswith(codecs.BOM_UTF8):
        data.read(len(codecs.BOM_UTF8))
    return data


def _is_wide(head: bytes) -> bool:
    """Whether a text that begins so is UTF-16 or UTF-32 without its mark.

    Its line ends have NULs. What has a NUL and is UTF-8 otherwise is a text with a stray NUL, told by its row, unless a
    quarter of it are NULs, as of Latin letters that have two bytes or four.
    """
    if b"\n\0" not in head and b"\0\n" not in head:
        return False
    if head.count(0) * 4 >= len(head):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeError:
        whole = head[: len(head) // 2 * 2]
        return any("\n" in whole.decode(form, "ignore") for form in ("utf-16-le", "utf-16-be"))
    return False


class _Raw(io.RawIOBase):
    """Bytes that `more` makes, from a file below that is closed with this one."""

    def __init__(self, below: BinaryIO, name: str) -> None:
        self._below, self._name = below, name

    def readable(self) -> bool:
        return True

    @abstractmethod
    def more(self, size: int) -> bytes:
        """At most `size` bytes, none at the end."""

    def readinto(self, buffer: Any) -> int:
        found = self.more(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        if not self.closed:
            self._below.close()
        super().close()


class _Unpacked(_Raw):
    """What a gzip holds, up to `UNPACKED_BYTES`."""

    def __init__(self, below: BinaryIO, name: str) -> None:
        super().__init__(below, name)
        self._gzip, self._size = gzip.GzipFile(fileobj=below, mode="rb"), 0

    def more(self, size: int) -> bytes:
        try:
            found = self._gzip.read1(size)
        except EOFError:
            raise bad_file(self._name, "the gzip ends too early", "upload or copy it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise bad_file(self._name, f"the gzip is damaged: {error}", "pack it again") from None
        self._size += len(found)
        if self._size > UNPACKED_BYTES:
            raise bad_file(self._name, f"the gzip holds more than {UNPACKED_BYTES // 2**30} GiB", "split it")
        return found


class _Recoded(_Raw):
    """UTF-16 with its mark, as UTF-8."""

    def __init__(self, below: BinaryIO, name: str) -> None:
        super().__init__(below, name)
        self._decoder, self._left = codecs.getincrementaldecoder("utf-16")(), b""

    def more(self, size: int) -> bytes:
        while not self._left:
            block = self._below.read(BLOCK_BYTES)
            try:
                self._left = self._decoder.decode(block, final=not block).encode()
            except UnicodeError:
                raise bad_file(self._name, "this is not the UTF-16 that its first bytes tell", AS_UTF8) from None
            if not block:
                break
        found, self._left = self._left[:size], self._left[size:]
        return found


# ---------------------------------------------------------------------------------------------------------------- S3


def _of_object(uri: str, store: Store, name: str) -> Callable[[], BinaryIO]:
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not bucket or not key or key.endswith("/"):
        raise bad_file(name, "an object is named s3://bucket/key")
    try:
        return stored(store, bucket, key)
    except NotFound:
        raise bad_file(name, "there is no such object") from None


def stored(store: Store, bucket: str, key: str) -> Callable[[], BinaryIO]:
    """Opens an object in S3 as it is now; what reads it goes on where the connection breaks.

    Raises:
        NotFound: there is none; also while it is read.
        Unavailable: the store does not answer, or the object is another one by now; also while it is read.
    """
    size, etag = store.about(bucket, key)
    return lambda: io.BufferedReader(_Object(store, bucket, key, size, etag), BLOCK_BYTES)


class _Object(io.RawIOBase):
    """An object in S3 as it was when it was first looked at."""

    def __init__(self, store: Store, bucket: str, key: str, size: int, etag: str) -> None:
        self._store, self._bucket, self._key, self._size, self._etag = store, bucket, key, size, etag
        self._at = 0
        self._body: StreamingBody | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        from botocore.exceptions import BotoCoreError

        for _ in range(TRIES):
            if self._at >= self._size:
                return 0
            if self._body is None:
                self._body = self._store.body(self._bucket, self._key, self._at, self._etag)
            try:
                found = self._body.read(len(buffer))
            except BotoCoreError:
                self._drop()
                continue
            buffer[: len(found)] = found
            self._at += len(found)
            return len(found)
        raise Unavailable(f"the store breaks off while {self._key.rpartition('/')[2]} is read")

    def _drop(self) -> None:
        if self._body is not None:
            with suppress(Exception):
                self._body.close()
            self._body = None

    def close(self) -> None:
        self._drop()
        super().close()
