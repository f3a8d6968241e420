"""How is a picture redrawn?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from farm.errors import FieldError
from farm.stage import Batch, Medium, Report, Scheduler, Stage, VaeTiling
from workers import pipelines

PIPELINE = "StableDiffusionImg2ImgPipeline"


class Img2Img(Stage):
    """Redraw the input toward `prompt`. Source: SDEdit, Meng et al. 2021, arXiv:2108.01073."""

    kind: Literal["img2img"] = "img2img"
    takes: ClassVar[frozenset[Medium]] = frozenset({Medium.LATENTS, Medium.IMAGE})

    strength: float = Field(0.6, gt=0, le=1, description="share of the schedule that is redone; 1 ignores the input")
    width: int | None = Field(
        None, ge=64, le=2048, multiple_of=8, description="pixels, first stage only; default: the input's"
    )
    height: int | None = Field(
        None, ge=64, le=2048, multiple_of=8, description="pixels, first stage only; default: the input's"
    )
    num_inference_steps: int = Field(
        25, ge=1, le=150, description="steps of the whole schedule, of which the share `strength` is run"
    )
    guidance_scale: float = Field(
        7.5, ge=0, le=30, description="how closely the prompt is followed; up to 1 the negative prompt has no effect"
    )
    scheduler: Scheduler | None = Field(None, description="default: the checkpoint's own")
    eta: float = Field(0.0, ge=0, le=1, description="share of fresh noise in each step of DDIMScheduler")
    clip_skip: int | None = Field(None, ge=1, le=3, description="last layers of the text encoder to leave out")
    vae_tiling: VaeTiling = False

    def check(self) -> Iterator[FieldError]:
        """At least one step is run, and `eta` goes with the one scheduler that knows it."""
        # Source: diffusers' `get_timesteps`, `min(int(num_inference_steps * strength), num_inference_steps)`.
        if int(self.num_inference_steps * self.strength) < 1:
            least = math.ceil(1000 / self.num_inference_steps) / 1000
            msg = f"{self.strength} of {self.num_inference_steps} steps is less than one step; at least {least}"
            yield FieldError("strength", msg, "no_steps")
        yield from pipelines.check_eta(self.scheduler, self.eta)

    def load(self, checkpoint: pipelines.Files, device: str) -> Any:
        """A `StableDiffusionImg2ImgPipeline` without safety checker."""
        return pipelines.load(PIPELINE, checkpoint, device, **pipelines.UNCHECKED)

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """Latents [4, height/8, width/8] or images of `batch.size`, one per input; given latents stay latents."""
        pipelines.fresh_scheduler(pipe, self.scheduler, batch.generators)
        return pipelines.call(
            pipe,
            batch,
            report,
            self.num_inference_steps,
            tiling=self.vae_tiling,
            image=pipelines.stacked(batch.given),
            strength=self.strength,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
            clip_skip=self.clip_skip,
        )

    def script(self, given: str | None, emits: Medium, seed: int, checkpoint: str) -> list[str]:
        """A plain `StableDiffusionImg2ImgPipeline` program that redraws the variable `given`."""
        arguments = {
            "image": str(given),
            "strength": str(self.strength),
            "num_inference_steps": str(self.num_inference_steps),
            "guidance_scale": str(self.guidance_scale),
            "eta": str(self.eta),
            "clip_skip": str(self.clip_skip),
        }
        return pipelines.script(self, PIPELINE, checkpoint, emits, seed, arguments, pipelines.UNCHECKED)
