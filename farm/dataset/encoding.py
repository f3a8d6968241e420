"""How does a picture become WebP or JPEG without forgetting what made it?

As in the PNG that a worker wrote, three things travel with the pixels: the `parameters` text of A1111's programs, where
those look for it in such files (EXIF `UserComment`), the XMP packet that says that a machine drew it, and the recipe
itself (EXIF `MakerNote`: bytes of the maker's own), with the hash of the pixels as they were drawn. JPEG holds 64 KB of
EXIF; a longer recipe stays out of a JPEG, which says so, and is in the sample's JSON alone.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image

from farm.errors import BadBlob, InvalidJob
from farm.image import FORMATS, MAKER, UNREADABLE, hash_pixels, read_recipe, read_told
from farm.job import canonical
from farm.label import PACKET, parameters

if TYPE_CHECKING:
    from farm.dataset.spec import ImageFormat

PNG, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
"""How a PNG begins and ends. Source: PNG specification, 5.2 and 11.2.5."""
UNICODE = b"UNICODE\0"
"""Says that a UserComment is UTF-16; A1111's programs have it big-endian. Source: EXIF 2.32, 4.6.5; piexif."""
JPEG_EXIF = 65_533
"""Bytes of EXIF that one JPEG segment holds. Source: JPEG (ITU T.81), B.1.1.4."""


def decode(data: bytes) -> Image.Image:
    """The RGB picture in a PNG, WebP or JPEG, decoded to its last row.

    Raises:
        BadBlob: it is none, or it is damaged.
    """
    # Pillow is content with all pixels; what comes after them may be lost.
    if data.startswith(PNG) and not data.endswith(PNG_END):
        raise BadBlob("the picture cannot be decoded: it ends too early")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            return opened.convert("RGB")
    except UNREADABLE as error:
        raise BadBlob(f"the picture cannot be decoded: {type(error).__name__}") from None


def encode(png: bytes, image: Image.Image, form: ImageFormat, quality: int) -> bytes:
    """`png` as it is, or `image`, its pixels, as WebP or JPEG with what the PNG says; equal input, equal bytes.

    Colour keeps its full resolution in JPEG.

    Raises:
        BadBlob: the PNG carries no recipe, or WebP cannot hold a picture of this size.
    """
    if form == "png":
        return png
    try:
        recipe = read_recipe(png)
    except InvalidJob as error:
        raise BadBlob(error.message) from None
    told, pixels = parameters(recipe["recipes"]), hash_pixels(image)
    exif = _exif(told, {**recipe, "pixels": pixels})
    if form == "jpg" and len(exif) > JPEG_EXIF:
        exif = _exif(told, {"too_long": True, "pixels": pixels})
    bare, out = image.copy(), BytesIO()
    bare.info = {}  # Pillow would write what the PNG held here
    options: dict[str, Any] = {"subsampling": 0, "optimize": True} if form == "jpg" else {"method": 4}
    try:
        bare.save(out, "JPEG" if form == "jpg" else "WEBP", quality=quality, exif=exif, xmp=PACKET.encode(), **options)
    except (OSError, ValueError) as error:
        raise BadBlob(f"the picture cannot be written as {form}: {error}") from None
    return out.getvalue()


def recipe_in(data: bytes) -> dict[str, Any] | None:
    """The recipe that a picture of a shard carries; None for a JPEG whose recipe was too long for it.

    Raises:
        BadBlob: it cannot be read, or it should carry one and does not.
    """
    try:
        found = read_told(data)
    except InvalidJob as error:
        raise BadBlob(error.message) from None
    return None if found.get("too_long") else found


def _exif(told: str, note: Mapping[str, Any]) -> bytes:
    """EXIF with the maker's note, and the parameters text unless it is empty.

    Pillow would give both the type BYTE, in which A1111's programs find no text; EXIF says UNDEFINED.
    """
    held = {
        ExifTags.Base.MakerNote: MAKER + canonical(note).encode(),
        **({ExifTags.Base.UserComment: UNICODE + told.encode("utf-16-be")} if told else {}),
    }
    # Source: TIFF 6.0, section 2: a header, then directories of 12 bytes an entry, each followed by what it points to.
    start = 26
    at = start + 2 + 12 * len(held) + 4
    entries, values = b"", b""
    for tag, value in sorted(held.items()):
        entries += struct.pack(">HHLL", tag, 7, len(value), at + len(values))
        values += value + b"\0" * (len(value) % 2)
    head = b"MM\0*" + struct.pack(">L HHHLL L", 8, 1, ExifTags.IFD.Exif, 4, 1, start, 0)
    return b"Exif\0\0" + head + struct.pack(">H", len(held)) + entries + struct.pack(">L", 0) + values
