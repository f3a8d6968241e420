"""How does a picture come from a prompt?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from farm.errors import FieldError
from farm.stage import Batch, Medium, Report, Scheduler, Size, Stage, VaeTiling
from workers import pipelines

PIPELINE = "StableDiffusionPipeline"


class Text2Img(Stage):
    """Draw `prompt`, starting from noise. Source: Latent Diffusion, Rombach et al. 2022, arXiv:2112.10752."""

    kind: Literal["text2img"] = "text2img"
    takes: ClassVar[frozenset[Medium]] = frozenset()

    width: int | None = Field(None, ge=64, le=2048, multiple_of=8, description="pixels; default: the checkpoint's own")
    height: int | None = Field(None, ge=64, le=2048, multiple_of=8, description="pixels; default: the checkpoint's own")
    num_inference_steps: int = Field(
        25, ge=1, le=150, description="denoising steps; more are slower and, past about 50, rarely better"
    )
    guidance_scale: float = Field(
        7.5, ge=0, le=30, description="how closely the prompt is followed; up to 1 the negative prompt has no effect"
    )
    scheduler: Scheduler | None = Field(None, description="default: the checkpoint's own")
    eta: float = Field(0.0, ge=0, le=1, description="share of fresh noise in each step of DDIMScheduler")
    clip_skip: int | None = Field(None, ge=1, le=3, description="last layers of the text encoder to leave out")
    vae_tiling: VaeTiling = False

    def output_size(self, given: Size | None, native: int) -> Size:  # noqa: ARG002
        """`width` × `height`, each by default the checkpoint's native side."""
        return Size(self.width or native, self.height or native)

    def check(self) -> Iterator[FieldError]:
        """`eta` goes with the one scheduler that knows it."""
        yield from pipelines.check_eta(self.scheduler, self.eta)

    def load(self, checkpoint: pipelines.Files, device: str) -> Any:
        """A `StableDiffusionPipeline` without safety checker."""
        return pipelines.load(PIPELINE, checkpoint, device, **pipelines.UNCHECKED)

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """Latents [4, height/8, width/8] or images of `batch.size`, one per prompt."""
        pipelines.fresh_scheduler(pipe, self.scheduler, batch.generators)
        return pipelines.call(
            pipe,
            batch,
            report,
            self.num_inference_steps,
            tiling=self.vae_tiling,
            width=batch.size.width,
            height=batch.size.height,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
            clip_skip=self.clip_skip,
        )

    def script(self, given: str | None, emits: Medium, seed: int, checkpoint: str) -> list[str]:  # noqa: ARG002
        """A plain `StableDiffusionPipeline` program that starts from noise."""
        native = "pipe.unet.config.sample_size * pipe.vae_scale_factor"
        arguments = {
            "width": str(self.width or native),
            "height": str(self.height or native),
            "num_inference_steps": str(self.num_inference_steps),
            "guidance_scale": str(self.guidance_scale),
            "eta": str(self.eta),
            "clip_skip": str(self.clip_skip),
        }
        return pipelines.script(self, PIPELINE, checkpoint, emits, seed, arguments, pipelines.UNCHECKED)
