"""How does an image become an image of four times the side?"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from farm.stage import Medium, Size
from workers.diffusion import Sampled


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

    def arguments(self, family: str, size: Size) -> dict[str, Any]:
        """With `noise_level`."""
        return {**super().arguments(family, size), "noise_level": self.noise_level}
