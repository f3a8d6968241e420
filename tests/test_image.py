"""Is every bad image refused by name, every good one turned into bare RGB, and does a picture carry its recipe?"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from farm.errors import InvalidJob, StageFailed
from farm.image import (
    FORMATS,
    MAKER,
    MAX_RECIPE_BYTES,
    Stored,
    drawn_sha256,
    fit,
    natural_size,
    pixels_sha256,
    read_input,
    read_recipe,
    read_told,
    to_png,
)
from farm.settings import Settings
from farm.stage import Size

SETTINGS = Settings()
RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(width: int = 32, height: int = 24, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), random.Random(seed).randbytes(width * height * channels))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG by hand, so that it may be wrong."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def refused(data: bytes | Path, settings: Settings = SETTINGS) -> InvalidJob:
    """The refusal of an input; it always names the field and says what would be right."""
    with pytest.raises(InvalidJob) as info:
        read_input(data, settings)
    assert [error.loc for error in info.value.errors] == ["image"]
    assert ":" in info.value.errors[0].msg
    return info.value


def same(image: Image.Image, other: Image.Image) -> bool:
    return (image.mode, image.size, image.tobytes()) == (other.mode, other.size, other.tobytes())


# what is taken


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_taken_from_bytes_and_from_a_file(format: str, tmp_path: Path) -> None:
    # Given a file whose name says something else
    data = encoded(Image.new("RGB", (40, 30), RED), format, **({"lossless": True} if format == "WEBP" else {}))
    path = tmp_path / "picture.gif"
    path.write_bytes(data)
    # When
    found = read_input(data, SETTINGS)
    # Then
    assert (found.mode, found.size) == ("RGB", (40, 30))
    assert same(found, read_input(path, SETTINGS))
    red, green, blue = found.getpixel((20, 15))
    assert red > 250
    assert green < 5
    assert blue < 5


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_pixels_come_back_unchanged(format: str, options: dict[str, Any]) -> None:
    image = noise()
    assert same(read_input(encoded(image, format, **options), SETTINGS), image)


def test_metadata_and_trailing_bytes_are_gone() -> None:
    # Given a PNG with all sorts of metadata, followed by a ZIP and a script
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "secret-comment")
    exif = Image.Exif()
    exif[0x010E] = "secret-exif"
    image = noise()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(image, pnginfo=text, exif=exif, icc_profile=profile, dpi=(300, 300))
    data += b"PK\x03\x04 secret-zip <script>secret-script</script>"
    assert data.count(b"secret") == 4
    # When
    found = read_input(data, SETTINGS)
    # Then
    assert same(found, image)
    assert found.info == {}
    assert len(found.getexif()) == 0
    assert to_png(found) == to_png(image)
    assert b"secret" not in to_png(found)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
def test_a_camera_held_any_way_gives_an_upright_picture(orientation: int, format: str) -> None:
    # Given a picture with a red top left corner, stored as a camera in that position would
    upright = Image.new("RGB", (64, 32), BLUE)
    upright.paste(RED, (0, 0, 16, 16))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    # When
    found = read_input(encoded(stored, format, exif=exif), SETTINGS)
    # Then
    assert found.size == (64, 32)
    assert found.getpixel((4, 4))[0] > 200
    for corner in ((60, 4), (4, 28), (60, 28)):
        assert found.getpixel(corner)[2] > 200


def test_transparency_becomes_white() -> None:
    # Given
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    # When
    found = read_input(encoded(image), SETTINGS)
    # Then
    assert [found.getpixel((x, 0)) for x in range(4)] == [WHITE, RED, (127, 127, 127), WHITE]


def test_a_palette_with_a_transparent_colour_becomes_white() -> None:
    # Given
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    for x in range(3):
        image.putpixel((x, 0), x)
    # When
    found = read_input(encoded(image, transparency=0), SETTINGS)
    # Then
    assert [found.getpixel((x, 0)) for x in range(3)] == [WHITE, RED, BLUE]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("LA", (2, 2), (77, 255)), (77, 77, 77)),
        (Image.new("LA", (2, 2), (77, 0)), WHITE),
        (Image.new("1", (2, 2), 1), WHITE),
        (Image.new("1", (2, 2), 0), BLACK),
        (Image.new("I;16", (2, 2), 0xABCD), (0xAB, 0xAB, 0xAB)),
        (Image.new("I;16", (2, 2), 0x00FF), BLACK),
        (Image.new("I;16", (2, 2), 0xFFFF), WHITE),
        (Image.new("RGB", (2, 2), RED), RED),
    ],
)
def test_every_depth_becomes_eight_bits_of_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    found = read_input(encoded(image), SETTINGS)
    assert found.mode == "RGB"
    assert found.getpixel((1, 1)) == expected


def test_sixteen_bits_per_colour_keep_the_high_byte() -> None:
    # Given a PNG of 16 bits per channel, which Pillow cannot write
    rows = zlib.compress(b"\0" + struct.pack(">HHH", 0xABCD, 0x00FF, 0xFFFF))
    # When, Then
    assert read_input(png(1, 1, rows, depth=16), SETTINGS).getpixel((0, 0)) == (0xAB, 0x00, 0xFF)


def test_a_colour_named_transparent_becomes_white() -> None:
    # Given an RGB PNG that says that red means transparent
    rows = zlib.compress(b"\0" + bytes([255, 0, 0, 0, 0, 255]))
    data = png(2, 1, rows, extra=chunk(b"tRNS", struct.pack(">HHH", 255, 0, 0)))
    # When, Then
    found = read_input(data, SETTINGS)
    assert [found.getpixel((x, 0)) for x in range(2)] == [WHITE, BLUE]


@pytest.mark.parametrize(("ink", "expected"), [((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), BLACK)])
def test_print_colours_become_screen_colours(ink: tuple[int, int, int, int], expected: tuple[int, int, int]) -> None:
    found = read_input(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100), SETTINGS)
    assert found.mode == "RGB"
    assert all(abs(a - b) < 4 for a, b in zip(found.getpixel((8, 8)), expected, strict=True))


def test_of_a_phones_two_pictures_the_first_is_taken() -> None:
    # Given a .jpg as phones write it: two pictures in one file (MPO)
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert data.startswith(b"\xff\xd8\xff")
    # When, Then
    assert read_input(data, SETTINGS).getpixel((8, 8))[0] > 250


# what is refused


@pytest.mark.parametrize("format", ["GIF", "TIFF", "ICO", "BMP", "PPM", "TGA", "PCX", "EPS", "PDF", "JPEG2000", "DDS"])
def test_other_formats_are_refused_whatever_pillow_can_read(format: str) -> None:
    assert refused(encoded(noise(64, 64), format)).code == "bad_image"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<!DOCTYPE html><script>alert(1)</script>",
        b"SIMPLE  =                    T",
        b"8BPS\0\1",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"not an image, " * 1000,
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert refused(data).code == "bad_image"


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_an_animation_is_refused(format: str, options: dict[str, Any]) -> None:
    frames = [noise(seed=seed) for seed in range(3)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100, **options)
    assert "animated" in str(refused(data))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(format: str, share: float) -> None:
    data = encoded(noise(200, 200), format)
    assert refused(data[: int(len(data) * share)]).code == "bad_image"


@pytest.mark.parametrize("format", FORMATS)
def test_flipped_bits_are_refused_or_harmless(format: str) -> None:
    # Given 400 files with one to four bytes changed
    whole, dice = encoded(noise(48, 48), format, exif=Image.Exif()), random.Random(1)
    outcomes: dict[str, int] = {}
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        # When
        try:
            found = read_input(bytes(data), SETTINGS)
        except InvalidJob as error:
            outcomes[error.code] = outcomes.get(error.code, 0) + 1
        else:
            outcomes[found.mode] = outcomes.get(found.mode, 0) + 1
    # Then
    assert outcomes.keys() <= {"bad_image", "too_large", "RGB"}
    assert outcomes["bad_image"] > 0


@pytest.mark.parametrize("orientation", [b"\x09\x00", b"\x00\x00", b"\xff\xff"])
def test_a_senseless_orientation_is_ignored(orientation: bytes) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + orientation + b"\0\0\0\0\0\0"
    image = noise()
    assert same(read_input(encoded(image, exif=exif), SETTINGS), image)


def bomb(width: int, height: int) -> bytes:
    """A small file that says it is a very large picture, and is."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    return png(width, height, rows, depth=1, colour=0)


def cost(data: bytes) -> tuple[str, int]:
    """What reading the input in a fresh process ends with, and by how many KiB its memory grew at most."""
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from farm.image import read_input\n"
        "from farm.settings import Settings\n"
        "from farm.errors import InvalidJob\n"
        "data, settings = sys.stdin.buffer.read(), Settings()\n"
        # Not ru_maxrss: that one begins with the size of the process that forked.
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"
        "before, outcome = peak(), 'taken'\n"
        "try:\n"
        "    read_input(data, settings)\n"
        "except InvalidJob as error:\n"
        "    outcome = error.code\n"
        "print(outcome, peak() - before)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert ended.stderr == b""
    outcome, grown_kib = ended.stdout.decode().split()
    return outcome, int(grown_kib)


def test_a_bomb_is_refused_by_its_header_in_little_memory() -> None:
    # Given 100 million pixels in 15 kB
    data = bomb(10_000, 10_000)
    assert len(data) < 20_000
    # When
    outcome, grown_kib = cost(data)
    # Then
    assert outcome == "too_large"
    assert grown_kib < 20_000


def test_the_memory_of_a_decoded_picture_is_seen_by_these_tests() -> None:
    outcome, grown_kib = cost(bomb(4000, 4000))
    assert outcome == "taken"
    assert grown_kib > 20_000


def test_a_large_webp_is_refused_in_little_memory() -> None:
    # Given 35 million pixels of one colour, which as RGBA are 140 MB
    data = encoded(Image.new("RGB", (5900, 5900)), "WEBP", lossless=True, quality=0, method=0)
    assert len(data) < 20_000
    # When
    outcome, grown_kib = cost(data)
    # Then
    assert outcome == "too_large"
    assert grown_kib < 20_000


@pytest.mark.parametrize("size", [(65535, 65535), (2**31 - 1, 2**31 - 1), (8193, 1), (1, 8193), (8192, 4097)])
def test_a_header_that_asks_for_too_much_is_refused(size: tuple[int, int]) -> None:
    assert refused(png(*size, zlib.compress(b""))).code == "too_large"


def test_the_settings_say_how_large_is_too_large() -> None:
    data = encoded(noise(64, 64))
    assert read_input(data, Settings(max_side=64, max_area=4096, max_upload_bytes=len(data))).size == (64, 64)
    assert refused(data, Settings(max_upload_bytes=len(data) - 1)).code == "too_large"
    # And what the farm stored itself may be longer than the file that it was made from
    assert read_input(Stored(data), Settings(max_upload_bytes=1)).size == (64, 64)
    assert refused(encoded(noise(65, 63)), Settings(max_side=64)).code == "too_large"
    assert refused(encoded(noise(65, 64)), Settings(max_area=4096)).code == "too_large"


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    # Given a file of a terabyte (most of it is a hole)
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    # When, Then
    assert refused(path).code == "too_large"


@pytest.mark.parametrize("name", ["missing.png", "folder", "a\0b.png", "x" * 300])
def test_a_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert refused(tmp_path / name).code == "bad_image"


@pytest.mark.parametrize(("kind", "data"), [
    (b"zTXt", b"bomb\0\0" + zlib.compress(bytes(100_000_000), 9)),
    (b"iTXt", b"bomb\0\1\0\0\0" + zlib.compress(bytes(100_000_000), 9)),
    (b"iCCP", b"bomb\0\0" + zlib.compress(bytes(100_000_000), 9)),
])  # fmt: skip
def test_a_text_bomb_costs_little_memory(kind: bytes, data: bytes) -> None:
    # Given 100 MB of text in 100 kB
    image = png(1, 1, zlib.compress(b"\0\1\2\3"), extra=chunk(kind, data))
    # When: it is refused, or its text is passed over
    outcome, grown_kib = cost(image)
    # Then
    assert outcome in ("bad_image", "taken")
    assert grown_kib < 20_000


# sizes


def test_cover_fills_and_crops_the_middle() -> None:
    # Given red, blue, red in thirds
    image = Image.new("RGB", (300, 100), RED)
    image.paste(BLUE, (100, 0, 200, 100))
    # When
    found = fit(image, Size(64, 64), "cover")
    # Then: the middle third is all there is (but for a pixel of Lanczos at the edges)
    assert found.size == (64, 64)
    assert all(found.getpixel((x, 32)) == BLUE for x in range(4, 60))


def test_contain_keeps_all_and_adds_white_bands() -> None:
    found = fit(Image.new("RGB", (300, 100), BLUE), Size(64, 64), "contain")
    assert found.size == (64, 64)
    assert found.getpixel((32, 0)) == found.getpixel((32, 63)) == WHITE
    assert found.getpixel((0, 32)) == found.getpixel((63, 32)) == BLUE


def test_stretch_gives_up_the_aspect() -> None:
    # Given
    image = Image.new("RGB", (300, 100), BLUE)
    image.paste(RED, (0, 0, 150, 100))
    # When
    found = fit(image, Size(64, 64), "stretch")
    # Then
    assert found.size == (64, 64)
    assert found.getpixel((10, 32)) == RED
    assert found.getpixel((54, 32)) == BLUE


@pytest.mark.parametrize("how", ["cover", "contain", "stretch"])
def test_an_image_is_resampled_by_lanczos(how: Any) -> None:
    image = noise(128, 128)
    assert same(fit(image, Size(64, 64), how), image.resize((64, 64), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("how", ["cover", "contain", "stretch"])
def test_an_image_of_the_right_size_is_left_alone(how: Any) -> None:
    image = noise(64, 64)
    assert same(fit(image, Size(64, 64), how), image)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (512, 512, (512, 512)),
        (515, 519, (512, 512)),
        (1024, 1024, (1024, 1024)),
        (4000, 3000, (1176, 880)),
        (2048, 2048, (1024, 1024)),
        (8192, 8192, (1024, 1024)),
        (1, 1, (64, 64)),
        (32, 16, (128, 64)),
        (8192, 64, (8192, 64)),
        (8192, 1, (8192, 64)),
    ],
)
def test_the_natural_size(width: int, height: int, expected: tuple[int, int]) -> None:
    assert natural_size(width, height, 4 * 512**2, 8192) == expected
    assert natural_size(height, width, 4 * 512**2, 8192) == expected[::-1]


side = st.integers(1, 8192)


@given(side, side, st.integers(8, 128).map(lambda cells: cells * 8), st.integers(64, 8192))
def test_every_natural_size_is_one_that_a_stage_can_take(width: int, height: int, native: int, max_side: int) -> None:
    found = natural_size(width, height, 4 * native**2, max_side)
    for value in found:
        assert value % 8 == 0
        assert 64 <= value <= max_side
    assert found.width * found.height <= max(4 * native * native, 64 * max_side)


# the recipe


RECIPE = {"v": 1, "recipes": [{"seed": 2**53 - 1, "empty": [], "prompt": "ein Schloß, 城堡 \U0001f600"}]}


def test_a_picture_carries_its_recipe_and_nothing_else() -> None:
    # Given an image with metadata of its own
    image = noise()
    image.info["icc_profile"] = b"secret-profile"
    image.info["transparency"] = (0, 0, 0)
    # When
    data = to_png(image, RECIPE)
    # Then
    assert read_recipe(data) == RECIPE
    assert b'{"recipes":[{"empty":[],"prompt":"' in data
    with Image.open(BytesIO(data)) as opened:
        opened.load()
        assert opened.mode == "RGB"
        assert list(opened.info) == ["latent-farm"]
        assert json.loads(opened.info["latent-farm"]) == RECIPE
    assert image.info["icc_profile"] == b"secret-profile"


def test_the_same_picture_and_recipe_give_the_same_bytes() -> None:
    backwards = dict(reversed(RECIPE.items()))
    assert to_png(noise(), RECIPE) == to_png(noise(), backwards)
    assert to_png(noise(), RECIPE) != to_png(noise(seed=1), RECIPE)


def test_pixels_survive_and_their_hash_ignores_the_recipe() -> None:
    image = noise()
    assert same(read_input(to_png(image, RECIPE), SETTINGS), image)
    assert pixels_sha256(to_png(image, RECIPE)) == pixels_sha256(to_png(image))
    assert pixels_sha256(to_png(image)) != pixels_sha256(to_png(noise(seed=1)))
    # the same bytes in another shape are another picture
    assert pixels_sha256(to_png(Image.new("RGB", (8, 2)))) != pixels_sha256(to_png(Image.new("RGB", (2, 8))))


def test_the_hash_of_pixels_is_that_of_their_size_and_bytes() -> None:
    image = noise(5, 3)
    expected = hashlib.sha256(b"\0\0\0\5\0\0\0\3" + image.tobytes()).hexdigest()
    assert pixels_sha256(to_png(image)) == expected


def test_a_picture_of_another_mode_counts_as_its_rgb() -> None:
    grey = noise(mode="L")
    assert pixels_sha256(encoded(grey)) == pixels_sha256(to_png(grey.convert("RGB")))


def test_only_rgb_is_written() -> None:
    with pytest.raises(StageFailed, match="mode RGBA") as info:
        to_png(Image.new("RGBA", (8, 8)))
    assert info.value.code == "bad_output"


def with_text(text: str, key: str = "latent-farm", zip: bool = False) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, text, zip=zip)
    return encoded(noise(), pnginfo=info)


def with_note(note: bytes, form: str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = note
    return encoded(noise(), form, exif=exif)


@pytest.mark.parametrize("form", ["WEBP", "JPEG"])
def test_a_compressed_picture_says_its_recipe_and_what_was_drawn(form: str) -> None:
    drawn = pixels_sha256(to_png(noise()))
    data = with_note(MAKER + json.dumps({**RECIPE, "pixels": drawn}).encode(), form)
    assert read_recipe(data) == read_told(data) == {**RECIPE, "pixels": drawn}
    assert drawn_sha256(data) == drawn_sha256(to_png(noise())) == drawn


def test_a_recipe_that_a_jpeg_could_not_hold_is_told_with_where_it_is() -> None:
    data = with_note(MAKER + b'{"pixels": "ab", "too_long": true}', "JPEG")
    with pytest.raises(InvalidJob, match="too long for a JPEG") as info:
        read_recipe(data)
    assert info.value.code == "bad_file"
    assert "the JSON of the sample in its shard" in info.value.hint
    assert drawn_sha256(data) == "ab"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "this is not a PNG"),
        (b"not an image", "this is not a PNG"),
        (encoded(noise(), "GIF"), "this is not a PNG, WebP or JPEG"),
        (encoded(noise(), "JPEG"), "this picture carries no recipe"),
        (encoded(noise(), "WEBP"), "this picture carries no recipe"),
        (with_note(b"Nikon", "JPEG"), "this picture carries no recipe"),
        (with_note(MAKER + b"{", "JPEG"), "the recipe in this picture is not a JSON object"),
        (with_note(MAKER + b"[1]", "WEBP"), "the recipe in this picture is not a JSON object"),
        (with_note(MAKER + b"\xff\xfe", "WEBP"), "the recipe in this picture is not a JSON object"),
        (with_note(MAKER + b"{}".ljust(MAX_RECIPE_BYTES + 1), "WEBP"), "the recipe in this picture is too long"),
        (encoded(noise()), "this picture carries no recipe"),
        (with_text("{}", key="parameters"), "this picture carries no recipe"),
        (with_text("not json"), "the recipe in this picture is not a JSON object"),
        (with_text("[1, 2]"), "the recipe in this picture is not a JSON object"),
        (with_text("[" * 100_000), "the recipe in this picture is not a JSON object"),
        (with_text("{}".ljust(MAX_RECIPE_BYTES + 1)), "the recipe in this picture is too long"),
        (with_text(json.dumps({"prompt": "x" * (1 << 24)}), zip=True), "this is not a PNG"),
    ],
    ids=[
        "empty", "text", "gif", "jpeg", "webp", "nikon", "half-note", "list-note", "odd-note", "long-note", "bare",
        "foreign", "no-json", "list", "deep", "long", "bomb",
    ],
)  # fmt: skip
def test_a_missing_or_foreign_recipe_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidJob, match=f"^{why}") as info:
        read_recipe(data)
    assert info.value.code == "bad_file"
    assert "as the farm wrote it" in info.value.hint


def test_the_longest_recipe_is_read() -> None:
    assert read_recipe(with_text("{}".ljust(MAX_RECIPE_BYTES))) == {}


@pytest.mark.parametrize("data", [b"", b"x", encoded(noise(), "JPEG"), encoded(noise(200, 200))[:1000]])
def test_pixels_of_no_whole_png_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidJob, match="this is not a whole PNG") as info:
        pixels_sha256(data)
    assert info.value.code == "bad_file"
