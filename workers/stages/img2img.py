"""How is a picture redrawn?"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from farm.stage import Medium, Size
from workers.diffusion import SDXL, GuidanceRescale, Redrawn, Timesteps
from workers.guidance import Guided


class Img2Img(Guided, Redrawn):
    """Redraw the input toward `prompt`. Source: SDEdit, Meng et al. 2021, arXiv:2108.01073."""

    kind: Literal["img2img"] = "img2img"
    takes: ClassVar[frozenset[Medium]] = frozenset({Medium.LATENTS, Medium.IMAGE})
    by_family: ClassVar = {
        "sd": "StableDiffusionImg2ImgPipeline",
        "sd2": "StableDiffusionImg2ImgPipeline",
        "sdxl": "StableDiffusionXLImg2ImgPipeline",
        "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    }
    uncontrolled: ClassVar = {
        "timesteps": ("sd", "sd2", "sdxl"), "guidance_rescale": ("sdxl",), "denoising_start": ("sdxl",),
    }  # fmt: skip
    controlled: ClassVar = {
        "sd": "StableDiffusionControlNetImg2ImgPipeline",
        "sd2": "StableDiffusionControlNetImg2ImgPipeline",
        "sdxl": "StableDiffusionXLControlNetImg2ImgPipeline",
    }
    only: ClassVar = {
        "denoising_start": SDXL, "guidance_rescale": SDXL,
        "aesthetic_score": ("sdxl-refiner",), "negative_aesthetic_score": ("sdxl-refiner",),
    }  # fmt: skip

    timesteps: Timesteps = None
    guidance_rescale: GuidanceRescale = 0.0
    denoising_start: float | None = Field(
        None, gt=0, lt=1, description="where in the schedule the stage before left off; strength has then no effect"
    )
    # Source of the two: diffusers' defaults; arXiv:2307.01952, §2.5 has the refiner.
    aesthetic_score: float = Field(6.0, ge=0, le=10, description="how beautiful the picture shall be")
    negative_aesthetic_score: float = Field(2.5, ge=0, le=10, description="how beautiful it shall not be")

    def arguments(self, family: str, size: Size) -> dict[str, Any]:
        """With `strength`, or where the stage before left off."""
        found = super().arguments(family, size) | self.set_of("timesteps", "guidance_rescale", "denoising_start")
        if self.denoising_start is not None:
            del found["strength"]
        if family == "sdxl-refiner":
            found |= {name: getattr(self, name) for name in ("aesthetic_score", "negative_aesthetic_score")}
        return found
