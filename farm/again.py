"""What does a result picture say of how it was made, so that it can be made again?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from PIL.Image import Image

from farm.errors import FieldError, InvalidJob, NotFound
from farm.image import Fit, fit, read_recipe, to_png
from farm.job import InputImage, recipe_key, stage_of
from farm.program import file_of
from farm.stage import STORED, Size, kinds


@dataclass(frozen=True)
class Again:
    """A picture's chain as a chain file would write it, the image it began with, and the last stage's recipe key."""

    chain: dict[str, Any]
    image: InputImage | None
    key: str


def read_again(picture: bytes) -> Again:
    """How the farm made this PNG, or a dataset's WebP or JPEG.

    Raises:
        InvalidJob: it carries no recipe of this farm, or one that cannot be read.
    """
    try:
        recipes = read_recipe(picture)["recipes"]
        written = {"reuse": False, "exact": recipes[0]["exact"], "stages": [stage_of(recipe) for recipe in recipes]}
        width, height = (
            kinds()[recipes[0]["kind"]].model_validate(written["stages"][0]).given_size(Size(*recipes[0]["size"]))
        )
        given = recipes[0]["given"] and InputImage(sha256=recipes[0]["given"]["image"], width=width, height=height)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise InvalidJob("the recipe in this picture cannot be read", code="bad_file") from None
    return Again(written, given, recipe_key(recipes[-1]))


def refitted(original: Image, image: InputImage) -> bytes:
    """The bytes of `image`, made from its `original` by the rule that gives them.

    Raises:
        InvalidJob: (`bad_image`) no rule does.
    """
    for rule in get_args(Fit):
        data = to_png(fit(original, Size(image.width, image.height), rule))
        if hashlib.sha256(data).hexdigest() == image.sha256:
            return data
    raise InvalidJob(errors=(FieldError("image", "not the image that this picture began from", "bad_image"),))


def named_images(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The images that a job (its record's `spec`, parsed) began from: the file that its program opens, and the hash."""
    if spec["image"]:
        yield "input.png", spec["image"]["sha256"]
    for recipe in spec["recipes"]:
        stage = kinds()[recipe["kind"]].model_validate(stage_of(recipe))
        for value, _ in stage.uploads().values():
            yield file_of(value), value.removeprefix(STORED)


def no_input() -> NotFound:
    """What is raised where the store no longer has a picture's input image, and nobody gave it."""
    return NotFound("the input image of this picture is no longer stored", hint="give it with --image")
