"""Are images that stages name of use to them, and are they still there when a chain is sent twice?"""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from farm.client import Farm
from farm.errors import InvalidJob
from farm.settings import Settings
from farm.stage import Size

SIZE = Size(64, 64)


def png(*white: tuple[int, int, int, int], size: Size = SIZE, level: int = 255) -> bytes:
    """A black picture with these boxes on it, all of one level."""
    picture = Image.new("L", size)
    for box in white:
        picture.paste(level, box)
    return saved(picture)


def saved(picture: Image.Image) -> bytes:
    """As a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def chain(farm: Farm, kind: str, name: str, image: bytes, **fields: Any) -> Any:
    checkpoint = {"checkpoint": "tiny-depth"} if kind == "depth2img" else {}
    return farm.chain({"stages": [{"kind": kind, name: image, **checkpoint}], **fields})


@pytest.fixture
def farm(settings: Settings) -> Farm:
    return Farm(settings)


@pytest.mark.parametrize(
    ("image", "fit"),
    [
        (png(), "stretch"),
        (png((0, 0, 64, 64), level=127), "stretch"),
        # what is white is cut away where the sides are made equal
        (png((0, 0, 16, 64), size=Size(192, 64)), "cover"),
    ],
    ids=["black", "dark", "cropped"],
)
def test_a_mask_of_nothing_is_refused(farm: Farm, image: bytes, fit: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        farm.fitted(chain(farm, "inpaint", "mask", image, fit=fit), SIZE)
    (error,) = caught.value.errors
    assert (error.loc, error.code) == ("stages.0.mask", "bad_image")


def test_a_transparent_mask_is_refused(farm: Farm) -> None:
    # Given white strokes on nothing, and on a picture that only could be transparent
    mask = Image.new("RGBA", SIZE, (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (8, 8, 24, 24))
    with pytest.raises(InvalidJob, match="lay it on black"):
        farm.fitted(chain(farm, "inpaint", "mask", saved(mask)), SIZE)
    mask.putalpha(255)
    assert farm.fitted(chain(farm, "inpaint", "mask", saved(mask)), SIZE)[1]


def test_depth_of_one_level_is_refused(farm: Farm) -> None:
    with pytest.raises(InvalidJob) as caught:
        farm.fitted(chain(farm, "depth2img", "depth", png((0, 0, 64, 64), level=90)), SIZE)
    (error,) = caught.value.errors
    assert (error.loc, error.code) == ("stages.0.depth", "bad_image")
    assert farm.fitted(chain(farm, "depth2img", "depth", png((0, 0, 32, 64), level=90)), SIZE)[1]


def test_a_chain_may_be_used_again_and_beside_others(farm: Farm) -> None:
    # Given two chains with images given as bytes, both prepared before either is used
    one, other = (chain(farm, "inpaint", "mask", png(box)) for box in ((0, 0, 32, 64), (0, 0, 64, 32)))
    # When
    first, second = farm.fitted(one, SIZE), farm.fitted(other, SIZE)
    # Then
    assert first[1] != second[1]
    assert farm.fitted(one, SIZE) == first
