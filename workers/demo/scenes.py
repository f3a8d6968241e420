"""What is on a picture of the demo family, how is it drawn, and how would a person ask for it?

A `Scene` is one or two things on a ground. It is drawn at any side, so that the same scene at 64, 128 and 512 px is
what an upscaler learns from and is measured against, and it has a caption, which names some or all of what can be seen.

Some combinations are never drawn for training (`held_out`): a prompt for one of them shows whether the parts of a
prompt were understood, or only whole pictures remembered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from workers.demo.sprites import SIDE, Sprites

COLOURS = {
    "red": (222, 44, 44),
    "orange": (245, 140, 30),
    "yellow": (250, 214, 60),
    "green": (46, 158, 72),
    "blue": (40, 98, 230),
    "purple": (138, 66, 190),
    "pink": (246, 146, 186),
    "black": (26, 26, 30),
    "white": (245, 245, 245),
    "grey": (140, 140, 146),
}
"""The colours of grounds and of shapes, sRGB."""
JITTER = 8
"""A drawn colour is off its own by up to so much per channel."""
SHAPES = ("circle", "square", "triangle", "cross", "ring", "pentagon")
"""Drawn things, which come in every colour."""
PLACES = {"": (0.5, 0.5), "left": (0.3, 0.5), "right": (0.7, 0.5), "top": (0.5, 0.3), "bottom": (0.5, 0.7)}
"""Centre of a thing, as a share of the side."""
SIZES = {"": 0.66, "small": 0.4, "large": 0.9}
ASIDE = 0.46
"""Longer side of a thing, as a share of the picture's: in the middle, by its size, and elsewhere."""
NATURAL = {
    "apple": "red", "lemon": "yellow", "fox": "orange", "frog": "green", "pig": "pink", "car": "red", "tree": "green",
    "cactus": "green", "star": "yellow", "moon": "yellow", "sun": "yellow", "basketball": "orange", "diamond": "blue",
    "key": "yellow", "bell": "yellow", "balloon": "red", "ghost": "white", "cherries": "red", "strawberry": "red",
    "banana": "yellow", "skull": "white", "heart": "red", "carrot": "orange", "crab": "red", "turtle": "green",
    "elephant": "grey", "rose": "red",
}  # fmt: skip
"""The colour that people see in an object; a prompt may name it."""
STYLES = {"flat": 0.85, "shaded": 0.15}
"""The styles of objects, with their shares of the pictures that are trained on."""
HELD_OUT = 10
"""One in so many combinations is held out."""


@dataclass(frozen=True)
class Thing:
    """An object or a shape. An object has no `colour` or its natural one; `place` and `size` are empty where usual."""

    name: str
    colour: str = ""
    place: str = ""
    size: str = ""

    def words(self) -> str:
        """As a prompt names it, with its article."""
        text = " ".join(filter(None, (self.size, self.colour, self.name)))
        plural = self.name in ("cherries",)
        return text if plural else f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


@dataclass(frozen=True)
class Scene:
    """One or two things on a ground of one colour, or of two (top to bottom). `seed` decides the details."""

    things: tuple[Thing, ...]
    ground: tuple[str, ...]
    style: str = "flat"
    seed: int = 0

    def caption(self, style: bool = False, ground: bool = True) -> str:
        """The prompt that asks for it: "a small cat on the left, on a red background"."""
        first, *rest = self.things
        text = first.words()
        if rest:
            text += f" and {rest[0].words()}"
        elif first.place:
            where = f"on the {first.place}" if first.place in ("left", "right") else f"at the {first.place}"
            text += f" {where},"
        if ground:
            text += f" on a {' to '.join(self.ground)} {'gradient' if len(self.ground) > 1 else 'background'}"
        if style:
            text += f", {self.style} style"
        return text.replace(" on a orange", " on an orange").rstrip(",")


def held_out(scene: Scene) -> bool:
    """Whether training must not see `scene`: one of its pairs (thing and ground, thing and place, shape and colour)."""
    pairs = [
        pair
        for thing in scene.things
        for pair in (
            *((thing.name, "on", ground) for ground in scene.ground),
            (thing.name, "at", thing.place),
            (thing.name, "in", thing.colour if thing.name in SHAPES else ""),
        )
        if pair[2]
    ]
    return any(_draw(*pair) % HELD_OUT == 0 for pair in pairs)


def _draw(*words: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(words).encode()).digest()[:4])


def random_scene(dice: np.random.Generator, names: Sequence[str], style: str | None = None) -> Scene:
    """A scene that training may see: half of them one thing in the middle, the others smaller, elsewhere or two."""
    while True:
        scene = _random_scene(dice, names, style)
        if not held_out(scene):
            return scene


def _random_scene(dice: np.random.Generator, names: Sequence[str], style: str | None) -> Scene:
    def one_of(options: Sequence[str]) -> str:
        return options[int(dice.integers(len(options)))]

    def thing(place: str, size: str, ground: Sequence[str]) -> Thing:
        if dice.random() < 0.2:
            return Thing(one_of(SHAPES), one_of([name for name in COLOURS if name not in ground]), place, size)
        name = one_of(names)
        return Thing(name, NATURAL.get(name, "") if dice.random() < 0.3 else "", place, size)

    first = one_of(list(COLOURS))
    ground = (first, one_of([name for name in COLOURS if name != first])) if dice.random() < 0.15 else (first,)
    kind = dice.random()
    things: tuple[Thing, ...]
    if kind < 0.55:
        things = (thing("", "", ground),)
    elif kind < 0.7:
        things = (thing("", one_of(("small", "large")), ground),)
    elif kind < 0.85:
        things = (thing(one_of(("left", "right", "top", "bottom")), "", ground),)
    else:
        things = (thing("left", "", ground), thing("right", "", ground))
    style = style or str(dice.choice(list(STYLES), p=list(STYLES.values())))
    return Scene(things, ground, style, int(dice.integers(1 << 31)))


def captioned(scene: Scene, dice: np.random.Generator) -> str:
    """A caption of `scene` for training: the ground is nearly always named, the style rarely."""
    return scene.caption(style=dice.random() < (0.1 if scene.style == "flat" else 1.0), ground=dice.random() < 0.9)


# ------------------------------------------------------------------------------------------------ drawing


def draw(scene: Scene, side: int, sprites: Sprites) -> Image.Image:
    """`scene` as an RGB image of `side` pixels. The same scene at two sides is the same picture."""
    dice = np.random.default_rng(scene.seed)
    picture = _ground([_jittered(colour, dice) for colour in scene.ground], side)
    for thing in scene.things:
        share = ASIDE if thing.place else SIZES[thing.size]
        length = share * dice.uniform(0.93, 1.07)
        x, y = (centre + dice.uniform(-0.03, 0.03) for centre in PLACES[thing.place])
        if thing.name in SHAPES:
            cut = Image.new("RGBA", (SIDE, SIDE), (*_jittered(thing.colour, dice), 0))
            cut.putalpha(_shape(thing.name))
        else:
            cut = sprites.of(thing.name, scene.style)
        scale = length * side / max(cut.size)
        size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
        cut = cut.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        picture.paste(cut, (round(x * side - size[0] / 2), round(y * side - size[1] / 2)), cut)
    return picture


def _jittered(colour: str, dice: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(COLOURS[colour]) + dice.integers(-JITTER, JITTER + 1, 3), 0, 255)
    return int(red), int(green), int(blue)


def _ground(colours: Sequence[tuple[int, int, int]], side: int) -> Image.Image:
    if len(colours) == 1:
        return Image.new("RGB", (side, side), colours[0])
    share = ((np.arange(side) + 0.5) / side)[:, None, None]
    rows = np.array(colours[0]) * (1 - share) + np.array(colours[1]) * share
    return Image.fromarray(np.broadcast_to(rows.round(), (side, side, 3)).astype(np.uint8))


@cache
def _shape(name: str) -> Image.Image:
    """A shape as the opacity of a square."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    pen, third, rim = ImageDraw.Draw(mask), SIDE // 3, SIDE // 16
    match name:
        case "circle":
            pen.ellipse((0, 0, SIDE - 1, SIDE - 1), 255)
        case "square":
            pen.rectangle((rim, rim, SIDE - rim, SIDE - rim), 255)
        case "triangle":
            pen.polygon([(SIDE // 2, rim), (SIDE - 1, SIDE - rim), (0, SIDE - rim)], 255)
        case "cross":
            pen.rectangle((third, 0, 2 * third, SIDE), 255)
            pen.rectangle((0, third, SIDE, 2 * third), 255)
        case "ring":
            pen.ellipse((0, 0, SIDE - 1, SIDE - 1), 255)
            pen.ellipse((SIDE // 4, SIDE // 4, SIDE - SIDE // 4, SIDE - SIDE // 4), 0)
        case "pentagon":
            pen.regular_polygon((SIDE // 2, SIDE // 2, SIDE // 2), 5, fill=255)
    return mask.filter(ImageFilter.GaussianBlur(1))
