"""Can every stage be looked at while it runs, and are its pixels the same whoever looks?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from farm.stage import Batch, Medium, Stage
from tests.stages.conftest import CATALOG, SMALL, Recorder, call, same, some_image
from workers.adapters import files_of
from workers.preview import colours
from workers.stages.text2img import Text2Img
from workers.stages.upscale import Upscale

Every = tuple[Stage, Any, Medium]
Pipe = Callable[[Stage], Any]


class Blind(Recorder):
    """A report that never looks."""

    def show(self, seen: Callable[[], Any], row: int = 0) -> None:
        """Nothing is computed."""


class Onlooker(Recorder):
    """A report that looks at every step, as a screen does."""

    def show(self, seen: Callable[[], Any], row: int = 0) -> None:
        super().show(seen, row)
        assert colours(self.shown[-1][1], [[0.1] * 3] * 5)().shape[0] == self.shown[-1][1].shape[1]


def test_a_look_changes_no_bit(every: Every, pipe: Pipe) -> None:
    # Given
    stage, given, emits = every
    (before,) = call(stage, pipe(stage), [given], emits=emits, report=Blind())
    # When
    eye = Onlooker()
    (made,) = call(stage, pipe(stage), [given], emits=emits, report=eye)
    # Then
    assert same(made, before)
    # And each step was seen, but in tiles, of which none is the picture
    if stage.whole():
        steps = [mark for mark in eye.marks if isinstance(mark, tuple)]
        assert len(eye.shown) >= len(steps) > 0
    else:
        assert eye.shown == []


def test_what_is_seen_last_is_nearly_what_is_made(pipe: Pipe) -> None:
    # Given
    stage, eye = Text2Img(num_inference_steps=20), Onlooker()
    # When
    (made,) = call(stage, pipe(stage), emits=Medium.LATENTS, report=eye)
    # Then the two views of the last step are near to it, and those of the first are not
    distances = [float((view - made).abs().mean()) for step in (0, -1) for view in eye.shown[step][1][:, 0]]
    assert max(distances[2:]) < 0.2 < min(distances[:2])


@pytest.mark.parametrize("alone", [False, True], ids=["at once", "one by one"])
def test_members_are_seen_as_themselves(pipe: Pipe, alone: bool) -> None:
    # Given three members, in one call or, as with weights in prompts, in calls of their own
    stage = Text2Img(num_inference_steps=3, weighting="a1111" if alone else "none")
    eye = Onlooker()
    # When
    made = call(stage, pipe(stage), emits=Medium.LATENTS, seeds=(1, 2, 3), report=eye)
    # Then
    last = eye.shown[-1:] if not alone else [eye.shown[index] for index in (2, 5, 8)]
    rows = [(row + index, view) for row, views in last for index, view in enumerate(views[1])]
    assert [row for row, _ in rows] == [0, 1, 2]
    for row, view in rows:
        distances = [float((view - one).abs().mean()) for one in made]
        assert distances.index(min(distances)) == row


def test_the_members_of_an_upscale_are_seen_at_its_size(pipe: Pipe) -> None:
    eye = Onlooker()
    call(Upscale(num_inference_steps=2), pipe(Upscale()), [some_image(32)], report=eye)
    assert {tuple(views.shape) for _, views in eye.shown} == {(2, 1, 4, 32, 32)}


@pytest.mark.parametrize("checkpoint", ["tiny", "tiny-xl"])
def test_a_kept_picture_is_what_the_stage_would_give_as_an_image(pipe: Pipe, checkpoint: str) -> None:
    # Given latents, and the image that the same call gives
    stage = Text2Img(num_inference_steps=3, checkpoint=checkpoint)
    (image,) = call(stage, pipe(stage), emits=Medium.IMAGE)
    (latents,) = call(stage, pipe(stage), emits=Medium.LATENTS)
    before = latents.clone()
    # When
    batch = Batch(Medium.LATENTS, SMALL, [""], [""], [None], [None])
    found = stage.decoded(pipe(stage), latents, batch)
    # Then
    assert same(found, image)
    assert torch.equal(latents, before)
    # And the next call gives what it gave
    assert same(call(stage, pipe(stage), emits=Medium.IMAGE)[0], image)


@pytest.mark.parametrize("vae", [None, "tiny-vae"])
def test_a_kept_picture_spares_memory_as_the_stage_does(pipe: Pipe, vae: str | None) -> None:
    # Given a stage that decodes in tiles and ran out of memory before, with the checkpoint's VAE or another
    stage = Text2Img(vae=vae, vae_tiling=True)
    adapters = {vae: files_of(CATALOG[0], CATALOG[0].adapters[vae])} if vae else {}
    batch = Batch(Medium.LATENTS, SMALL, [""], [""], [None], [None], adapters=adapters, frugal=True)
    decoder, spared = stage.decoder(pipe(stage), batch), list[tuple[bool, bool]]()
    hook = decoder.decoder.register_forward_pre_hook(
        lambda *_: spared.append((decoder.use_slicing, decoder.use_tiling))
    )
    # When
    stage.decoded(pipe(stage), torch.zeros(4, SMALL.height // 8, SMALL.width // 8), batch)
    hook.remove()
    # Then that one is spared, and only for this
    assert set(spared) == {(True, True)}
    assert (decoder.use_slicing, decoder.use_tiling) == (False, False)
