"""Which pictures does training see, drawn once and kept?

Drawing costs more than a training step, so each part's pictures lie in a file of the work folder. All are scenes that
training may see; `held_out` ones are never among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from workers.demo import scenes
from workers.demo.sprites import OBJECTS, Sprites, fetch

CHUNK = 64


def pictures(
    work: Path, name: str, count: int, side: int, crop: int = 0, style: str | None = None
) -> dict[str, torch.Tensor]:
    """`count` scenes: `images` uint8 [count, 3, side, side] and `captions`, as bytes [count, 128] padded with zeros.

    With `crop`, a random piece of so many pixels of each.
    """
    path = work / "data" / f"{name}-{count}.safetensors"
    if not path.exists():
        fetch(work / "sets")
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = partial(_chunk, work=work, side=side, crop=crop, style=style, name=name)
        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(draw, range(-(-count // CHUNK))))
        images, captions = (np.concatenate(parts)[:count] for parts in zip(*drawn, strict=True))
        save_file({"images": torch.from_numpy(images), "captions": torch.from_numpy(captions)}, path)
    return load_file(path)


def words(captions: torch.Tensor) -> list[str]:
    """Captions as text."""
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in captions]


def _chunk(index: int, work: Path, side: int, crop: int, style: str | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    sprites = _sprites(work / "sets")
    dice = np.random.default_rng((sum(name.encode()), index))
    images, captions = [], []
    for scene in _scenes(dice, style):
        image = np.asarray(scenes.draw(scene, side, sprites))
        if crop:
            y, x = dice.integers(side - crop + 1, size=2)
            image = image[y : y + crop, x : x + crop]
        images.append(image.transpose(2, 0, 1))
        # A checkpoint of one style is not to need a word for it.
        text = scenes.captioned(scene, dice).removesuffix(f", {style} style")
        captions.append(np.frombuffer(text.encode().ljust(128, b"\0"), np.uint8))
    return np.stack(images), np.stack(captions)


@cache
def _sprites(folder: Path) -> Sprites:
    """The sets, read once per process."""
    return Sprites(folder)


def _scenes(dice: np.random.Generator, style: str | None) -> Iterator[scenes.Scene]:
    for _ in range(CHUNK):
        yield scenes.random_scene(dice, list(OBJECTS), style)
