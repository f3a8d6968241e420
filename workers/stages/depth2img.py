"""How is a picture redrawn so that what is near stays near?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from farm.stage import Batch, Medium, Picture, Report, Size, Source, Upload
from workers.diffusion import Redrawn


class Depth2Img(Redrawn):
    """Redraw an image toward `prompt`, and keep its depth.

    Source: stable-diffusion-2-depth (Stability AI, 2022); the depth is estimated by DPT, Ranftl et al. 2021,
    arXiv:2103.13413, unless it is given.
    """

    kind: Literal["depth2img"] = "depth2img"
    takes: ClassVar[frozenset[Medium]] = frozenset({Medium.IMAGE})
    by_family: ClassVar = {"sd2-depth": "StableDiffusionDepth2ImgPipeline"}

    depth: Annotated[Picture | None, Upload(shows="depth")] = Field(
        None, description="a depth map, brighter is nearer; default: estimated from the input"
    )

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """Latents [4, height / 8, width / 8] or images of `batch.size`, one per input."""
        import numpy as np
        import torch

        images: dict[str, Any] = {"image": list(batch.given)}
        if self.depth is not None:
            maps = [np.asarray(own["depth"].convert("L")) for own in batch.uploads]
            images["depth_map"] = torch.from_numpy(np.stack(maps))
        return self.called(pipe, batch, report, **images)

    def script(self, named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source) -> list[str]:
        """A plain program that redraws the variable `given`."""
        if "depth" not in named:
            return self.lines({"image": named["given"]}, named, emits, size, seed, source)
        return [
            "import numpy as np",
            f'depth = torch.from_numpy(np.asarray({named["depth"]}.convert("L"))[None].copy())',
            *self.lines(
                {"image": named["given"], "depth_map": "depth"},
                named, emits, size, seed, source,
            ),
        ]  # fmt: skip
