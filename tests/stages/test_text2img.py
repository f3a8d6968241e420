"""Does text2img draw what it is asked for?"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
from diffusers.schedulers import KarrasDiffusionSchedulers
from pydantic import ValidationError

from farm.sampler import SCHEDULERS
from farm.stage import Medium, Size
from tests.stages.conftest import call, same
from workers.stages.text2img import Text2Img

Pipe = Callable[..., Any]
QUICK = {"num_inference_steps": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ["a blue cat"]},
        {"negatives": [""]},
        {"guidance_scale": 3.0},
        {"num_inference_steps": 5},
        {"scheduler": "EulerAncestralDiscreteScheduler"},
        {"scheduler": "DDIMScheduler", "eta": 1.0},
        {"clip_skip": 1},
        {"clip_skip": 3},
        {"checkpoint": "tiny-style"},
        {"checkpoint": "tiny-other"},
    ],
    ids=str,
)
def test_each_parameter_changes_the_picture(pipe: Pipe, change: dict[str, Any]) -> None:
    # Given a picture
    stage = Text2Img(**QUICK)
    before = call(stage, pipe(stage))[0]
    # When it is drawn again with one parameter changed
    words = {name: value for name, value in change.items() if name in ("prompts", "negatives")}
    fields = {name: value for name, value in change.items() if name not in words}
    other = Text2Img.model_validate({**QUICK, **fields})
    after = call(other, pipe(other), **words)[0]
    # Then it is another picture
    assert not same(before, after)


def test_eta_changes_nothing_but_ddim(pipe: Pipe) -> None:
    # Given the checkpoint's own scheduler, which is DDIM
    plain, noisy = Text2Img(**QUICK), Text2Img(**QUICK, eta=1.0)
    # When it runs with and without eta
    # Then eta matters, with its name given or not
    named = Text2Img(**QUICK, scheduler="DDIMScheduler", eta=1.0)
    assert not same(call(plain, pipe(plain))[0], call(noisy, pipe(noisy))[0])
    assert same(call(named, pipe(named))[0], call(noisy, pipe(noisy))[0])


def test_schedulers_are_those_of_diffusers() -> None:
    # Given what diffusers lists, and the one that is made for EDM's parametrisation, which no checkpoint here has
    listed = {each.name for each in KarrasDiffusionSchedulers}
    # Then the farm has all but that one, and those of few-step checkpoints
    assert set(SCHEDULERS) == listed - {"EDMEulerScheduler"} | {"LCMScheduler", "TCDScheduler"}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_scheduler_runs_and_repeats(pipe: Pipe, scheduler: Any, steps: int) -> None:
    # Given a scheduler, after which another one runs
    stage, other = Text2Img(num_inference_steps=steps, scheduler=scheduler), Text2Img(num_inference_steps=1)
    first = call(stage, pipe(stage), emits=Medium.LATENTS)[0]
    call(other, pipe(other), emits=Medium.LATENTS)
    # When it runs once more
    again = call(stage, pipe(stage), emits=Medium.LATENTS)[0]
    # Then nothing of the other runs is left in it
    assert same(first, again)


def test_members_of_a_batch_have_noise_of_their_own(pipe: Pipe) -> None:
    # Given the scheduler that draws from a noise source of its own
    stage = Text2Img(num_inference_steps=4, scheduler="DPMSolverSDEScheduler")
    # When two seeds run in one call, and one of them alone
    both = call(stage, pipe(stage), emits=Medium.LATENTS, seeds=[1, 2])
    alone = call(stage, pipe(stage), emits=Medium.LATENTS, seeds=[2])[0]
    # Then the second member has its own seed's noise
    assert both[1].allclose(alone, atol=1e-3)
    assert not both[0].allclose(alone, atol=1e-1)


def test_long_prompts_are_cut_without_being_logged(pipe: Pipe) -> None:
    # Given a prompt longer than the text encoder takes, and an ear on the libraries' logs
    stage, heard = Text2Img(num_inference_steps=1), io.StringIO()
    ear = logging.StreamHandler(heard)
    libraries = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    loaded = pipe(stage)
    for library in libraries:
        library.addHandler(ear)
    # When it is drawn
    call(stage, loaded, prompts=["xylophone " * 100])
    for library in libraries:
        library.removeHandler(ear)
    # Then nothing was said about it
    assert heard.getvalue() == ""


def test_size_is_the_fields_or_the_checkpoints() -> None:
    assert Text2Img().output_size(None, 512) == Size(512, 512)
    assert Text2Img(width=64, height=128).output_size(None, 512) == Size(64, 128)
    assert Text2Img(width=64).output_size(None, 512) == Size(64, 512)


def test_eta_is_refused_where_it_would_be_ignored() -> None:
    # Given eta with a scheduler that does not know it, and with those that may
    wrong = Text2Img(eta=0.5, scheduler="EulerDiscreteScheduler")
    # When the rules are checked
    # Then only the first is refused, and the field is named
    assert [error.loc for error in wrong.check()] == ["eta"]
    assert not list(Text2Img(eta=0.5, scheduler="DDIMScheduler").check())
    assert not list(Text2Img(eta=0.5).check())
    assert not list(Text2Img(scheduler="EulerDiscreteScheduler").check())


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 60},
        {"width": 68},
        {"height": 2056},
        {"num_inference_steps": 0},
        {"num_inference_steps": 151},
        {"guidance_scale": -0.1},
        {"guidance_scale": float("nan")},
        {"guidance_scale": 30.1},
        {"eta": 1.1},
        {"clip_skip": 0},
        {"clip_skip": 4},
        {"scheduler": "EDMEulerScheduler"},
        {"strength": 0.5},
    ],
    ids=str,
)
def test_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Text2Img.model_validate(wrong)
