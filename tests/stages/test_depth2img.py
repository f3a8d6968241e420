"""Does depth guide the drawing, estimated or given?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.stages.conftest import call, same, some_image
from workers.stages.depth2img import Depth2Img


def test_a_given_map_takes_the_place_of_the_estimate(pipe: Callable[..., Any]) -> None:
    plain, mapped = Depth2Img(num_inference_steps=5), Depth2Img(num_inference_steps=5, depth="d")
    estimated, given = (call(stage, pipe(stage), [some_image()])[0] for stage in (plain, mapped))
    assert not same(estimated, given)
