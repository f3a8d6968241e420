"""How do latents become latents of twice the side?"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from farm.stage import Medium
from workers.diffusion import Diffusion


class UpscaleLatent(Diffusion):
    """Double the sides without leaving the latent space.

    Source: sd-x2-latent-upscaler (Katherine Crowson, Stability AI, 2022), a k-diffusion model after Karras et al. 2022,
    arXiv:2206.00364. It has no `scheduler` field: its pipeline applies Karras' preconditioning itself and is only right
    with the checkpoint's own Euler scheduler.
    """

    kind: Literal["upscale_latent"] = "upscale_latent"
    takes: ClassVar[frozenset[Medium]] = frozenset({Medium.LATENTS})
    scale: ClassVar[int] = 2
    # The UNet halves the doubled latents (side / 8 × 2) three times and cannot pad where that leaves a rest.
    # Source: unet/config.json of sd-x2-latent-upscaler, diffusers' `KUpBlock2D`; other UNets are told the size.
    multiple: ClassVar[int] = 32
    by_family: ClassVar = {"sd": "StableDiffusionLatentUpscalePipeline"}

    # Source: the example in diffusers' docs of this pipeline (its default of 75 is inherited from the x4 pipeline).
    num_inference_steps: int = Field(20, ge=1, le=150, description="denoising steps")
    # Source: the same example has 0, which drops the prompt. 1 costs the same one UNet pass per step and keeps it.
    guidance_scale: float = Field(
        1.0,
        ge=0,
        le=30,
        description="0 ignores the prompt, up to 1 also the negative prompt; more follows it closely at twice the cost",
    )
