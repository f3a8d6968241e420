"""How is a picture redrawn?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from farm.errors import FieldError
from farm.stage import Medium, Size
from workers.diffusion import SDXL, GuidanceRescale, Sampled, Timesteps


class Img2Img(Sampled):
    """Redraw the input toward `prompt`. Source: SDEdit, Meng et al. 2021, arXiv:2108.01073."""

    kind: Literal["img2img"] = "img2img"
    takes: ClassVar[frozenset[Medium]] = frozenset({Medium.LATENTS, Medium.IMAGE})
    by_family: ClassVar = {
        "sd": "StableDiffusionImg2ImgPipeline",
        "sdxl": "StableDiffusionXLImg2ImgPipeline",
        "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    }
    only: ClassVar = {
        "denoising_start": SDXL, "guidance_rescale": SDXL,
        "aesthetic_score": ("sdxl-refiner",), "negative_aesthetic_score": ("sdxl-refiner",),
    }  # fmt: skip

    num_inference_steps: int = Field(
        25, ge=1, le=150, description="steps of the whole schedule, of which the share `strength` is run"
    )
    strength: float = Field(0.6, gt=0, le=1, description="share of the schedule that is redone; 1 ignores the input")
    width: int | None = Field(
        None, ge=64, le=2048, multiple_of=8, description="pixels, first stage only; default: the input's"
    )
    height: int | None = Field(
        None, ge=64, le=2048, multiple_of=8, description="pixels, first stage only; default: the input's"
    )
    timesteps: Timesteps = None
    guidance_rescale: GuidanceRescale = 0.0
    denoising_start: float | None = Field(
        None, gt=0, lt=1, description="where in the schedule the stage before left off; strength has then no effect"
    )
    # Source of the two: diffusers' defaults; arXiv:2307.01952, §2.5 has the refiner.
    aesthetic_score: float = Field(6.0, ge=0, le=10, description="how beautiful the picture shall be")
    negative_aesthetic_score: float = Field(2.5, ge=0, le=10, description="how beautiful it shall not be")

    def check(self) -> Iterator[FieldError]:
        """At least one step is run."""
        # Source: diffusers' `get_timesteps`, `min(int(num_inference_steps * strength), num_inference_steps)`.
        if self.denoising_start is None and int(self.steps * self.strength) < 1:
            least = math.ceil(1000 / self.steps) / 1000
            msg = f"{self.strength} of {self.steps} steps is less than one step; at least {least}"
            yield FieldError("strength", msg, "no_steps")
        yield from super().check()

    def arguments(self, family: str, size: Size) -> dict[str, Any]:
        """With `strength`, or where the stage before left off."""
        found = super().arguments(family, size) | self.set_of("timesteps", "guidance_rescale", "denoising_start")
        if self.denoising_start is None:
            found["strength"] = self.strength
        if family == "sdxl-refiner":
            found |= {name: getattr(self, name) for name in ("aesthetic_score", "negative_aesthetic_score")}
        return found
