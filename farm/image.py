"""How does a stranger's image become one that a stage may see, and how does a picture carry its recipe?

An input is opened as PNG, JPEG or WebP by its content, refused by its header before anything is decoded, turned as
its EXIF says, laid on white where it is transparent, and handed on as bare uint8 RGB: no metadata, no trailing bytes.
Colour profiles are dropped, not applied: values count as sRGB.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from math import isqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from farm.errors import FieldError, InvalidJob, StageFailed
from farm.settings import Settings
from farm.stage import Size

FORMATS = ("PNG", "JPEG", "WEBP")
RECIPE_KEY = "latent-farm"
"""Keyword of the PNG text chunk that holds the recipe."""
MAKER = b"latent-farm\0"
"""Whose EXIF MakerNote it is, in a dataset's WebP or JPEG; what a PNG's text chunk says follows, with `pixels`."""
_PNG = b"\x89PNG\r\n\x1a\n"
"""How a PNG begins. Source: PNG specification, 5.2."""
MAX_RECIPE_BYTES = 1 << 20
"""Longest recipe that is read back: a chain of eight stages with the longest prompts takes about 100 KiB."""
MIN_SIDE = 64
"""Shortest side that a stage is given, pixels."""

Fit = Literal["cover", "contain", "stretch"]

# For the whole process, as Pillow's manual advises; a filter per call would not be safe between threads.
warnings.simplefilter("error", Image.DecompressionBombWarning)
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow's plugins raise on damaged files: they have no common class. A test feeds them flipped bits."""


class Stored(bytes):
    """A picture that the farm itself wrote: as long as its pixels make it, whatever the file had that it came in."""


def read_input(data: bytes | Path, settings: Settings, *, opaque: bool = False) -> Image.Image:
    """The picture in `data` (a file's bytes, or its path) as RGB without metadata; where it must be, it is `opaque`.

    Raises:
        InvalidJob: (`too_large`) the file or the picture is larger than the settings allow;
            (`bad_image`) it is not a still, whole PNG, JPEG or WebP.
    """
    raw = _contents(data, settings.max_upload_bytes) if isinstance(data, Path) else data
    if len(raw) > settings.max_upload_bytes and not isinstance(raw, Stored):
        raise _refused(
            f"the file is larger than {settings.max_upload_bytes} bytes: scale it down, or save it as JPEG", "too_large"
        )
    with _decoding(), Image.open(BytesIO(raw), formats=FORMATS) as opened:
        width, height = opened.size
        if max(width, height) > settings.max_side or width * height > settings.max_area:
            raise _refused(
                f"the image is {Size(width, height)} pixels; a side has at most {settings.max_side} pixels, "
                f"all together at most {settings.max_area}: scale it down",
                "too_large",
            )
        # MPO is what phones write as .jpg: the photograph first, then a preview or depth map. It is not an animation.
        if opened.format != "MPO" and getattr(opened, "is_animated", False):
            raise _refused("the image is animated: give one frame of it as PNG")
        opened.load()
        if (
            opaque
            and opened.has_transparency_data
            and opened.convert("RGBA").getchannel("A").getextrema() != (255, 255)
        ):
            raise _refused("a mask is black and white, white is drawn anew; this one is transparent: lay it on black")
        return _bare(ImageOps.exif_transpose(opened))


def size_of(data: bytes) -> Size:
    """The size that an image file's header tells, in pixels; nothing is decoded.

    Raises:
        InvalidJob: (`bad_image`) it is no PNG, JPEG or WebP.
    """
    with _decoding(), Image.open(BytesIO(data), formats=FORMATS) as opened:
        return Size(*opened.size)


def fit(image: Image.Image, size: Size, how: Fit) -> Image.Image:
    """`image` at exactly `size`, by an explicit rule, with Lanczos resampling.

    `cover` fills the size and crops what sticks out, evenly on both sides; `contain` keeps all of the image and adds
    white bands (white as under transparency); `stretch` gives up the aspect.
    """
    if image.size == tuple(size):
        return image
    if how == "cover":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if how == "contain":
        return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color="white")
    return image.resize(size, Image.Resampling.LANCZOS)


def png_size(data: bytes) -> Size | None:
    """The size that a PNG says it has; None for anything else."""
    # Source: PNG specification, 11.2.2.
    if len(data) < 24 or not data.startswith(_PNG + b"\x00\x00\x00\rIHDR"):
        return None
    return Size(*struct.unpack(">II", data[16:24]))


def natural_size(width: int, height: int, area: int, max_side: int, multiple: int = 8) -> Size:
    """The size at which an input is redrawn if nobody says one, in pixels: its own, as far as the checkpoint can.

    Smaller than 64 on a side: scaled up. Larger than `area` (in pixels) or than `max_side`: scaled down. The aspect is
    kept, then each side is rounded down to a `multiple` (at least the VAE's factor), but never below 64, even where
    that breaks the area of a very long image.
    """
    if min(width, height) < MIN_SIDE:
        width, height = width * MIN_SIDE // min(width, height), height * MIN_SIDE // min(width, height)
    if width * height > area:
        # side × sqrt(area / (width × height)), in whole numbers so that every machine agrees
        width, height = isqrt(area * width // height), isqrt(area * height // width)
    if max(width, height) > max_side:
        width, height = width * max_side // max(width, height), height * max_side // max(width, height)
    return Size(*(max(MIN_SIDE, side // multiple * multiple) for side in (width, height)))


def to_png(
    image: Image.Image, recipe: Mapping[str, Any] | None = None, texts: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """A lossless PNG of an RGB image, with the recipe and `texts` as its only metadata; same input, same bytes.

    Raises:
        StageFailed: (`bad_output`) the image is not RGB.
    """
    if image.mode != "RGB":
        raise StageFailed(f"an image of mode {image.mode} came where RGB was expected", code="bad_output")
    text = PngImagePlugin.PngInfo()
    for keyword, told in texts.items():
        # As A1111 does: Latin-1 where that holds the text, for that is what most readers look for.
        text.add_itxt(keyword, told) if keyword.startswith("XML:") else text.add_text(keyword, told)
    if recipe is not None:
        text.add_itxt(RECIPE_KEY, json.dumps(recipe, sort_keys=True, separators=(",", ":")))
    bare, out = image.copy(), BytesIO()
    bare.info = {}  # Pillow would write a profile or a transparent colour that it finds here
    bare.save(out, "PNG", pnginfo=text, compress_level=6)
    return out.getvalue()


def read_recipe(data: bytes) -> dict[str, Any]:
    """The recipe that `to_png` wrote into this PNG, or a dataset's shard into this WebP or JPEG.

    Raises:
        InvalidJob: (`bad_file`) there is none that can be read.
    """
    found = read_told(data)
    if found.get("too_long"):
        message = "the recipe of this picture was too long for a JPEG, so it is not in it"
        hint = "the JSON of the sample in its shard has it, as `recipe`; PNG and WebP hold recipes of any length"
        raise InvalidJob(message, code="bad_file", hint=hint)
    return found


def read_told(data: bytes) -> dict[str, Any]:
    """What a picture of the farm says of itself: its recipe; of a JPEG that cannot hold that, that it is `too_long`.

    A WebP or JPEG says beside it what `pixels_sha256` was for the PNG that it was made from, in `pixels`.

    Raises:
        InvalidJob: (`bad_file`) it says nothing that can be read.
    """
    remedy = (
        "give a PNG as the farm wrote it, or a WebP or JPEG of its datasets; editors and image hosts drop the recipe"
    )
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            text = opened.info.get(RECIPE_KEY) if opened.format == "PNG" else _maker_note(opened)
    except UNREADABLE as error:
        raise InvalidJob("this is not a PNG, WebP or JPEG", code="bad_file", hint=remedy) from error
    if not isinstance(text, str | bytes):
        raise InvalidJob("this picture carries no recipe of the farm", code="bad_file", hint=remedy)
    if len(text) > MAX_RECIPE_BYTES:
        raise InvalidJob("the recipe in this picture is too long to be the farm's", code="bad_file", hint=remedy)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidJob("the recipe in this picture is not a JSON object", code="bad_file", hint=remedy)
    return found


def _maker_note(opened: Image.Image) -> bytes | None:
    """What the farm says in a WebP or JPEG; None in one that is not the farm's."""
    note = opened.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.MakerNote)
    return note.removeprefix(MAKER) if isinstance(note, bytes) and note.startswith(MAKER) else None


def drawn_sha256(data: bytes) -> str:
    """What `pixels_sha256` gives for the picture that the farm drew, of which this is the PNG, or a WebP or JPEG.

    Raises:
        InvalidJob: (`bad_file`) it cannot be decoded, or does not say.
    """
    if data.startswith(_PNG):
        return pixels_sha256(data)
    return str(read_told(data).get("pixels", ""))


def pixels_sha256(data: bytes) -> str:
    """SHA-256 (hex) of a PNG's size and decoded RGB pixels: equal for equal pictures, whatever else the file holds.

    Raises:
        InvalidJob: (`bad_file`) this is not a PNG that can be decoded.
    """
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as opened:
            pixels = opened.convert("RGB")
    except UNREADABLE as error:
        raise InvalidJob("this is not a whole PNG", code="bad_file") from error
    return hash_pixels(pixels)


def hash_pixels(image: Image.Image) -> str:
    """SHA-256 (hex) of an RGB picture's size and pixels; what `pixels_sha256` gives for its PNG."""
    return hashlib.sha256(struct.pack(">II", *image.size) + image.tobytes()).hexdigest()


@contextmanager
def _decoding() -> Iterator[None]:
    """Pillow's errors as refusals of the field `image`."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _refused("the image has too many pixels: scale it down", "too_large") from None
    except UNREADABLE:
        raise _refused(
            "this is not a PNG, JPEG or WebP, or it is damaged: open it in an image editor and save it as PNG"
        ) from None


def _bare(image: Image.Image) -> Image.Image:
    """The pixels of `image` as RGB, laid on white where they are transparent, without metadata."""
    if image.mode.startswith("I"):
        # 16 bits per grey pixel; `convert` would clip at 255. The high byte, as Pillow does for 16-bit RGB.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        picture = Image.new("RGBA", image.size, "white")
        picture.alpha_composite(image.convert("RGBA"))
        image = picture
    bare = Image.new("RGB", image.size)
    bare.paste(image.convert("RGB"))
    return bare


def _contents(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file; of a larger one, one byte more than `max_bytes`."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise _refused(f"the file cannot be read: {type(error).__name__}") from None
    if path.is_dir():
        raise _refused("the file cannot be read: it is a folder")
    if re.match(r"https?:/", str(path)):
        raise _refused("addresses are not fetched: save the image and give the file")
    raise _refused("the file cannot be read: there is no file of this name")


def _refused(message: str, code: str = "bad_image") -> InvalidJob:
    """A refusal of the field `image`."""
    return InvalidJob(errors=(FieldError("image", message, code),))
