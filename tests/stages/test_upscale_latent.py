"""Does the latent upscaler double what it is given?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from farm.stage import Medium, Size
from tests.stages.conftest import call, same, some_latents
from workers.stages.upscale_latent import UpscaleLatent

Pipe = Callable[..., Any]
QUICK = {"num_inference_steps": 4}


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({}, {"prompts": ["a blue cat"]}),
        ({}, {"guidance_scale": 0.0}),
        ({}, {"guidance_scale": 3.0}),
        ({}, {"num_inference_steps": 5}),
        ({"guidance_scale": 3.0}, {"negatives": [""]}),
        ({"guidance_scale": 3.0}, {"prompts": ["a blue cat"]}),
    ],
    ids=str,
)
def test_each_parameter_changes_the_picture(pipe: Pipe, fields: dict[str, Any], change: dict[str, Any]) -> None:
    # Given latents of twice the side
    stage = UpscaleLatent.model_validate({**QUICK, **fields})
    before = call(stage, pipe(stage), [some_latents()], emits=Medium.LATENTS)[0]
    # When they are made again with one parameter changed
    words = {name: value for name, value in change.items() if name in ("prompts", "negatives")}
    more = {name: value for name, value in change.items() if name not in words}
    other = UpscaleLatent.model_validate({**QUICK, **fields, **more})
    after = call(other, pipe(other), [some_latents()], emits=Medium.LATENTS, **words)[0]
    # Then they are others
    assert not same(before, after)


@pytest.mark.parametrize(
    ("guidance", "words"), [(0.0, {"prompts": ["a blue cat"]}), (0.0, {"negatives": [""]}), (1.0, {"negatives": [""]})]
)
def test_low_guidance_ignores_words_as_described(pipe: Pipe, guidance: float, words: dict[str, Any]) -> None:
    # Given a guidance scale that leaves the prompt or the negative prompt out
    stage = UpscaleLatent(**QUICK, guidance_scale=guidance)
    # When those words change
    outs = [call(stage, pipe(stage), [some_latents()], emits=Medium.LATENTS, **each)[0] for each in ({}, words)]
    # Then nothing else does
    assert same(*outs)


def test_the_input_matters(pipe: Pipe) -> None:
    stage = UpscaleLatent(**QUICK)
    outs = [call(stage, pipe(stage), [some_latents(seed=seed)], emits=Medium.LATENTS)[0] for seed in (5, 6)]
    assert not same(*outs)


def test_the_unet_runs_where_sides_are_multiples_of_32_and_breaks_elsewhere(pipe: Pipe) -> None:
    # Given latents of which each side is the least that fits, or the next
    stage = UpscaleLatent(**QUICK)
    given = torch.cat([some_latents(8), some_latents(8)[:, :, :4]], dim=2)
    # Then they run
    assert UpscaleLatent.multiple == 32
    assert call(stage, pipe(stage), [given], emits=Medium.LATENTS, size=Size(192, 128))[0].shape == (4, 16, 24)
    # But those of 72 pixels do not: a chain that would hand them on is refused at submit
    with pytest.raises(RuntimeError):
        call(stage, pipe(stage), [some_latents(16)[:, :9, :8]], emits=Medium.LATENTS, size=Size(128, 144))
