"""What is on a picture of 64 px? The judge of the demo family, made without any of the family's pictures.

Grounds and the colours of shapes are read off the pixels; objects are named by a small convolutional network, which
`python -m tests.demo.scorer --work DIR` trains on drawn scenes that training may see. Nothing that it says of made
pictures counts before it names 95 % of held-out drawn scenes right, wherever the object lies.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from workers.demo import scenes
from workers.demo.sprites import OBJECTS, Sprites

WEIGHTS = Path(__file__).with_name("scorer.safetensors")
NAMES = [*OBJECTS, *scenes.SHAPES]
STYLES = list(scenes.STYLES)
_COLOURS = np.array(list(scenes.COLOURS.values()), float)
RIM = 3
"""Pixels of the ground that are looked at, from each edge."""


def network() -> nn.Module:
    """Pictures [batch, 3, 64, 64] in -1…1 to one score per name, and then one per style."""

    def block(gives: int, takes: int) -> list[nn.Module]:
        return [nn.Conv2d(gives, takes, 3, padding=1), nn.BatchNorm2d(takes), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(3, 32), *block(32, 64), *block(64, 96),
        nn.Conv2d(96, 160, 3, padding=1), nn.BatchNorm2d(160), nn.ReLU(),
        # wherever it lies
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(160, len(NAMES) + len(STYLES)),
    )  # fmt: skip


class Scorer:
    """Names what is on pictures, and the style it is drawn in."""

    def __init__(self) -> None:
        self._network = network().eval()
        self._network.load_state_dict({key: value.float() for key, value in load_file(WEIGHTS).items()})

    @torch.no_grad()
    def things(self, pictures: Sequence[Image.Image], among: Sequence[str]) -> list[str]:
        """The one of `among` that is most likely on each picture."""
        rows = [NAMES.index(name) for name in among]
        scores = self._network(as_tensor(pictures))[:, rows]
        return [among[int(row)] for row in scores.argmax(1)]

    @torch.no_grad()
    def styles(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The style of the object on each picture."""
        return [STYLES[int(row)] for row in self._network(as_tensor(pictures))[:, len(NAMES) :].argmax(1)]


def as_tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures of 64 px as [batch, 3, 64, 64] in -1…1."""
    bytes_ = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(bytes_).permute(0, 3, 1, 2).float() / 127.5 - 1


def ground(picture: Image.Image) -> str:
    """The colour along the edges."""
    pixels = np.asarray(picture.convert("RGB"), float)
    inside = np.ones(pixels.shape[:2], bool)
    inside[RIM:-RIM, RIM:-RIM] = False
    return _nearest(np.median(pixels[inside], 0))


def colour(picture: Image.Image) -> str:
    """The colour of what lies on the ground: the median of the 15 % of all pixels that differ most from it."""
    pixels = np.asarray(picture.convert("RGB"), float)
    inside = np.ones(pixels.shape[:2], bool)
    inside[RIM:-RIM, RIM:-RIM] = False
    far = ((pixels - np.median(pixels[inside], 0)) ** 2).sum(2)
    return _nearest(np.median(pixels[far >= np.quantile(far, 0.85)], 0))


def _nearest(found: np.ndarray) -> str:
    return list(scenes.COLOURS)[int(((_COLOURS - found) ** 2).sum(1).argmin())]


def main() -> None:
    """Trains the network on drawn scenes of one thing, made worse in the ways that made pictures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo.scorer")
    parser.add_argument("--work", type=Path, default=Path("demo-training"))
    parser.add_argument("--count", type=int, default=24000)
    parser.add_argument("--steps", type=int, default=3000)
    given = parser.parse_args()
    sprites, dice = Sprites(given.work / "sets"), np.random.default_rng(7)
    images, names, styles = [], [], []
    while len(images) < given.count:
        scene = scenes.random_scene(dice, list(OBJECTS), STYLES[len(images) % 2])
        if len(scene.things) == 1:
            images.append(np.asarray(scenes.draw(scene, 64, sprites)).transpose(2, 0, 1))
            names.append(NAMES.index(scene.things[0].name))
            styles.append(STYLES.index(scene.style))
    drawn, wanted, styled = torch.from_numpy(np.stack(images)), torch.tensor(names), torch.tensor(styles)
    torch.manual_seed(0)
    model: Any = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.steps)
    for step in range(given.steps):
        rows = torch.randint(len(drawn), (96,))
        batch = drawn[rows].float() / 127.5 - 1
        if step % 2:
            batch = functional.interpolate(functional.avg_pool2d(batch, 2), scale_factor=2, mode="bilinear")
        batch = batch + 0.1 * torch.rand(96, 1, 1, 1) * torch.randn_like(batch)
        found, right = model(batch), wanted[rows]
        loss = functional.cross_entropy(found[:, : len(NAMES)], right, label_smoothing=0.05)
        objects = right < len(OBJECTS)  # shapes have no style
        loss += 0.3 * functional.cross_entropy(found[objects, len(NAMES) :], styled[rows][objects])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        if step % 200 == 0:
            print(step, round(loss.item(), 4), flush=True)
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()},
        WEIGHTS,
    )


if __name__ == "__main__":
    main()
