"""Do latents and images come back as they were, and is everything else refused?"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save

from farm.errors import BadBlob, StageFailed
from farm.image import to_png
from farm.stage import Size
from workers import codec

SHAPE = (4, 3, 5)
METADATA = {"space": "tiny", "factor": "8", "scaled": "true", "denoised": "1.0", "format": "latent-farm/1"}


def latents(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


def good() -> bytes:
    return codec.encode_latents(latents(), "tiny", 4, 8, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_latents_come_back_bit_for_bit(dtype: str) -> None:
    # Given latents of a pipeline's dtype, not contiguous
    before = latents(getattr(torch, dtype)).transpose(1, 2)
    # When they go through bytes
    data = codec.encode_latents(before, "tiny", 4, 8, dtype)
    after = codec.decode_latents(data, "tiny", (4, 5, 3), dtype)
    # Then the dtype is kept, every bit is the same, and they may be written to
    assert after.dtype == before.dtype
    assert torch.equal(after, before)
    after.zero_()


def test_the_wire_is_plain_safetensors() -> None:
    # Given encoded latents
    data = good()
    # When they are read by the library itself
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    # Then there is one tensor of the agreed name, and the metadata says what it is
    assert list(load(data)) == ["latents"]
    assert header["__metadata__"] == METADATA


@pytest.mark.parametrize(
    ("tensor", "code"),
    [
        (torch.zeros(3, 8, 8), "bad_output"),
        (torch.zeros(1, 4, 8, 8), "bad_output"),
        (torch.zeros(4, 8, 8, dtype=torch.float16), "bad_output"),
        (torch.full((4, 8, 8), float("nan")), "nan_output"),
        (torch.full((4, 8, 8), float("inf")), "nan_output"),
        (torch.full((4, 8, 8), -1.01 * codec.MAX_ABS), "bad_output"),
    ],
)
def test_wrong_latents_are_not_written(tensor: torch.Tensor, code: str) -> None:
    with pytest.raises(StageFailed) as caught:
        codec.encode_latents(tensor, "tiny", 4, 8, "float32")
    assert caught.value.code == code


def other(tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> bytes:
    """Bytes by the library, with something else than the farm writes."""
    return save(tensors or {"latents": latents()}, metadata={**METADATA, **metadata})


def header(change: Callable[[str], str], data: bytes | None = None) -> bytes:
    """Good bytes with another header."""
    data = data or good()
    length = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + length].decode()).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "short": lambda: b"\x01\x02\x03",
    "garbage": lambda: bytes(range(256)) * 4,
    "cut off": lambda: good()[:-1],
    "cut off in the header": lambda: good()[:60],
    "something follows": lambda: good() + b"\0",
    "other name": lambda: other({"sample": latents()}),
    "extra tensor": lambda: other({"latents": latents(), "more": torch.zeros(1)}),
    "other dtype": lambda: other({"latents": latents(torch.float16)}),
    "other dtype of the same width": lambda: other({"latents": latents().view(torch.int32)}),
    "other shape": lambda: other({"latents": latents().reshape(4, 5, 3)}),
    "batch dimension": lambda: other({"latents": latents()[None]}),
    "zero dimension": lambda: other({"latents": torch.zeros(4, 0, 5)}),
    "other space": lambda: other(space="sd1"),
    "unscaled": lambda: other(scaled="false"),
    "other format": lambda: other(format="pt"),
    "extra metadata": lambda: other(note="hello"),
    "no metadata": lambda: save({"latents": latents()}),
    "NaN": lambda: other({"latents": latents().index_fill(2, torch.tensor([1]), float("nan"))}),
    "infinity": lambda: other({"latents": latents().index_fill(2, torch.tensor([1]), float("-inf"))}),
    "repeated tensor": lambda: header(lambda text: text[:-1].rstrip() + ',"latents":' + text.split('"latents":')[1]),
    "repeated metadata": lambda: header(lambda text: text.replace('"space":', '"space":"sd1","space":')),
    "long header": lambda: header(lambda text: text + " " * codec.MAX_HEADER_BYTES),
    "deep header": lambda: header(lambda text: "[" * 50_000),
    "header is a list": lambda: header(lambda text: "[]"),
    "header is not UTF-8": lambda: good().replace(b"tiny", b"\xff\xfe\xfd\xfc"),
    "offsets past the end": lambda: header(lambda text: text.replace("[0,240]", "[0,960]")),
    "offsets swapped": lambda: header(lambda text: text.replace("[0,240]", "[240,0]")),
    "metadata is a list": lambda: header(
        lambda text: text.replace(text[text.index('{"', 2) : text.index("}") + 1], "[]")
    ),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_other_bytes_are_not_latents(make: Callable[[], bytes]) -> None:
    # Given bytes that differ in one thing from what the farm writes
    data = make()
    assert data != good()
    # When they are read
    # Then they are refused, and with the farm's own error
    with pytest.raises(BadBlob):
        codec.decode_latents(data, "tiny", SHAPE, "float32")


def test_zero_shapes_are_refused_even_when_asked_for() -> None:
    data = save({"latents": torch.zeros(4, 0, 5)}, metadata=METADATA)
    with pytest.raises(BadBlob):
        codec.decode_latents(data, "tiny", (4, 0, 5), "float32")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_flipped_byte_gives_another_error(data: st.DataObject) -> None:
    # Given good bytes with some of them changed
    blob = bytearray(good())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    # When they are read
    # Then they are either latents of the right kind, or refused as a bad blob: nothing else escapes
    try:
        found = codec.decode_latents(bytes(blob), "tiny", SHAPE, "float32")
    except BadBlob:
        return
    assert (tuple(found.shape), found.dtype) == (SHAPE, torch.float32)
    assert bool(found.isfinite().all())


# images


def image() -> Image.Image:
    pixels = torch.randint(0, 256, (6, 10, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def png(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_images_come_back_bit_for_bit() -> None:
    # Given an RGB image
    before = image()
    # When it goes through bytes
    after = codec.decode_image(to_png(before, {"v": 1}), Size(10, 6))
    # Then every pixel is the same
    assert (after.mode, after.size, after.tobytes()) == ("RGB", (10, 6), before.tobytes())


WIDE = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 6, 16, 2, 0, 0, 0))
OTHER_IMAGES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "garbage": lambda: b"not an image at all, but long enough to look into",
    "JPEG": lambda: png(image(), format="JPEG"),
    "RGBA": lambda: png(image().convert("RGBA")),
    "grey": lambda: png(image().convert("L")),
    "palette": lambda: png(image().convert("P")),
    "other size": lambda: png(image().resize((6, 10))),
    "cut off": lambda: png(image())[:-40],
    "no end": lambda: png(image())[:100],
    "broken checksum": lambda: png(image()).replace(b"IDAT", b"IDAS"),
    "16 bits": lambda: WIDE + chunk(b"IDAT", zlib.compress(b"\0" * 6 * 61)) + chunk(b"IEND", b""),
    "pixels are not zlib": lambda: png(image())[:33] + chunk(b"IDAT", b"nothing of the kind") + chunk(b"IEND", b""),
}


@pytest.mark.parametrize("make", OTHER_IMAGES.values(), ids=OTHER_IMAGES)
def test_other_bytes_are_not_an_image(make: Callable[[], bytes]) -> None:
    with pytest.raises(BadBlob):
        codec.decode_image(make(), Size(10, 6))


def test_black_is_found() -> None:
    # Given a black image, and one with a single pixel that is nearly black
    black = Image.new("RGB", (8, 8))
    nearly = black.copy()
    nearly.putpixel((7, 7), (0, 0, 1))
    # Then only the first is black
    assert codec.is_black(black)
    assert not codec.is_black(nearly)
