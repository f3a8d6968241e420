"""How does a picture come from a prompt?"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from farm.stage import Medium, Size
from workers.diffusion import GuidanceRescale, Timesteps
from workers.guidance import Guided


class Text2Img(Guided):
    """Draw `prompt`, starting from noise.

    Source: Latent Diffusion, Rombach et al. 2022, arXiv:2112.10752; SDXL, Podell et al. 2023, arXiv:2307.01952.
    """

    kind: Literal["text2img"] = "text2img"
    takes: ClassVar[frozenset[Medium]] = frozenset()
    by_family: ClassVar = {
        "sd": "StableDiffusionPipeline",
        "sd2": "StableDiffusionPipeline",
        "sdxl": "StableDiffusionXLPipeline",
    }
    uncontrolled: ClassVar = {"guidance_rescale": ("sd", "sd2", "sdxl")}
    controlled: ClassVar = {
        "sd": "StableDiffusionControlNetPipeline",
        "sd2": "StableDiffusionControlNetPipeline",
        "sdxl": "StableDiffusionXLControlNetPipeline",
    }
    control_argument: ClassVar = "image"
    only: ClassVar = {"denoising_end": ("sdxl",)}

    num_inference_steps: int = Field(
        25, ge=1, le=150, description="denoising steps; more are slower and, past about 50, rarely better"
    )
    width: int | None = Field(None, ge=64, le=2048, multiple_of=8, description="pixels; default: the checkpoint's own")
    height: int | None = Field(None, ge=64, le=2048, multiple_of=8, description="pixels; default: the checkpoint's own")
    timesteps: Timesteps = None
    guidance_rescale: GuidanceRescale = 0.0
    denoising_end: float | None = Field(
        None, gt=0, lt=1, description="share of the schedule that is run; the next stage begins where this one ends"
    )

    def output_size(self, given: Size | None, native: int) -> Size:  # noqa: ARG002
        """`width` × `height`, each by default the checkpoint's native side."""
        return Size(self.width or native, self.height or native)

    def arguments(self, family: str, size: Size) -> dict[str, Any]:
        """With the size, which nothing else says."""
        return {
            "width": size.width,
            "height": size.height,
            **super().arguments(family, size),
            **self.set_of("timesteps", "guidance_rescale", "denoising_end"),
        }
