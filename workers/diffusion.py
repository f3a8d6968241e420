"""What do all stages have in common that are one call of a diffusers pipeline?

Their parameters, how they are loaded and called, and the plain program that does the same. A stage kind says which
pipeline it is for each family of checkpoints, which of its fields go into the call, and what only some families know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field

from farm import sampler
from farm.errors import FieldError
from farm.sampler import Scheduler, SchedulerOptions
from farm.stage import Batch, Medium, Report, Size, Source, Stage, VaeTiling
from workers import pipelines

SDXL = ("sdxl", "sdxl-refiner")
Timesteps = Annotated[
    list[Annotated[int, Field(ge=0, le=999)]] | None,
    Field(min_length=1, max_length=150, description="each timestep by itself, falling; replaces num_inference_steps"),
]
GuidanceRescale = Annotated[
    float, Field(ge=0, le=1, description="tames what strong guidance overexposes, arXiv:2305.08891, §3.4")
]


class Diffusion(Stage):
    """A stage that is one call of a diffusers pipeline."""

    by_family: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The pipeline's class for each family of checkpoints."""
    only: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    """Fields that only some families know."""

    num_inference_steps: int = Field(25, ge=1, le=150, description="denoising steps")
    guidance_scale: float = Field(
        7.5, ge=0, le=30, description="how closely the prompt is followed; up to 1 the negative prompt has no effect"
    )
    vae_tiling: VaeTiling = False

    def fits(self, family: str) -> Iterator[FieldError]:
        """Fields that are set and that checkpoints of `family` do not know, or that there is no pipeline for it."""
        if family not in self.by_family:
            known = " or ".join(self.by_family)
            yield FieldError("checkpoint", f"of the family {family}; {self.kind} runs {known}", "wrong_checkpoint")
        for name, families in self.only.items():
            if family not in families and getattr(self, name) != type(self).model_fields[name].default:
                yield FieldError(name, f"only checkpoints of the family {' or '.join(families)} know it, not {family}")

    def set_of(self, *names: str) -> dict[str, Any]:
        """Those of the fields `names` that differ from their default, as arguments of the call."""
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in names if getattr(self, name) != fields[name].default}

    @property
    def steps(self) -> int:
        """How many steps the whole schedule has."""
        return len(getattr(self, "timesteps", None) or ()) or self.num_inference_steps

    def load(self, checkpoint: pipelines.Files, device: str) -> Any:
        """The pipeline of the checkpoint's family, without safety checker and watermark."""
        return pipelines.load(self.by_family[checkpoint.family], checkpoint, device)

    def arguments(self, family: str, size: Size) -> dict[str, Any]:  # noqa: ARG002
        """What the pipeline's call is told beside texts, inputs, steps and seeds."""
        return {"guidance_scale": self.guidance_scale}

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """Latents [channels, height / factor, width / factor] or images of `batch.size`, one per member."""
        return self.called(pipe, batch, report, **({"image": pipelines.stacked(batch.given)} if self.takes else {}))

    def called(self, pipe: Any, batch: Batch, report: Report, **images: Any) -> list[Any]:
        """What one call of `pipe` gives, which is handed `images`."""
        name, options = self._scheduler()
        pipelines.fresh_scheduler(pipe, name, options, batch.generators)
        arguments = self.arguments(pipe.family, batch.size)
        return pipelines.call(pipe, batch, report, self.steps, tiling=self.vae_tiling, **images, **arguments)

    def script(self, named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source) -> list[str]:
        """The lines of a plain program that leaves in `out` what `run` gives for one member."""
        return self.lines({"image": named["given"]} if self.takes else {}, emits, size, seed, source)

    def lines(self, named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source) -> list[str]:
        """The lines that load the pipeline and call it; `named` are arguments that are variables."""
        arguments = {"num_inference_steps": self.steps, **self.arguments(source.family, size)}
        return pipelines.script(
            self, self.by_family[source.family], source, emits, seed, named, arguments, self._scheduler()
        )

    def _scheduler(self) -> tuple[str | None, dict[str, Any]]:
        """The scheduler's class, None for the checkpoint's own, and what it is told."""
        return None, {}


class Sampled(Diffusion):
    """A stage whose scheduler may be chosen."""

    scheduler: Scheduler | None = Field(
        None, description="class name, or A1111's sampler; default: the checkpoint's own"
    )
    scheduler_options: SchedulerOptions = Field(SchedulerOptions(), description="what the scheduler is told")
    eta: float = Field(0.0, ge=0, le=1, description="share of fresh noise in each step of DDIMScheduler")
    clip_skip: int | None = Field(None, ge=1, le=3, description="last layers of the text encoder to leave out")

    def check(self) -> Iterator[FieldError]:
        """Scheduler, options, timesteps and `eta` go together."""
        yield from sampler.check(self.scheduler, self.scheduler_options, self.eta, getattr(self, "timesteps", None))

    def arguments(self, family: str, size: Size) -> dict[str, Any]:
        """With `eta` and `clip_skip`."""
        return {**super().arguments(family, size), "eta": self.eta, "clip_skip": self.clip_skip}

    def _scheduler(self) -> tuple[str | None, dict[str, Any]]:
        return self.scheduler, self.scheduler_options.given()


class Redrawn(Sampled):
    """A stage that runs a share of the schedule on what it is given."""

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

    def check(self) -> Iterator[FieldError]:
        """At least one step is run."""
        # Source: diffusers' `get_timesteps`, `min(int(num_inference_steps * strength), num_inference_steps)`.
        if getattr(self, "denoising_start", None) is None and int(self.steps * self.strength) < 1:
            least = math.ceil(1000 / self.steps) / 1000
            msg = f"{self.strength} of {self.steps} steps is less than one step; at least {least}"
            yield FieldError("strength", msg, "no_steps")
        yield from super().check()

    def arguments(self, family: str, size: Size) -> dict[str, Any]:
        """With `strength`."""
        return {"strength": self.strength, **super().arguments(family, size)}
