"""What do all stages have in common that are one call of a diffusers pipeline?

Their parameters, how they are loaded and called, and the plain program that does the same. A stage kind says which
pipeline it is for each family of checkpoints, which of its fields go into the call, and what only some families know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from farm import sampler
from farm.errors import FieldError
from farm.sampler import Scheduler, SchedulerOptions
from farm.stage import Batch, Medium, Named, Picture, Report, Size, Source, Stage, Upload, VaeTiling
from workers import adapters, pipelines, weighting
from workers.pipelines import Program
from workers.weighting import Weighting

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

    def called(self, pipe: Any, batch: Batch, report: Report, **inputs: Any) -> list[Any]:
        """What one call of `pipe` gives, which is handed `inputs`."""
        pipe, inputs = self.prepared(pipe, batch, inputs)
        name, options = self._scheduler()
        pipelines.fresh_scheduler(pipe, name, options, batch.generators)
        arguments = self.arguments(pipe.family, batch.size)
        return pipelines.call(pipe, batch, report, self.steps, tiling=self.vae_tiling, **inputs, **arguments)

    def prepared(self, pipe: Any, batch: Batch, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """The pipeline to call, and what it is handed, once all that the stage adds to a checkpoint is in place."""
        return pipe, inputs

    def script(self, named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source) -> list[str]:
        """The lines of a plain program that leaves in `out` what `run` gives for one member."""
        return self.lines({"image": named["given"]} if self.takes else {}, named, emits, size, seed, source)

    def lines(
        self, inputs: Mapping[str, str], named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source
    ) -> list[str]:
        """The lines that load the pipeline and call it; `inputs` are arguments that are variables."""
        plain = Program(self.by_family[source.family], inputs)
        program = self.programmed(plain, named, source)
        arguments = {"num_inference_steps": self.steps, **self.arguments(source.family, size)}
        return pipelines.script(self, program, source, emits, seed, arguments, self._scheduler())

    def programmed(self, program: Program, named: Mapping[str, str], source: Source) -> Program:  # noqa: ARG002
        """`program` with all that the stage adds to a checkpoint; `named` has the variables of its own images."""
        return program

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


class Lora(BaseModel):
    """A LoRA and how much of it. Source: Hu et al. 2021, arXiv:2106.09685."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Named("lora")] = Field(description="name in the catalog")
    weight: float = Field(1.0, ge=-4, le=4, description="how much of it is added; negative takes it away")


class Adapted(Sampled):
    """A stage whose checkpoint may be adapted."""

    loras: list[Lora] = Field([], max_length=8, description="LoRAs with their weights")
    embeddings: Annotated[list[str], Named("textual_inversion")] = Field(
        [], max_length=8, description="textual inversions; each gives its word a meaning, arXiv:2208.01618"
    )

    weighting: Weighting = Field(
        "none", description="syntax of weights in prompts: none takes them as they are, compel, or a1111's (word:1.3)"
    )

    def check(self) -> Iterator[FieldError]:
        """None is named twice."""
        if self.weighting != "none" and self.clip_skip is not None:
            yield FieldError("clip_skip", "not together with weighting")
        for field, names in (("loras", [lora.name for lora in self.loras]), ("embeddings", self.embeddings)):
            if len({*names}) < len(names):
                yield FieldError(field, "each name once")
        yield from super().check()

    def prepared(self, pipe: Any, batch: Batch, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """With LoRAs and embeddings attached."""
        adapters.set_loras(pipe, [(batch.adapters[lora.name], lora.weight) for lora in self.loras])
        adapters.set_embeddings(pipe, [batch.adapters[name] for name in self.embeddings])
        if self.weighting != "none":
            inputs |= weighting.embeds(pipe, self.weighting, batch.prompts, batch.negative_prompts)
        return super().prepared(pipe, batch, inputs)

    def called(self, pipe: Any, batch: Batch, report: Report, **inputs: Any) -> list[Any]:
        """As ever, but for prompts with weights: they may be of any length, and a batch pads them to the longest."""
        if self.weighting == "none" or len(batch.prompts) == 1:
            return super().called(pipe, batch, report, **inputs)
        made = []
        for row in range(len(batch.prompts)):
            own = {name: value[row : row + 1] for name, value in inputs.items()}
            made += super().called(pipe, batch.alone(row), report, **own)
        return made

    def programmed(self, program: Program, named: Mapping[str, str], source: Source) -> Program:
        """With LoRAs and embeddings attached."""
        lines = [
            f"pipe.load_lora_weights({source.adapters[each.name]}, adapter_name={each.name!r})" for each in self.loras
        ]
        if self.loras:
            names, weights = [each.name for each in self.loras], [each.weight for each in self.loras]
            lines.append(f"pipe.set_adapters({names}, {weights})")
        lines += [f"pipe.load_textual_inversion({source.adapters[name]})" for name in self.embeddings]
        inputs = dict(program.inputs)
        if self.weighting != "none":
            lines += weighting.program(source.family, self.weighting, self.prompt or "", self.negative_prompt or "")
            inputs["**texts"] = ""
        program = replace(program, adapted=[*program.adapted, *lines], inputs=inputs)
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


class IPAdapter(BaseModel):
    """A picture that serves as prompt. Source: Ye et al. 2023, arXiv:2308.06721."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Named("ip_adapter")] = Field(description="name in the catalog")
    image: Annotated[Picture, Upload(fitted=None)] = Field(description="the reference")
    scale: float = Field(0.6, ge=0, le=2, description="weight of the reference beside the prompt")


class Control(BaseModel):
    """A ControlNet and the image that it follows. Source: Zhang et al. 2023, arXiv:2302.05543."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Named("controlnet")] = Field(description="name in the catalog")
    image: Annotated[Picture | None, Upload(fitted="emitted")] = Field(
        None, description="the condition: edges, depth, a pose; default: the stage's input image"
    )
    process: Literal["none", "canny", "inpaint"] = Field(
        "none", description="what is made of the image first: edges, or the input with its masked part cut out"
    )
    low_threshold: int = Field(100, ge=0, le=1000, description="of canny: weaker edges are dropped")
    high_threshold: int = Field(200, ge=0, le=1000, description="of canny: stronger edges are kept in any case")
    scale: float = Field(1.0, ge=0, le=2, description="how closely it is followed")
    start: float = Field(0.0, ge=0, lt=1, description="share of the steps before it begins")
    end: float = Field(1.0, gt=0, le=1, description="share of the steps after which it ends")


class Guided(Adapted):
    """A stage that pictures may guide: references and conditions."""

    controlled: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The pipeline's class with ControlNets, for each family of checkpoints."""
    control_argument: ClassVar[str] = "control_image"

    ip_adapters: list[IPAdapter] = Field([], max_length=4, description="reference pictures")
    controls: list[Control] = Field([], max_length=4, description="ControlNets with the images that they follow")

    def accepts(self) -> frozenset[Medium]:
        """Only an image where a ControlNet follows the input."""
        follows = any(control.image is None for control in self.controls)
        return self.takes & {Medium.IMAGE} if follows else self.takes

    def check(self) -> Iterator[FieldError]:
        """Each ControlNet has something to follow, for at least a part of the steps."""
        for index, control in enumerate(self.controls):
            where = f"controls.{index}"
            if control.image is None and not self.takes:
                yield FieldError(f"{where}.image", f"give one: {self.kind} has no input that it could follow")
            if control.start >= control.end:
                yield FieldError(f"{where}.end", f"more than start, {control.start}")
            if control.low_threshold > control.high_threshold:
                yield FieldError(f"{where}.high_threshold", f"at least low_threshold, {control.low_threshold}")
            if control.process == "inpaint" and getattr(self, "mask", None) is None:
                yield FieldError(f"{where}.process", "only an inpaint stage with a mask has something to cut out")
        yield from super().check()

    def fits(self, family: str) -> Iterator[FieldError]:
        """ControlNets only where there is a pipeline for them."""
        if self.controls and family not in self.controlled:
            yield FieldError("controls", f"only checkpoints of the family {' or '.join(self.controlled)}, not {family}")
        yield from super().fits(family)

    def prepared(self, pipe: Any, batch: Batch, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """With references and conditions."""
        pipe, inputs = super().prepared(pipe, batch, inputs)
        wanted = [(batch.adapters[each.name], each.scale) for each in self.ip_adapters]
        adapters.set_ip_adapters(pipe, wanted)
        if self.ip_adapters:
            rows = [[own[f"ip_adapters.{row}.image"] for own in batch.uploads] for row in range(len(wanted))]
            guided = self.guidance_scale > 1 and pipe.unet.config.time_cond_proj_dim is None
            inputs = {**inputs, "ip_adapter_image_embeds": adapters.image_embeds(pipe, rows, guided)}
        if not self.controls:
            return pipe, inputs
        files = [batch.adapters[control.name] for control in self.controls]
        conditions = [self._condition(row, control, batch, inputs) for row, control in enumerate(self.controls)]
        alone = len(conditions) == 1
        inputs = {**inputs, self.control_argument: conditions[0] if alone else conditions, **self._scales()}
        return adapters.controlled(pipe, self.controlled[pipe.family], files), inputs

    def _scales(self) -> dict[str, Any]:
        found = {
            "controlnet_conditioning_scale": [control.scale for control in self.controls],
            "control_guidance_start": [control.start for control in self.controls],
            "control_guidance_end": [control.end for control in self.controls],
        }
        return {name: values[0] if len(values) == 1 else values for name, values in found.items()}

    def _condition(self, row: int, control: Control, batch: Batch, inputs: Mapping[str, Any]) -> Any:
        """What a ControlNet follows: [batch, 3, height, width] in 0…1, with -1 where it is cut out."""
        import torch

        own = [given.get(f"controls.{row}.image") for given in batch.uploads] or [None] * len(batch.prompts)
        images = [image or given for image, given in zip(own, inputs.get("image", own), strict=True)]
        if control.process == "inpaint":
            made = [masked(image, mask) for image, mask in zip(images, inputs["mask_image"], strict=True)]
        elif control.process == "canny":
            made = [canny(image, control.low_threshold, control.high_threshold) for image in images]
        else:
            made = [unit(image) for image in images]
        return torch.stack(made)

    def programmed(self, program: Program, named: Mapping[str, str], source: Source) -> Program:
        """With references and conditions."""
        program = super().programmed(program, named, source)
        lines, inputs = [], dict(program.inputs)
        for row, each in enumerate(self.ip_adapters):
            if row == 0:
                lines.append(f"pipe.load_ip_adapter({source.adapters[each.name]})")
        if self.ip_adapters:
            lines.append(f"pipe.set_ip_adapter_scale({[each.scale for each in self.ip_adapters]})")
            images = [named[f"ip_adapters.{row}.image"] for row in range(len(self.ip_adapters))]
            inputs["ip_adapter_image"] = f"[{', '.join(images)}]"
        program = replace(program, adapted=[*program.adapted, *lines], inputs=inputs)
        if not self.controls:
            return program
        nets = [f"ControlNetModel.from_pretrained({source.adapters[each.name]})" for each in self.controls]
        before, conditions = ["from diffusers import ControlNetModel"], []
        for row, control in enumerate(self.controls):
            image = named.get(f"controls.{row}.image", program.inputs.get("image", ""))
            if control.process != "none":
                before += CANNY if control.process == "canny" else MASKED
            conditions.append(
                {
                    "none": image,
                    "canny": f"canny({image}, {control.low_threshold}, {control.high_threshold})",
                    "inpaint": f"masked({image}, mask)",
                }[control.process]
            )
        inputs[self.control_argument] = conditions[0] if len(conditions) == 1 else f"[{', '.join(conditions)}]"
        inputs |= {name: repr(value) for name, value in self._scales().items()}
        loading = f", controlnet={nets[0] if len(nets) == 1 else '[' + ', '.join(nets) + ']'}"
        return replace(
            program, class_name=self.controlled[source.family], before=before, loading=loading, inputs=inputs
        )


def unit(image: Any) -> Any:
    """A PIL RGB image as a tensor [3, height, width] in 0…1."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32) / 255.0).permute(2, 0, 1)


def canny(image: Any, low: int, high: int) -> Any:
    """The edges of an image, white on black, as a tensor [3, height, width]. Source: Canny 1986, by OpenCV."""
    import cv2
    import numpy as np
    from PIL import Image

    edges = cv2.Canny(np.asarray(image.convert("RGB")), low, high)
    return unit(Image.fromarray(np.stack([edges] * 3, axis=2)))


def masked(image: Any, mask: Any) -> Any:
    """An image as a tensor [3, height, width] with -1 where the mask is white.

    Source: `make_inpaint_condition` of the model card of lllyasviel/control_v11p_sd15_inpaint.
    """
    import numpy as np
    import torch

    found = unit(image)
    found[:, torch.from_numpy(np.asarray(mask.convert("L")).astype(np.float32) / 255.0 > 0.5)] = -1.0
    return found


CANNY = [
    "import cv2",
    "import numpy as np",
    "def canny(image, low, high):",
    "    return Image.fromarray(np.stack([cv2.Canny(np.asarray(image), low, high)] * 3, axis=2))",
]
MASKED = [
    "import numpy as np",
    "def masked(image, mask):",
    "    found = np.asarray(image).astype(np.float32) / 255.0",
    "    found[np.asarray(mask).astype(np.float32) / 255.0 > 0.5] = -1.0",
    "    return torch.from_numpy(found.transpose(2, 0, 1)[None])",
]
