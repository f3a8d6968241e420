"""How does an image become an image of four times the side?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from farm.stage import Batch, Medium, Report, Size, Source
from workers import tiles
from workers.diffusion import Sampled

OVERLAP = 32
"""Pixels of the input by which tiles overlap."""


def _scheduler_again(lines: Sequence[str]) -> list[str]:
    """The lines that give the pipeline a new scheduler: for each tile one, for they keep state."""
    found = [line for line in lines if line.startswith("pipe.scheduler = ")]
    return found or ["pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)"]


class Upscale(Sampled):
    """Quadruple the sides of an image, guided by `prompt`.

    Source: stable-diffusion-x4-upscaler (Stability AI, 2022) after Latent Diffusion, Rombach et al. 2022,
    arXiv:2112.10752, §4.4. It takes RGB, never latents (its UNet sees noise and image side by side), and its own
    latents are of use to no other stage, so it gives images only.
    """

    kind: Literal["upscale"] = "upscale"
    takes: ClassVar[frozenset[Medium]] = frozenset({Medium.IMAGE})
    gives: ClassVar[frozenset[Medium]] = frozenset({Medium.IMAGE})
    scale: ClassVar[int] = 4
    by_family: ClassVar = {"sd": "StableDiffusionUpscalePipeline"}

    # diffusers' default is 75, which alone would cost ten times as much as the three other stages together.
    num_inference_steps: int = Field(20, ge=1, le=150, description="denoising steps; diffusers' own default is 75")
    # Source: diffusers' default.
    guidance_scale: float = Field(
        9.0, ge=0, le=30, description="how closely the prompt is followed; up to 1 the negative prompt has no effect"
    )
    # Source: diffusers' default; 350 is `max_noise_level` of the checkpoint.
    noise_level: int = Field(
        20, ge=0, le=350, description="noise added to the input: more invents more detail and keeps less of the input"
    )

    tile: int | None = Field(
        None,
        ge=64,
        le=1024,
        multiple_of=8,
        description="works on overlapping tiles of so many pixels of the input: any size fits into memory",
    )

    def whole(self) -> bool:
        """Not in tiles."""
        return self.tile is None

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """Images of `batch.size`, four times the given sides, one per input."""
        if self.tile is None:
            return super().run(pipe, batch, report)
        rows = range(len(batch.prompts))
        return [self._tiled(pipe, batch.alone(row), tiles.Row(report, row, len(rows))) for row in rows]

    def _tiled(self, pipe: Any, batch: Batch, report: Report) -> Any:
        """One picture in tiles. Its generator goes on from tile to tile."""
        import numpy as np
        from PIL import Image

        (image,) = batch.given

        def piece(index: int, count: int, box: tiles.Box) -> Any:
            part = image.crop(box)
            alone = replace(batch, given=[part], size=Size(4 * part.width, 4 * part.height))
            (made,) = self.called(pipe, alone, tiles.Part(report, index, count), image=[part])
            return np.asarray(made, np.float32)

        made = tiles.blended(Size(*image.size), 4, self.tile or 0, OVERLAP, piece)
        return Image.fromarray(made.round().astype(np.uint8))

    def script(self, named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source) -> list[str]:
        """A plain program that quadruples the variable `given`."""
        if self.tile is None:
            return super().script(named, emits, size, seed, source)
        whole = self.lines({"image": "part"}, named, emits, size, seed, source)
        start = whole.index("out = pipe(")
        call = [line.replace(f'torch.Generator("cpu").manual_seed({seed})', "generator") for line in whole[start:]]
        part = [*_scheduler_again(whole[:start]), *call, "piece = np.asarray(out, np.float32)"]
        return [
            *whole[:start],
            f'generator = torch.Generator("cpu").manual_seed({seed})',
            *tiles.program(named["given"], size, 4, self.tile, OVERLAP, part),
            "out = Image.fromarray(made.round().astype(np.uint8))",
        ]

    def arguments(self, family: str, size: Size) -> dict[str, Any]:
        """With `noise_level`."""
        return {**super().arguments(family, size), "noise_level": self.noise_level}
