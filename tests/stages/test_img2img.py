"""Does img2img redraw what it is given?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from farm.sampler import SCHEDULERS
from farm.stage import Medium
from tests.stages.conftest import call, same, some_image, some_latents
from workers.stages.img2img import Img2Img
from workers.stages.text2img import Text2Img
from workers.stages.upscale_latent import UpscaleLatent

Pipe = Callable[..., Any]
QUICK = {"num_inference_steps": 8}


@pytest.mark.parametrize("given", [some_latents(), some_image()], ids=["latents", "image"])
@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ["a blue cat"]},
        {"negatives": [""]},
        {"strength": 0.3},
        {"strength": 1.0},
        {"guidance_scale": 3.0},
        {"num_inference_steps": 12},
        {"scheduler": "EulerAncestralDiscreteScheduler"},
        {"eta": 1.0},
        {"clip_skip": 1},
        {"checkpoint": "tiny-style"},
    ],
    ids=str,
)
def test_each_parameter_changes_the_picture(pipe: Pipe, change: dict[str, Any], given: Any) -> None:
    # Given a redrawn picture
    stage = Img2Img(**QUICK)
    before = call(stage, pipe(stage), [given])[0]
    # When it is redrawn again with one parameter changed
    words = {name: value for name, value in change.items() if name in ("prompts", "negatives")}
    other = Img2Img.model_validate({**QUICK, **{name: value for name, value in change.items() if name not in words}})
    after = call(other, pipe(other), [given], **words)[0]
    # Then it is another picture
    assert not same(before, after)


def test_the_input_matters(pipe: Pipe) -> None:
    # Given two inputs of either medium
    stage = Img2Img(**QUICK)
    for first, second in ((some_latents(), some_latents(seed=6)), (some_image(), some_image(seed=6))):
        # When both are redrawn
        outs = [call(stage, pipe(stage), [given])[0] for given in (first, second)]
        # Then they give different pictures
        assert not same(*outs)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (5, 0.6)])
def test_every_scheduler_runs_and_repeats(pipe: Pipe, scheduler: Any, steps: int, strength: float) -> None:
    # Given a scheduler, few steps and part of a schedule
    stage = Img2Img(num_inference_steps=steps, strength=strength, scheduler=scheduler)
    # When it runs twice
    first, again = (call(stage, pipe(stage), [some_latents()], emits=Medium.LATENTS)[0] for _ in range(2))
    # Then it gives the same bits
    assert same(first, again)


@contextmanager
def counted(pipes: list[Any]) -> Iterator[list[str]]:
    """Calls of the VAEs' encode and decode, which go on to do what they do."""
    calls: list[str] = []

    def count(vae: Any, name: str) -> None:
        real = getattr(vae, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        setattr(vae, name, wrapped)

    vaes = {id(pipe.vae): pipe.vae for pipe in pipes}.values()
    for vae in vaes:
        for name in ("encode", "decode"):
            count(vae, name)
    try:
        yield calls
    finally:
        for vae in vaes:
            del vae.encode, vae.decode


def test_latents_pass_through_a_chain_without_a_vae(pipe: Pipe) -> None:
    # Given three stages that take and give latents, with their VAEs' calls counted
    stages = [Text2Img(**QUICK), Img2Img(**QUICK), UpscaleLatent(**QUICK)]
    given: Any = None
    with counted([pipe(stage) for stage in stages]) as calls:
        # When latents go from the first to the last
        for stage in stages:
            given = call(stage, pipe(stage), [given], emits=Medium.LATENTS)[0]
        latents_only = list(calls)
        # And when the last emits an image
        call(stages[1], pipe(stages[1]), [some_latents()], emits=Medium.IMAGE)
    # Then no VAE ran before, and exactly one decode after
    assert latents_only == []
    assert calls == ["decode"]


@pytest.mark.parametrize(("steps", "strength", "fits"), [(25, 0.03, False), (1, 0.99, False), (25, 0.04, True)])
def test_less_than_one_step_is_refused(steps: int, strength: float, fits: bool) -> None:
    # Given a strength and a number of steps
    stage = Img2Img(num_inference_steps=steps, strength=strength)
    # When the rules are checked
    found = list(stage.check())
    # Then less than one step is refused, and the strength it names would do
    assert [(error.loc, error.code) for error in found] == ([] if fits else [("strength", "no_steps")])
    if not fits:
        least = float(found[0].msg.rpartition(" ")[2])
        assert not list(Img2Img(num_inference_steps=steps, strength=least).check())


def test_every_number_of_steps_has_a_least_strength() -> None:
    for steps in range(1, 151):
        found = next(Img2Img(num_inference_steps=steps, strength=0.001).check())
        least = float(found.msg.rpartition(" ")[2])
        assert not list(Img2Img(num_inference_steps=steps, strength=least).check())


@pytest.mark.parametrize("wrong", [{"strength": 0.0}, {"strength": 1.01}, {"noise_level": 3}, {"width": 68}], ids=str)
def test_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Img2Img.model_validate(wrong)
