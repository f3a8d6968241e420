"""What do all stages have in common that are one call of a diffusers pipeline?

Their parameters, how they are loaded and called, and the plain program that does the same. A stage kind says which
pipeline it is for each family of checkpoints, which of its fields go into the call, and what only some families know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from farm import sampler
from farm.errors import FieldError
from farm.sampler import Scheduler, SchedulerOptions
from farm.stage import Batch, Medium, Named, Report, Size, Source, Stage, VaeTiling
from workers import adapters, calling, pipelines, tiles, weighting
from workers.program import Program, script
from workers.weighting import Weighting

SDXL = ("sdxl", "sdxl-refiner")
Timesteps = Annotated[
    list[Annotated[int, Field(ge=0, le=999)]] | None,
    Field(min_length=1, max_length=150, description="each timestep by itself, falling; replaces num_inference_steps"),
]
GuidanceRescale = Annotated[
    float, Field(ge=0, le=1, description="tames what strong guidance overexposes, arXiv:2305.08891, §3.4")
]

Prepared = tuple[dict[str, Any], dict[str, Any]]


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
        return self.called(pipe, batch, report, **({"image": calling.stacked(batch.given)} if self.takes else {}))

    def called(self, pipe: Any, batch: Batch, report: Report, **inputs: Any) -> list[Any]:
        """What one call of `pipe` gives, which is handed `inputs`."""
        family = pipe.own.files.family
        with pipelines.device_errors(calling.too_large(pipe, batch, self.vae_tiling)):
            beside, inputs = self.prepared(pipe, batch, inputs)
        pipe = pipelines.as_class(pipe, self.class_of(family), **beside)
        name, options = self._scheduler()
        calling.fresh_scheduler(pipe, name, options, batch.generators)
        arguments = self.arguments(family, batch.size)
        return calling.call(pipe, batch, report, self.steps, tiling=self.vae_tiling, **inputs, **arguments)

    def decoded(self, pipe: Any, latents: Any, batch: Batch) -> Any:
        """The PIL RGB image of latents [channels, height / factor, width / factor] that a call of `run` gave."""
        vae = self.decoder(pipe, batch)
        return calling.decoded(pipe, vae, latents, frugal=batch.frugal, tiling=self.vae_tiling)

    def decoder(self, pipe: Any, batch: Batch) -> Any:  # noqa: ARG002
        """The VAE that decodes what the stage made."""
        return pipe.vae

    def class_of(self, family: str) -> str:
        """The pipeline's class for checkpoints of `family`."""
        return self.by_family[family]

    def prepared(self, pipe: Any, batch: Batch, inputs: dict[str, Any]) -> Prepared:  # noqa: ARG002
        """Models beside the checkpoint's, and what the call is handed, once all adapters are in place."""
        return {}, inputs

    def script(self, named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source) -> list[str]:
        """The lines of a plain program that leaves in `out` what `run` gives for one member."""
        return self.lines({"image": named["given"]} if self.takes else {}, named, emits, size, seed, source)

    def lines(
        self, inputs: Mapping[str, str], named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source
    ) -> list[str]:
        """The lines that load the pipeline and call it; `inputs` are arguments that are variables."""
        plain = Program(self.class_of(source.family), inputs)
        program = self.programmed(plain, named, source)
        arguments = {"num_inference_steps": self.steps, **self.arguments(source.family, size)}
        return script(self, program, source, emits, seed, arguments, self._scheduler())

    def programmed(self, program: Program, named: Mapping[str, str], source: Source) -> Program:  # noqa: ARG002
        """`program` with all that the stage adds to a checkpoint; `named` has the variables of its own images."""
        return program

    def _scheduler(self) -> tuple[str | None, dict[str, Any]]:
        """The scheduler's class, None for the checkpoint's own, and what it is told."""
        return None, {}


class Sampled(Diffusion):
    """A stage whose scheduler may be chosen."""

    scheduler: Scheduler | None = Field(
        None,
        description="class name, or A1111's sampler; default: the checkpoint's own",
        json_schema_extra={"x-also": list(sampler.SAMPLERS)},
    )
    scheduler_options: SchedulerOptions = Field(SchedulerOptions(), description="what the scheduler is told")
    eta: float = Field(0.0, ge=0, le=1, description="share of fresh noise in each step of DDIMScheduler")
    clip_skip: int | None = Field(None, ge=1, le=3, description="last layers of the text encoder to leave out")

    def check(self) -> Iterator[FieldError]:
        """Scheduler, options, timesteps and `eta` go together."""
        timesteps = getattr(self, "timesteps", None)
        yield from sampler.check(self.scheduler, self.scheduler_options, self.eta, self.steps, timesteps)

    def arguments(self, family: str, size: Size) -> dict[str, Any]:
        """With `eta` and `clip_skip`."""
        return {**super().arguments(family, size), "eta": self.eta, "clip_skip": self.clip_skip}

    def _scheduler(self) -> tuple[str | None, dict[str, Any]]:
        return self.scheduler, self.scheduler_options.told(self.scheduler, getattr(self, "timesteps", None))


class Lora(BaseModel):
    """A LoRA and how much of it. Source: Hu et al. 2021, arXiv:2106.09685."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Named("lora")] = Field(description="name in the catalog")
    weight: float = Field(1.0, ge=-4, le=4, description="how much of it is added; negative takes it away")


class FreeU(BaseModel):
    """How a UNet's own features and those that skip it are weighed. Source: Si et al. 2023, arXiv:2309.11497."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    # Source of the defaults: the paper's for Stable Diffusion 1.5.
    s1: float = Field(0.9, ge=0, le=2, description="skipped features of the first stage of the decoder")
    s2: float = Field(0.2, ge=0, le=2, description="skipped features of the second stage")
    b1: float = Field(1.5, ge=0, le=3, description="own features of the first stage")
    b2: float = Field(1.6, ge=0, le=3, description="own features of the second stage")


class Adapted(Sampled):
    """A stage whose checkpoint may be adapted."""

    loras: list[Lora] = Field([], max_length=8, description="LoRAs with their weights")
    embeddings: Annotated[list[str], Named("textual_inversion")] = Field(
        [], max_length=8, description="textual inversions; each gives its word a meaning, arXiv:2208.01618"
    )

    freeu: FreeU | None = Field(None, description="weighs the UNet's features anew; {} takes the paper's numbers")
    vae: Annotated[str | None, Named("vae")] = Field(
        None, description="decodes and encodes in place of the checkpoint's own VAE; of the same latent space"
    )
    weighting: Weighting = Field(
        "none", description="syntax of weights in prompts: none takes them as they are, compel, or a1111's (word:1.3)"
    )

    def check(self) -> Iterator[FieldError]:
        """None is named twice, and weights and clip_skip exclude each other."""
        if self.weighting != "none" and self.clip_skip is not None:
            yield FieldError("clip_skip", "not together with weighting")
        for field, names in (("loras", [lora.name for lora in self.loras]), ("embeddings", self.embeddings)):
            if len({*names}) < len(names):
                yield FieldError(field, "each name once")
        yield from super().check()

    def prepared(self, pipe: Any, batch: Batch, inputs: dict[str, Any]) -> Prepared:
        """With LoRAs and embeddings attached, and the VAE."""
        adapters.set_loras(pipe, [(batch.adapters[lora.name], lora.weight) for lora in self.loras])
        adapters.set_embeddings(pipe, [batch.adapters[name] for name in self.embeddings])
        if self.weighting != "none":
            inputs |= weighting.embeds(pipe, self.weighting, batch.prompts, batch.negative_prompts)
        beside, inputs = super().prepared(pipe, batch, inputs)
        return beside | ({"vae": adapters.vae(pipe, batch.adapters[self.vae])} if self.vae else {}), inputs

    def decoder(self, pipe: Any, batch: Batch) -> Any:
        """With `vae`, that one."""
        return adapters.vae(pipe, batch.adapters[self.vae]) if self.vae else super().decoder(pipe, batch)

    def called(self, pipe: Any, batch: Batch, report: Report, **inputs: Any) -> list[Any]:
        """With FreeU, and one by one where companions would change a picture.

        diffusers knows only one reference for all members, and would mix several. Prompts with weights may be of any
        length, and a batch pads them to the longest; SDXL has zeros for no negative prompt, and a batch has them for
        all members or none.
        """
        count = len(batch.prompts)
        mixed = 0 < sum(map(bool, batch.negative_prompts)) < count and pipe.own.files.family.startswith("sdxl")
        if self.freeu is not None:
            pipe.unet.enable_freeu(**self.freeu.model_dump())
        try:
            references = getattr(self, "ip_adapters", [])
            if count == 1 or (self.weighting == "none" and not mixed and not references):
                return super().called(pipe, batch, report, **inputs)
            made = []
            for row in range(count):
                own = {name: value[row : row + 1] for name, value in inputs.items()}
                made += super().called(pipe, batch.alone(row), tiles.Row(report, row, count), **own)
            return made
        finally:
            if self.freeu is not None:
                pipe.unet.disable_freeu()

    def programmed(self, program: Program, named: Mapping[str, str], source: Source) -> Program:
        """With LoRAs and embeddings attached."""
        names, weights = [adapters.peft_name(each.name) for each in self.loras], [each.weight for each in self.loras]
        lines = [
            f"pipe.load_lora_weights({source.adapters[each.name]}, adapter_name={name!r})"
            for each, name in zip(self.loras, names, strict=True)
        ]
        if self.loras:
            lines.append(f"pipe.set_adapters({names}, {weights})")
        for name in self.embeddings:
            lines += adapters.embedding_lines(source.family, source.adapters[name])
        if self.freeu is not None:
            told = ", ".join(f"{name}={value}" for name, value in self.freeu.model_dump().items())
            lines.append(f"pipe.unet.enable_freeu({told})")
        before, loading = [*program.before], program.loading
        if self.vae:
            before.append("from diffusers import AutoencoderKL")
            loading += f", vae=AutoencoderKL.from_pretrained({source.adapters[self.vae]})"
        inputs, placed = dict(program.inputs), [*program.placed]
        if self.weighting != "none":
            texts = self.prompt or "", self.negative_prompt or ""
            placed += weighting.program(source.family, self.weighting, *texts, words=bool(self.embeddings))
            inputs["**texts"] = ""
        lines = [*program.adapted, *lines]
        program = replace(program, adapted=lines, placed=placed, inputs=inputs, before=before, loading=loading)
        return super().programmed(program, named, source)


class Redrawn(Adapted):
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
