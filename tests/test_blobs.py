"""Is every damaged blob found before a stage sees it, and is a damaged transfer no damaged blob?"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from farm.errors import BadBlob, Unavailable
from farm.image import to_png
from farm.settings import Settings
from farm.stage import Size
from farm.store import Store
from tests.test_codec import SHAPE, good, header, latents, other
from tests.test_image import noise
from tests.test_outages import Line
from tests.test_store import overwrite
from workers import codec

ROUNDS = 500
"""Damages of each of the two kinds of blob."""


def damaged(data: bytes, dice: random.Random) -> bytes:
    """`data` with one to four bits flipped, or cut off somewhere."""
    if dice.random() < 0.3:
        return data[: dice.randrange(len(data))]
    found = bytearray(data)
    for bit in dice.sample(range(8 * len(data)), dice.randint(1, 4)):
        found[bit // 8] ^= 1 << bit % 8
    return bytes(found)


def read_latents(store: Store, sha256: str) -> object:
    return codec.decode_latents(store.get_blob(sha256, 1 << 16), "tiny", SHAPE, "float32")


def read_image(store: Store, sha256: str) -> object:
    return codec.decode_image(store.get_blob(sha256, 1 << 16), Size(64, 64))


@pytest.mark.parametrize(
    ("data", "read"), [(good(), read_latents), (to_png(noise(64, 64), {"v": 1}), read_image)], ids=["latents", "image"]
)
def test_every_flipped_bit_and_every_truncation_is_found(
    data: bytes, read: Callable[[Store, str], object], store: Store
) -> None:
    # Given a real blob in a real store, which can be read as a stage reads it
    dice, outcomes = random.Random(3), Counter[str]()
    sha256 = store.put_blob(data, "application/octet-stream")
    assert read(store, sha256) is not None
    # When it is damaged there, again and again
    for _ in range(ROUNDS):
        overwrite(store, store.blob_key(sha256), damaged(data, dice))
        try:
            read(store, sha256)
        except BadBlob:
            outcomes["found"] += 1
        else:
            outcomes["missed"] += 1
    # Then it is found every time, and healed by whoever makes it again
    assert outcomes == {"found": ROUNDS}
    store.put_blob(data, "application/octet-stream")
    assert read(store, sha256) is not None


MARK, SPOILT = b"a whole mark", b"a torn mark!"


class Spoiling(Line):
    """A line to S3 that changes the bytes of the first `times` objects that are read through it."""

    def __init__(self, target: int, times: int) -> None:
        self.times, self.reads = times, 0
        super().__init__(target)

    def _requests(self, client: socket.socket, server: socket.socket, troubled: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                self.reads += data.startswith(b"GET ")
                server.sendall(data)

    def _replies(self, server: socket.socket, client: socket.socket, troubled: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data.replace(MARK, SPOILT) if self.reads <= self.times else data)


@contextmanager
def spoiling(store: Store, settings: Settings, times: int) -> Iterator[tuple[Store, Spoiling]]:
    """The store as it is seen through a line that spoils."""
    line = Spoiling(int(str(settings.s3_endpoint).rpartition(":")[2]), times)
    try:
        yield Store(settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{line.port}"})), line
    finally:
        line.close()


@pytest.mark.parametrize(("times", "reads"), [(0, 1), (1, 2), (2, 2)])
def test_a_damaged_transfer_is_made_once_more(store: Store, s3_settings: Settings, times: int, reads: int) -> None:
    # Given a whole blob, and a line that damages what is read first
    data = MARK * 1000
    sha256 = store.put_blob(data, "text/plain")
    with spoiling(store, s3_settings, times) as (seen, line):
        # When it is read, then it is whole at the second try, and given up after it
        if times < 2:
            assert seen.get_blob(sha256, len(data)) == data
        else:
            with pytest.raises(BadBlob, match="not those that were written"):
                seen.get_blob(sha256, len(data))
        assert line.reads == reads


def test_what_is_gone_or_too_large_is_asked_for_once(store: Store, s3_settings: Settings) -> None:
    sha256 = store.put_blob(b"x" * 100, "text/plain")
    with spoiling(store, s3_settings, 0) as (seen, line):
        for name, limit in (("0" * 64, 100), (sha256, 99)):
            with pytest.raises(BadBlob):
                seen.get_blob(name, limit)
        assert line.reads == 2


def test_a_transfer_that_breaks_off_is_no_bad_blob(store: Store, s3_settings: Settings) -> None:
    # Given a blob that never comes whole
    data = os.urandom(1 << 20)
    sha256 = store.put_blob(data, "text/plain")
    line = Line(int(str(s3_settings.s3_endpoint).rpartition(":")[2]), since=b"GET ", cut=1000)
    settings = s3_settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{line.port}"})
    # When, Then: it may be asked for again, and is not made again
    with pytest.raises(Unavailable):
        Store(settings).get_blob(sha256, len(data))
    line.close()


def length(value: int) -> bytes:
    """Good latents that say their header has another length."""
    return struct.pack("<Q", value) + good()[8:]


def said(field: str, value: str) -> Callable[[], bytes]:
    """Good latents whose header says something else of the tensor."""
    old = {"dtype": '"F32"', "shape": "[4,3,5]", "data_offsets": "[0,240]"}[field]
    return lambda: header(lambda text: text.replace(f'"{field}":{old}', f'"{field}":{value}'))


def overlapping(text: str) -> str:
    """The header with a second tensor on the bytes of the first."""
    return text.rstrip()[:-1] + "," + text[text.index('"latents"') :].replace("latents", "more", 1)


WRONG: dict[str, Callable[[], bytes]] = {
    "seven bytes": lambda: good()[:7],
    "header of 2^63 bytes": lambda: length(1 << 63),
    "header of 100,000,001 bytes": lambda: length(100_000_001),
    "header of no bytes": lambda: length(0),
    "header is no JSON": lambda: header(lambda text: text.replace('"', "'")),
    "header has NaN": lambda: header(lambda text: text.replace("[4,3,5]", "[NaN,3,5]")),
    "header has a long number": lambda: header(lambda text: text.replace("[4,3,5]", f"[{'9' * 5000},3,5]")),
    "negative dimension": said("shape", "[-4,-3,5]"),
    "overflowing dimensions": said("shape", f"[{1 << 62},4,60]"),
    "dimension true": said("shape", "[4,3,true]"),
    "unknown dtype": said("dtype", '"F31"'),
    "quantised dtype": said("dtype", '"F8_E4M3"'),
    "dtype is a list": said("dtype", '["F32"]'),
    "a hole before the data": said("data_offsets", "[4,244]"),
    "offsets overflow": said("data_offsets", f"[0,{1 << 64}]"),
    "no offsets": said("data_offsets", "[]"),
    "overlapping tensors": lambda: header(overlapping),
    "ten thousand tensors": lambda: other({f"t{i}": latents()[:1, :1, :1].clone() for i in range(10_000)}),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_a_header_may_say_wrong_is_refused(make: Callable[[], bytes]) -> None:
    data = make()
    assert data != good()
    with pytest.raises(BadBlob):
        codec.decode_latents(data, "tiny", SHAPE, "float32")
