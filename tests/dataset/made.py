"""Samples as a farm would have made them, with real recipes and drawn pictures, for what comes after the making."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from farm import __version__
from farm.client import Farm
from farm.dataset.parameters import NONE, Kinds
from farm.dataset.sharding import Shard, ShardWriter
from farm.dataset.spec import DatasetSpec, Failed, Picture, Sample
from farm.image import to_png
from farm.label import label
from farm.settings import Settings
from tests.test_cli import record_tiny

CHAIN: dict[str, Any] = {"stages": [{"kind": "text2img", "steps": 5}]}
LONG: dict[str, Any] = {"stages": [{"kind": "text2img", "steps": 5}, {"kind": "img2img", "strength": 0.5, "steps": 4}]}
MADE = {"farm": __version__, "torch": "2.13.0", "device": "cpu", "bucket": 1, "row": 0}


class Maker:
    """Makes the samples of one dataset."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        self.spec = DatasetSpec(**{"name": "fruit", "chain": CHAIN, "shard_samples": 8, **spec})
        self.farm = Farm(Settings(models=folder / "models"))
        record_tiny(self.farm.catalog)

    def sample(self, index: int, **told: Any) -> Sample:
        """The sample at this place of the dataset, one to a row."""
        size = self.spec.shard_samples
        told = {"prompt": f"pear no. {index}", "negative_prompt": "blurry", "seed": 1000 + index, **told}
        return Sample(place=divmod(index, size), row=index + 1, variant=0, **told)

    def picture(self, index: int, image: Image.Image | None = None, **told: Any) -> Picture:
        """The same, made; its picture is drawn from its index."""
        sample = self.sample(index, **told)
        given = {"prompt": sample.prompt, "negative_prompt": sample.negative_prompt, "seed": sample.seed}
        (job,) = self.farm.jobs_of(self.farm.chain(self.spec.chain, **given, **sample.changes), upload=False)
        recipes, made = list(job.recipes), [dict(MADE) for _ in job.recipes]
        document = {"v": 1, "farm": __version__, "recipes": recipes, "made": made}
        data = to_png(drawn(index) if image is None else image, document, label(recipes))
        kept: dict[str, bytes] = {}
        for place in range(len(recipes) - 1):
            if "base" in self.spec.keep:
                kept[f"stage{place}.png"] = to_png(drawn(-index))
            if "latents" in self.spec.keep:
                kept[f"stage{place}.safetensors"] = bytes(8) + str(index).encode()
        return Picture(sample, data, recipes, made, kept)

    def shard(
        self,
        folder: Path,
        pictures: Sequence[Picture],
        number: int = 0,
        columns: Sequence[str] = (),
        failed: Sequence[Failed] = (),
        parameters: Kinds = NONE,
    ) -> Shard:
        folder.mkdir(parents=True, exist_ok=True)
        with ShardWriter(folder, number, self.spec, columns, parameters) as writer:
            for picture in pictures:
                writer.add(picture)
            return writer.finish(failed)


def drawn(index: int, side: int = 64) -> Image.Image:
    """A picture unlike those of other indices."""
    dice = random.Random(index)
    image = Image.new("RGB", (side, side), tuple(dice.randbytes(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = dice.randrange(side), dice.randrange(side)
        box = (left, top, left + dice.randrange(8, side), top + dice.randrange(8, side))
        draw.ellipse(box, fill=tuple(dice.randbytes(3)))
    return image
