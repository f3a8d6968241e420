"""Is only drawn anew what the mask says, and beyond the edges only there?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from farm.stage import Size
from tests.stages.conftest import call, same, some_image, some_mask
from workers.stages.inpaint import Border, Inpaint

Pipe = Callable[..., Any]
QUICK: dict[str, Any] = {"num_inference_steps": 4, "mask": "m"}


@pytest.mark.parametrize("checkpoint", ["tiny", "tiny-inpaint", "tiny-xl"])
@pytest.mark.parametrize("crop", [None, 8])
def test_what_is_not_masked_keeps_every_pixel(pipe: Pipe, checkpoint: str, crop: int | None) -> None:
    # Given an image and a mask
    stage, image = Inpaint(**QUICK, checkpoint=checkpoint, padding_mask_crop=crop), some_image()
    black = np.asarray(some_mask(Size(64, 64)))[..., 0] == 0
    # When
    made = np.asarray(call(stage, pipe(stage), [image])[0])
    # Then the rest is as it was, and the masked part is not
    assert (made[black] == np.asarray(image)[black]).all()
    assert (made[~black] != np.asarray(image)[~black]).any()


def test_a_blurred_mask_changes_a_soft_edge_around_it(pipe: Pipe) -> None:
    plain, soft = (Inpaint(**QUICK, blur_factor=blur) for blur in (0.0, 4.0))
    image = some_image()
    changed = [
        (np.asarray(call(stage, pipe(stage), [image])[0]) != np.asarray(image)).any(2) for stage in (plain, soft)
    ]
    assert changed[1].sum() > changed[0].sum()


def test_a_border_is_drawn_and_the_picture_stays(pipe: Pipe) -> None:
    # Given a border on three sides and no mask
    stage = Inpaint(border=Border(left=16, top=8, right=24), num_inference_steps=4)
    image = some_image()
    # When
    (made,) = call(stage, pipe(stage), [image])
    # Then the picture lies where it belongs, and the border is more than its repeated edge
    assert made.size == stage.output_size(Size(64, 64), 64) == (104, 72)
    assert stage.given_size(Size(104, 72)) == (64, 64)
    pixels = np.asarray(made)
    assert (pixels[8:, 16:80] == np.asarray(image)).all()
    assert len(np.unique(pixels[8:, 0].reshape(-1, 3), axis=0)) > 8


def test_each_member_of_a_region_is_drawn_with_its_own_seed(pipe: Pipe) -> None:
    stage = Inpaint(**QUICK, padding_mask_crop=8)
    both = call(stage, pipe(stage), [some_image()], seeds=[1, 2])
    assert same(both[1], call(stage, pipe(stage), [some_image()], seeds=[2])[0])


def test_nothing_to_draw_is_refused() -> None:
    assert [error.loc for error in Inpaint().check()] == ["mask"]
    assert [error.loc for error in Inpaint(mask="m", strength=0.01).check()] == ["strength"]
    assert not list(Inpaint(border=Border(top=8)).check())
