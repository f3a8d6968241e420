"""How do pictures guide a picture: references, and conditions that ControlNets follow?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import FieldError
from farm.stage import Batch, Medium, Named, Picture, Source, Upload
from workers import adapters
from workers.diffusion import Adapted, Prepared
from workers.program import Program


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
    uncontrolled: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    """Fields that the pipelines with ControlNets of these families do not know."""
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
        for name, families in self.uncontrolled.items() if self.controls else ():
            if family in families and getattr(self, name) != type(self).model_fields[name].default:
                yield FieldError(name, "not together with controls")
        yield from super().fits(family)

    def class_of(self, family: str) -> str:
        """The pipeline's class for checkpoints of `family`."""
        return self.controlled[family] if self.controls else super().class_of(family)

    def prepared(self, pipe: Any, batch: Batch, inputs: dict[str, Any]) -> Prepared:
        """With references and conditions."""
        beside, inputs = super().prepared(pipe, batch, inputs)
        wanted = [(batch.adapters[each.name], each.scale) for each in self.ip_adapters]
        adapters.set_ip_adapters(pipe, wanted)
        if self.ip_adapters:
            rows = [[own[f"ip_adapters.{row}.image"] for own in batch.uploads] for row in range(len(wanted))]
            # diffusers' ControlNet pipelines that take an image ask only for the scale.
            asked = pipe.unet.config.time_cond_proj_dim is None or bool(self.controls and self.takes)
            guided = self.guidance_scale > 1 and asked
            inputs = {**inputs, "ip_adapter_image_embeds": adapters.image_embeds(pipe, rows, guided)}
        if not self.controls:
            return beside, inputs
        files = [batch.adapters[control.name] for control in self.controls]
        conditions = [self._condition(row, control, batch, inputs) for row, control in enumerate(self.controls)]
        alone = len(conditions) == 1
        inputs = {**inputs, self.control_argument: conditions[0] if alone else conditions, **self._scales()}
        nets = adapters.controls(pipe, files)
        return {**beside, "controlnet": nets[0] if alone else nets}, inputs

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
        if self.ip_adapters:
            # each as the folder, the file in it, and the folder of the encoder
            told = [source.adapters[each.name].split(" | ") for each in self.ip_adapters]
            folders, files = (f"[{', '.join(each[part] for each in told)}]" for part in (0, 1))
            lines.append(
                f"pipe.load_ip_adapter({folders}, subfolder={['' for _ in told]}, weight_name={files}, "
                f"image_encoder_folder={told[0][2]}, local_files_only=True)"
            )
            lines.append(f"pipe.set_ip_adapter_scale({[each.scale for each in self.ip_adapters]})")
            images = [named[f"ip_adapters.{row}.image"] for row in range(len(self.ip_adapters))]
            inputs["ip_adapter_image"] = f"[{', '.join(images)}]"
        program = replace(program, adapted=[*program.adapted, *lines], inputs=inputs)
        if not self.controls:
            return program
        nets = [f"ControlNetModel.from_pretrained({source.adapters[each.name]})" for each in self.controls]
        before, conditions = [*program.before, "from diffusers import ControlNetModel"], []
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
        loading = f"{program.loading}, controlnet={nets[0] if len(nets) == 1 else '[' + ', '.join(nets) + ']'}"
        return replace(program, before=before, loading=loading, inputs=inputs)


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
