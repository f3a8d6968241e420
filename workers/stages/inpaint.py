"""How is a part of a picture drawn anew, or a picture drawn beyond its edges?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import FieldError
from farm.stage import Batch, Medium, Picture, Report, Size, Source, Upload
from workers import tiles
from workers.diffusion import SDXL, GuidanceRescale, Redrawn, Timesteps
from workers.guidance import Guided

Edge = Annotated[int, Field(ge=0, le=2048, multiple_of=8)]


class Border(BaseModel):
    """Pixels that are drawn beyond each edge."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    left: Edge = 0
    top: Edge = 0
    right: Edge = 0
    bottom: Edge = 0

    def __bool__(self) -> bool:
        return any((self.left, self.top, self.right, self.bottom))


class Inpaint(Guided, Redrawn):
    """Draw the masked part of an image anew; what is not masked keeps every pixel.

    Source: Latent Diffusion, Rombach et al. 2022, arXiv:2112.10752, §4.5 (checkpoints with 9 channels: noise, mask and
    the rest of the picture); RePaint, Lugmayr et al. 2022, arXiv:2201.09865 (any text-to-image checkpoint).
    """

    kind: Literal["inpaint"] = "inpaint"
    takes: ClassVar[frozenset[Medium]] = frozenset({Medium.IMAGE})
    gives: ClassVar[frozenset[Medium]] = frozenset({Medium.IMAGE})
    by_family: ClassVar = {
        "sd": "StableDiffusionInpaintPipeline",
        "sd2": "StableDiffusionInpaintPipeline",
        "sdxl": "StableDiffusionXLInpaintPipeline",
    }
    uncontrolled: ClassVar = {"timesteps": ("sd", "sd2", "sdxl")}
    controlled: ClassVar = {
        "sd": "StableDiffusionControlNetInpaintPipeline",
        "sd2": "StableDiffusionControlNetInpaintPipeline",
        "sdxl": "StableDiffusionXLControlNetInpaintPipeline",
    }
    only: ClassVar = {"guidance_rescale": SDXL}

    mask: Annotated[Picture | None, Upload(shows="white")] = Field(
        None, description="an image, white where it is drawn anew, black where it stays"
    )
    border: Border = Field(Border(), description="pixels to draw beyond the edges: left, top, right, bottom")
    blur_factor: float = Field(0.0, ge=0, le=256, description="softens the mask's edge, pixels")
    padding_mask_crop: int | None = Field(
        None, ge=0, le=1024, description="draw only the masked region, enlarged, with so many pixels around it"
    )
    strength: float = Field(
        1.0, gt=0, le=1, description="share of the schedule that is redone; 1 ignores what was there"
    )
    timesteps: Timesteps = None
    guidance_rescale: GuidanceRescale = 0.0

    def check(self) -> Iterator[FieldError]:
        """Something is drawn."""
        if self.mask is None and not self.border:
            yield FieldError("mask", "give a mask, or a border to draw beyond the edges")
        if self.padding_mask_crop is not None and self.controls:
            yield FieldError("padding_mask_crop", "not together with controls, which do not know of the crop")
        yield from super().check()

    def output_size(self, given: Size | None, native: int) -> Size:
        """The given size, and the border."""
        width, height = super().output_size(given, native)
        edges = self.border
        return Size(width + edges.left + edges.right, height + edges.top + edges.bottom)

    def given_size(self, size: Size) -> Size:
        """The size without the border."""
        edges = self.border
        return Size(size.width - edges.left - edges.right, size.height - edges.top - edges.bottom)

    def arguments(self, family: str, size: Size) -> dict[str, Any]:
        """With the size, which nothing else says."""
        return {
            "width": size.width,
            "height": size.height,
            **super().arguments(family, size),
            **self.set_of("timesteps", "guidance_rescale", "padding_mask_crop"),
        }

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """Images of `batch.size`, one per input."""
        drawn = [self._drawn(image, own.get("mask")) for image, own in zip(batch.given, batch.uploads, strict=True)]
        if self.padding_mask_crop is None:
            images, masks = ([pair[side] for pair in drawn] for side in (0, 1))
            made = self.called(pipe, batch, report, image=images, mask_image=masks)
            overlay = pipe.image_processor.apply_overlay
            return [overlay(mask, image, out) for (image, mask), out in zip(drawn, made, strict=True)]
        # The pipeline crops one picture at a time, and lays what it drew over the rest itself.
        made = []
        for row, (image, mask) in enumerate(drawn):
            part = tiles.Row(report, row, len(drawn))
            made += self.called(pipe, batch.alone(row), part, image=image, mask_image=mask, as_pil=True)
        return made

    def _drawn(self, image: Any, mask: Any) -> tuple[Any, Any]:
        """The picture [width, height] with its border, its outermost pixels repeated, and the mask of both."""
        import numpy as np
        from PIL import Image, ImageFilter

        edges = self.border
        mask = Image.new("L", image.size, 0) if mask is None else mask.convert("L")
        rows, columns = (edges.top, edges.bottom), (edges.left, edges.right)
        image = Image.fromarray(np.pad(np.asarray(image), (rows, columns, (0, 0)), mode="edge"))
        mask = Image.fromarray(np.pad(np.asarray(mask), (rows, columns), constant_values=255))
        return image, mask.filter(ImageFilter.GaussianBlur(self.blur_factor)) if self.blur_factor else mask

    def script(self, named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source) -> list[str]:
        """A plain program that draws the masked part of the variable `given` anew."""
        edges = self.border
        rows, columns = (edges.top, edges.bottom), (edges.left, edges.right)
        lines = [
            f"image = {named['given']}",
            f'mask = {named["mask"]}.convert("L")' if "mask" in named else 'mask = Image.new("L", image.size, 0)',
        ]
        if edges:
            lines += [
                "import numpy as np",
                f'image = Image.fromarray(np.pad(np.asarray(image), ({rows}, {columns}, (0, 0)), mode="edge"))',
                f"mask = Image.fromarray(np.pad(np.asarray(mask), ({rows}, {columns}), constant_values=255))",
            ]
        if self.blur_factor:
            lines += [
                "from PIL import ImageFilter",
                f"mask = mask.filter(ImageFilter.GaussianBlur({self.blur_factor}))",
            ]
        lines += self.lines({"image": "image", "mask_image": "mask"}, named, emits, size, seed, source)
        if self.padding_mask_crop is None:
            lines.append("out = pipe.image_processor.apply_overlay(mask, image, out)")
        return lines
