"""64 prompts, each as the four stages of a chain leave it: `python -m tests.demo.sheet -o workers/demo/sheet.webp`.

A farm on this machine renders them: for each prompt the first stage alone, the first two, the first three, and all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from farm.local import running
from farm.settings import Settings
from workers.demo.scenes import COLOURS, SHAPES, Scene, Thing
from workers.demo.sprites import OBJECTS

STAGES = [{"kind": "text2img"}, {"kind": "img2img", "strength": 0.5}, {"kind": "upscale_latent"}, {"kind": "upscale"}]
SIDE, LINE, COLUMNS = 256, 26, 4
"""Pixels of a picture's side and of a line of text, and prompts in a row."""


def prompts() -> list[str]:
    """40 objects on a ground, 8 shapes, 8 objects in a place and 8 pairs; no object comes twice."""
    names, grounds = [str(name) for name in np.random.default_rng(64).permutation(list(OBJECTS))], list(COLOURS)
    scenes = [Scene((Thing(name),), (grounds[row % 10],)) for row, name in enumerate(names[:40])]
    for row in range(8):
        ground, other = grounds[row % 10], grounds[(row + 4) % 10]
        scenes.append(Scene((Thing(SHAPES[row % 6], other),), (ground,)))
        place = ("left", "right", "top", "bottom")[row % 4]
        scenes.append(Scene((Thing(names[40 + row], place=place),), (other,)))
        scenes.append(Scene((Thing(names[48 + 2 * row]), Thing(names[49 + 2 * row])), (ground, other)[: 1 + row % 2]))
    return [scene.caption() for scene in scenes]


def sheet(pictures: Sequence[Sequence[Image.Image]], texts: Sequence[str]) -> Image.Image:
    """One picture: per prompt its stages side by side, all of one size, with the prompt below."""
    width, height, font = SIDE * len(STAGES), SIDE + LINE, ImageFont.load_default(18)
    whole = Image.new("RGB", (COLUMNS * width, -(-len(texts) // COLUMNS) * height), "white")
    pen = ImageDraw.Draw(whole)
    for index, (row, text) in enumerate(zip(pictures, texts, strict=True)):
        x, y = index % COLUMNS * width, index // COLUMNS * height
        for stage, picture in enumerate(row):
            how = Image.Resampling.NEAREST if picture.width < SIDE else Image.Resampling.BOX
            whole.paste(picture.resize((SIDE, SIDE), how), (x + stage * SIDE, y))
        pen.text((x + 6, y + SIDE + 2), text, "black", font)
    return whole


def main() -> None:
    """Renders the sheet."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo.sheet", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("sheet.webp"))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    texts = prompts()
    with TemporaryDirectory() as folder, running(Settings.load(data=Path(folder))) as farm:
        jobs = [
            [farm.render(text, chain={"stages": STAGES[: last + 1]}, seed=given.seed + row) for last in range(4)]
            for row, text in enumerate(texts)
        ]
        pictures = [[job.wait(3600).images[0] for job in row] for row in jobs]
    sheet(pictures, texts).save(given.out, quality=85)


if __name__ == "__main__":
    main()
