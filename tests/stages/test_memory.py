"""What is done where the device's memory does not suffice, and which of it may change a pixel?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from farm.errors import Failure, StageFailed
from farm.stage import Medium, Size, Source, Stage
from tests.stages.conftest import Recorder, call, same
from workers.stages.text2img import Text2Img

Every = tuple[Stage, Any, Medium]
Pipe = Callable[..., Any]
LARGE = Size(128, 128)
"""Twice the tiny VAE's own side: decoded in tiles, where tiles are asked for."""


def full(pipe: Any) -> Any:
    """Makes the UNet of `pipe` run out of memory, as torch tells of it; the hook is to be removed again."""

    def hook(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return pipe.unet.register_forward_pre_hook(hook)


def test_sparing_memory_leaves_every_pixel_as_it_is(every: Every, pipe: Pipe) -> None:
    # Given a stage's output
    stage, given, emits = every
    (before,) = call(stage, pipe(stage), [given], emits=emits)
    # When it runs again, alone, after memory did not suffice
    (after,) = call(stage, pipe(stage), [given], emits=emits, frugal=True)
    # Then it is the same to the bit, and the pipe is as it was
    assert same(before, after)
    assert not pipe(stage).vae.use_slicing


def test_one_picture_at_a_time_goes_through_the_vae(pipe: Pipe) -> None:
    # Given two pictures of one call
    stage, calls = Text2Img(num_inference_steps=2), []
    hook = pipe(stage).vae.decoder.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    # When memory is to be spared, and when not
    call(stage, pipe(stage), seeds=[1, 2], frugal=True)
    call(stage, pipe(stage), seeds=[1, 2])
    hook.remove()
    # Then
    assert calls == [1, 1, 2]


def test_tiles_change_pixels_so_they_are_part_of_the_recipe(pipe: Pipe) -> None:
    # Given a picture larger than one tile
    plain, tiled = (Text2Img(num_inference_steps=2, width=128, height=128, vae_tiling=on) for on in (False, True))
    report = Recorder()
    # When it is decoded at once and in tiles
    (whole,) = call(plain, pipe(plain), size=LARGE)
    (pieces,) = call(tiled, pipe(plain), size=LARGE, report=report)
    (again,) = call(plain, pipe(plain), size=LARGE)
    # Then the pixels differ, each tile is a sign of life, and the next call has none of it
    assert not same(whole, pieces)
    assert report.marks.count("tile") > 1
    assert same(whole, again)
    assert "pipe.vae.enable_tiling()" in tiled.script(None, Medium.IMAGE, LARGE, 1, Source("sd", "'x'"))


def test_a_lack_of_memory_names_the_size_and_what_would_fit(pipe: Pipe) -> None:
    # Given a pipe that has run 64×64, and then runs out of memory
    stage = Text2Img(num_inference_steps=2)
    pipe(stage).own.largest = None
    call(stage, pipe(stage))
    hook = full(pipe(stage))
    # When
    try:
        with pytest.raises(StageFailed) as info:
            call(stage, pipe(stage), size=LARGE)
    finally:
        hook.remove()
    # Then
    error = info.value
    assert (error.failure, error.code) == (Failure.OOM, "gpu_oom")
    assert error.message == (
        "128×128 does not fit into the memory of cpu; 64×64 is the largest that has run on this worker; "
        "smaller sides, or working in tiles, need less memory"
    )


def test_a_call_that_failed_for_memory_leaves_the_pipe_as_it_was(every: Every, pipe: Pipe) -> None:
    stage, given, emits = every
    before = call(stage, pipe(stage), [given], emits=emits)[0]
    hook = full(pipe(stage))
    try:
        with pytest.raises(StageFailed):
            call(stage, pipe(stage), [given], emits=emits, frugal=True)
    finally:
        hook.remove()
    assert same(before, call(stage, pipe(stage), [given], emits=emits)[0])
