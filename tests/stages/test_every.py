"""Does every stage keep the rules that hold for all of them?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from farm.catalog import Catalog
from farm.errors import Failure, StageFailed
from farm.stage import Medium, Size, Stage
from tests.stages.conftest import EVERY, Recorder, Stopped, call, same, side_of, some_image, some_latents
from workers import pipelines
from workers.stages.img2img import Img2Img
from workers.stages.upscale import OVERLAP, Upscale
from workers.tiles import spans

Every = tuple[Stage, Any, Medium]
Pipe = Callable[..., Any]
decoding = pytest.mark.parametrize(
    "every",
    [case for case in EVERY.values() if case[2] is Medium.IMAGE],
    ids=[name for name, case in EVERY.items() if case[2] is Medium.IMAGE],
)


def test_same_seed_same_bits(every: Every, pipe: Pipe) -> None:
    # Given a stage, its input and a seed
    stage, given, emits = every
    # When it runs twice with the seed, and once with another
    first, again = (call(stage, pipe(stage), [given], emits=emits)[0] for _ in range(2))
    other = call(stage, pipe(stage), [given], emits=emits, seeds=[2])[0]
    # Then the two agree to the last bit, and the third does not
    assert same(first, again)
    assert not same(first, other)


def test_media_and_sizes(every: Every, pipe: Pipe) -> None:
    # Given a stage with an input that is not square
    stage, given, emits = every
    if isinstance(given, torch.Tensor):
        given = torch.cat([given, given], dim=2)
    elif given is not None:
        given = given.resize((given.width * 2, given.height))
    size = stage.output_size(side_of(given), 64)
    # When it runs
    out = call(stage, pipe(stage), [given], emits=emits, size=size)[0]
    # Then it gives what was asked for, on the CPU
    if emits is Medium.LATENTS:
        assert out.shape == (4, size.height // 8, size.width // 8)
        assert (out.dtype, out.device.type) == (torch.float32, "cpu")
    else:
        assert (out.mode, out.size) == ("RGB", size)


def test_marks_in_order(every: Every, pipe: Pipe) -> None:
    # Given a recorder
    stage, given, emits = every
    report = Recorder()
    # When the stage runs
    call(stage, pipe(stage), [given], emits=emits, report=report)
    # Then it hears the phases and each step once, in order, of each tile; a decode only where there is one
    steps = math.floor(stage.num_inference_steps * getattr(stage, "strength", 1))  # type: ignore[attr-defined]
    decode = ["decode"] if emits is Medium.IMAGE else []
    tile = getattr(stage, "tile", None)
    tiles = len([*spans(given.width, tile, OVERLAP)]) ** 2 if tile else 1
    assert report.marks == [
        mark
        for done in range(0, tiles * steps, steps)
        for mark in ["encode", "step", *((done + step, tiles * steps) for step in range(1, steps + 1)), *decode]
    ]


@pytest.mark.parametrize("stop", ["encode", "step", 1, 2])
def test_stop_leaves_the_pipe_as_it_was(every: Every, pipe: Pipe, stop: Any) -> None:
    # Given a stage's output, and a report that stops it at a phase or within a step
    stage, given, emits = every
    before = call(stage, pipe(stage), [given], emits=emits)[0]
    report = Recorder(stop)
    # When it runs with that report
    with pytest.raises(Stopped):
        call(stage, pipe(stage), [given], emits=emits, report=report)
    # Then nothing came after the mark, and the next run gives the same bits as before
    assert stop in (report.marks[-1], report.marks[-1][0])
    assert same(call(stage, pipe(stage), [given], emits=emits)[0], before)


@decoding
def test_stop_before_the_decode(every: Every, pipe: Pipe) -> None:
    # Given a stage's image
    stage, given, _ = every
    before = call(stage, pipe(stage), [given])[0]
    # When it is stopped after its last step, and then runs again
    with pytest.raises(Stopped):
        call(stage, pipe(stage), [given], report=Recorder("decode"))
    # Then the next run gives the same bits as before
    assert same(call(stage, pipe(stage), [given])[0], before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_unusable_numbers_are_refused(every: Every, pipe: Pipe, value: float) -> None:
    # Given a UNet whose last layer has a broken weight
    stage, given, emits = every
    bias = pipe(stage).unet.conv_out.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(value)
    # When the stage runs
    try:
        with pytest.raises(StageFailed) as caught:
            call(stage, pipe(stage), [given], emits=emits)
    finally:
        with torch.no_grad():
            bias.copy_(kept)
    # Then nothing is handed on, and it is not tried again
    assert (caught.value.code, caught.value.failure) == ("nan_output", Failure.DETERMINISTIC)


@decoding
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_unusable_numbers_of_the_decoder_are_refused(every: Every, pipe: Pipe, value: float) -> None:
    # Given a VAE whose decoder gives what an image of 8 bits would hide as black or white
    stage, given, emits = every
    bias = pipe(stage).vae.decoder.conv_out.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(value)
    # When the stage runs
    try:
        with pytest.raises(StageFailed) as caught:
            call(stage, pipe(stage), [given], emits=emits)
    finally:
        with torch.no_grad():
            bias.copy_(kept)
    # Then no image is made
    assert caught.value.code == "nan_output"


def test_no_memory_is_told_apart(every: Every, pipe: Pipe) -> None:
    # Given a device that runs out of memory in the UNet
    stage, given, emits = every
    before = call(stage, pipe(stage), [given], emits=emits)[0]

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = pipe(stage).unet.mid_block.register_forward_pre_hook(full) if pipe(stage).unet.mid_block else None
    hook = hook or pipe(stage).unet.conv_out.register_forward_pre_hook(full)
    # When the stage runs
    with pytest.raises(StageFailed) as caught:
        call(stage, pipe(stage), [given], emits=emits)
    hook.remove()
    # Then it is charged as such, and the pipe is as it was
    assert (caught.value.code, caught.value.failure) == ("gpu_oom", Failure.OOM)
    assert same(call(stage, pipe(stage), [given], emits=emits)[0], before)


def test_a_batch_is_its_members(every: Every, pipe: Pipe) -> None:
    # Given two members with prompts and seeds of their own
    stage, given, emits = every
    seeds, prompts = [1, 2], ["a red castle", "a dark forest at the sea"]
    # When they run together, and each alone
    both = call(stage, pipe(stage), [given], emits=emits, seeds=seeds, prompts=prompts)
    alone = [
        call(stage, pipe(stage), [given], emits=emits, seeds=[seed], prompts=[prompt])[0]
        for seed, prompt in zip(seeds, prompts, strict=True)
    ]
    # Then each is what it is alone, but for rounding. Source of the bounds: design, promise 4
    for one, other in zip(both, alone, strict=True):
        if emits is Medium.LATENTS:
            assert torch.allclose(one, other, atol=1e-3)
        else:
            pairs = zip(one.tobytes(), other.tobytes(), strict=True)
            assert max(abs(left - right) for left, right in pairs) <= 2


def test_another_size_is_refused(pipe: Pipe) -> None:
    # Given an input of another size than the chain says, for latents and for an image
    stage = Img2Img(num_inference_steps=2)
    for given, emits in ((some_latents(), Medium.LATENTS), (some_image(), Medium.IMAGE)):
        # When the stage runs
        with pytest.raises(StageFailed) as caught:
            call(stage, pipe(stage), [given], emits=emits, size=Size(128, 64))
        # Then its output is not handed on
        assert (caught.value.code, caught.value.failure) == ("bad_output", Failure.DETERMINISTIC)


def test_half_precision_vae_is_restored(catalog: Catalog) -> None:
    # Given the x4 pipeline in fp16, which decodes with its VAE raised to fp32, on a device that is full by then
    files = pipelines.files_of(catalog, catalog.checkpoints["tiny-x4"])
    stage = Upscale(num_inference_steps=2)
    half = stage.load(dataclasses.replace(files, dtype="float16"), "cpu")
    before = call(stage, half, [some_image(32)])[0]

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = half.vae.decoder.register_forward_pre_hook(full)
    # When the decode fails
    with pytest.raises(StageFailed, match="memory"):
        call(stage, half, [some_image(32)])
    hook.remove()
    # Then the VAE is fp16 again, and the picture is the one from before
    assert half.vae.dtype == torch.float16
    assert same(call(stage, half, [some_image(32)])[0], before)
