"""Scenes are drawn as they say, named as a person would, and some are kept from training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.demo import scorer
from workers.demo.scenes import COLOURS, PLACES, SHAPES, Scene, Thing, draw, held_out, random_scene
from workers.demo.sprites import OBJECTS, Sprites


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (Scene((Thing("cat"),), ("blue",)), "a cat on a blue background"),
        (Scene((Thing("apple", "red"),), ("orange",)), "a red apple on an orange background"),
        (Scene((Thing("owl", size="small"),), ("black", "pink")), "a small owl on a black to pink gradient"),
        (Scene((Thing("ring", "green", "left"),), ("white",)), "a green ring on the left, on a white background"),
        (Scene((Thing("cat", place="left"), Thing("apple", place="right")), ("red",)),
         "a cat and an apple on a red background"),
        (Scene((Thing("cherries"),), ("grey",)), "cherries on a grey background"),
    ],
)  # fmt: skip
def test_a_caption_names_what_is_there(scene: Scene, caption: str) -> None:
    assert scene.caption() == caption
    assert scene.caption(style=True) == f"{caption}, flat style"


def test_training_never_sees_what_is_held_out() -> None:
    # Given many scenes
    dice = np.random.default_rng(0)
    drawn = [random_scene(dice, list(OBJECTS)) for _ in range(3000)]
    # Then none is held out, though some of all combinations are, of every object and every colour
    assert not any(map(held_out, drawn))
    singles = {(name, ground): held_out(Scene((Thing(name),), (ground,))) for name in OBJECTS for ground in COLOURS}
    assert 0.05 < np.mean(list(singles.values())) < 0.2
    assert {thing.name for scene in drawn for thing in scene.things} == {*OBJECTS, *SHAPES}
    assert {ground for scene in drawn for ground in scene.ground} == {*COLOURS}


def test_a_scene_is_the_same_picture_at_any_side(sprites: Sprites) -> None:
    dice = np.random.default_rng(1)
    for scene in [random_scene(dice, list(OBJECTS)) for _ in range(20)]:
        small, large = (draw(scene, side, sprites) for side in (64, 256))
        shrunk = np.asarray(large.resize((64, 64), Image.Resampling.BOX), float)
        assert np.abs(shrunk - np.asarray(small, float)).mean() < 6, scene


@pytest.mark.parametrize("place", [place for place in PLACES if place])
def test_a_thing_lies_where_the_scene_says(sprites: Sprites, place: str) -> None:
    picture = np.asarray(draw(Scene((Thing("circle", "black", place),), ("white",)), 64, sprites), float).mean(2)
    rows, columns = np.nonzero(picture < 128)
    centre = (columns.mean() / 64, rows.mean() / 64)
    assert np.allclose(centre, PLACES[place], atol=0.06)


def test_colours_are_read_off_drawn_scenes(sprites: Sprites) -> None:
    # The part of the judge that needs no training.
    for ground in COLOURS:
        for colour in (name for name in COLOURS if name != ground):
            for shape in SHAPES:
                picture = draw(Scene((Thing(shape, colour),), (ground,), seed=len(shape)), 64, sprites)
                assert (scorer.ground(picture), scorer.colour(picture)) == (ground, colour), shape
