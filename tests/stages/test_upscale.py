"""Does the image upscaler quadruple what it is given?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from farm.sampler import SCHEDULERS
from farm.stage import Medium, Size
from tests.stages.conftest import call, same, some_image
from workers.stages.upscale import Upscale

Pipe = Callable[..., Any]
QUICK = {"num_inference_steps": 3}


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ["a blue cat"]},
        {"negatives": [""]},
        {"guidance_scale": 3.0},
        {"noise_level": 0},
        {"noise_level": 350},
        {"num_inference_steps": 4},
        {"scheduler": "EulerDiscreteScheduler"},
        {"eta": 1.0},
        {"clip_skip": 1},
    ],
    ids=str,
)
def test_each_parameter_changes_the_picture(pipe: Pipe, change: dict[str, Any]) -> None:
    # Given an image of four times the side
    stage = Upscale(**QUICK)
    before = call(stage, pipe(stage), [some_image(32)])[0]
    # When it is made again with one parameter changed
    words = {name: value for name, value in change.items() if name in ("prompts", "negatives")}
    other = Upscale.model_validate({**QUICK, **{name: value for name, value in change.items() if name not in words}})
    after = call(other, pipe(other), [some_image(32)], **words)[0]
    # Then it is another picture
    assert not same(before, after)


def test_the_input_matters(pipe: Pipe) -> None:
    stage = Upscale(**QUICK)
    outs = [call(stage, pipe(stage), [some_image(32, seed)])[0] for seed in (5, 6)]
    assert not same(*outs)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_runs(pipe: Pipe, scheduler: Any) -> None:
    # Given a scheduler and the fewest steps
    stage = Upscale(num_inference_steps=1, scheduler=scheduler)
    # When it runs
    # Then it gives an image of four times the side
    assert call(stage, pipe(stage), [some_image(16)])[0].size == (64, 64)


def test_images_in_images_out() -> None:
    # Given what the pipeline does: RGB beside noise, and a latent space of its own
    # Then latents are neither taken nor given
    assert Upscale.takes == Upscale.gives == {Medium.IMAGE}
    assert Upscale().output_size(Size(72, 64), 64) == Size(288, 256)


@pytest.mark.parametrize("wrong", [{"noise_level": 351}, {"noise_level": -1}, {"noise_level": 1.5}], ids=str)
def test_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Upscale.model_validate(wrong)


def test_eta_is_refused_where_it_would_be_ignored() -> None:
    assert [error.loc for error in Upscale(eta=0.5, scheduler="LMSDiscreteScheduler").check()] == ["eta"]
