"""How does an image become an image of four times the side?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from farm.errors import FieldError
from farm.stage import Batch, Medium, Report, Scheduler, Stage, VaeTiling
from workers import pipelines

PIPELINE = "StableDiffusionUpscalePipeline"
NOT_LOADED = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
"""Loading arguments: the farm keeps no safety checker and adds no watermark."""


class Upscale(Stage):
    """Quadruple the sides of an image, guided by `prompt`.

    Source: stable-diffusion-x4-upscaler (Stability AI, 2022) after Latent Diffusion, Rombach et al. 2022,
    arXiv:2112.10752, §4.4. It takes RGB, never latents (its UNet sees noise and image side by side), and its own
    latents are of use to no other stage, so it gives images only.
    """

    kind: Literal["upscale"] = "upscale"
    takes: ClassVar[frozenset[Medium]] = frozenset({Medium.IMAGE})
    gives: ClassVar[frozenset[Medium]] = frozenset({Medium.IMAGE})
    scale: ClassVar[int] = 4

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
    scheduler: Scheduler | None = Field(None, description="default: the checkpoint's own")
    eta: float = Field(0.0, ge=0, le=1, description="share of fresh noise in each step of DDIMScheduler")
    clip_skip: int | None = Field(None, ge=1, le=3, description="last layers of the text encoder to leave out")
    vae_tiling: VaeTiling = False

    def check(self) -> Iterator[FieldError]:
        """`eta` goes with the one scheduler that knows it."""
        yield from pipelines.check_eta(self.scheduler, self.eta)

    def load(self, checkpoint: pipelines.Files, device: str) -> Any:
        """A `StableDiffusionUpscalePipeline` without safety checker and watermark."""
        return pipelines.load(PIPELINE, checkpoint, device, **NOT_LOADED)

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """Images of `batch.size`, four times the given sides, one per input."""
        pipelines.fresh_scheduler(pipe, self.scheduler, batch.generators)
        return pipelines.call(
            pipe,
            batch,
            report,
            self.num_inference_steps,
            tiling=self.vae_tiling,
            image=list(batch.given),
            guidance_scale=self.guidance_scale,
            noise_level=self.noise_level,
            eta=self.eta,
            clip_skip=self.clip_skip,
        )

    def script(self, given: str | None, emits: Medium, seed: int, checkpoint: str) -> list[str]:
        """A plain `StableDiffusionUpscalePipeline` program that quadruples the variable `given`."""
        arguments = {
            "image": str(given),
            "num_inference_steps": str(self.num_inference_steps),
            "guidance_scale": str(self.guidance_scale),
            "noise_level": str(self.noise_level),
            "eta": str(self.eta),
            "clip_skip": str(self.clip_skip),
        }
        return pipelines.script(self, PIPELINE, checkpoint, emits, seed, arguments, NOT_LOADED)
