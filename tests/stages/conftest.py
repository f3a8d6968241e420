"""The tiny family, built once and loaded once per checkpoint, and one call of a stage as a worker makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from farm.catalog import Catalog
from farm.program import adapter_source
from farm.stage import Batch, Medium, Size, Source, Stage
from workers import calling, pipelines
from workers.adapters import files_of
from workers.diffusion import Lora
from workers.guidance import Control, IPAdapter
from workers.stages.depth2img import Depth2Img
from workers.stages.img2img import Img2Img
from workers.stages.inpaint import Border, Inpaint
from workers.stages.text2img import Text2Img
from workers.stages.upscale import Upscale
from workers.stages.upscale_latent import UpscaleLatent

SMALL = Size(64, 64)
DEFAULTS = {
    "text2img": "tiny", "img2img": "tiny", "inpaint": "tiny", "depth2img": "tiny-depth", "esrgan": "tiny-esrgan",
    "upscale_latent": "tiny-x2", "upscale": "tiny-x4",
}  # fmt: skip


class Stopped(Exception):
    """What the recorder raises where it is told to, as a cancel does."""


class Recorder:
    """A report that keeps what it is told and stops the stage at the mark `stop`."""

    def __init__(self, stop: Any = None) -> None:
        self.marks: list[Any] = []
        self.shown: list[tuple[int, Any]] = []
        self.stop = stop

    def phase(self, name: str) -> None:
        self._mark(name)

    def step(self, step: int, steps: int) -> None:
        self._mark((step, steps))

    def show(self, seen: Callable[[], Any], row: int = 0) -> None:
        self.shown.append((row, seen()))

    def _mark(self, mark: Any) -> None:
        self.marks.append(mark)
        if self.stop in (mark, mark[0]):
            raise Stopped


CATALOG: list[Catalog] = []
"""Where `call` finds adapters."""


@pytest.fixture(scope="session", autouse=True)
def catalog(family: Catalog) -> Catalog:
    """The farm's catalog with the tiny family built and recorded."""
    CATALOG[:] = [family]
    return family


@pytest.fixture(scope="session")
def pipe(catalog: Catalog) -> Callable[..., Any]:
    """Gives the loaded pipeline of a stage; the same one for the same kind and checkpoint."""
    loaded: dict[tuple[str, str], Any] = {}

    def get(stage: Stage) -> Any:
        key = stage.kind, stage.checkpoint or DEFAULTS[stage.kind]
        if key not in loaded:
            files = pipelines.files_of(catalog, catalog.checkpoints[key[1]])
            loaded[key] = stage.load(files, "cpu")
        return loaded[key]

    return get


def call(
    stage: Stage,
    pipe: Any,
    given: Sequence[Any] = (None,),
    *,
    emits: Medium = Medium.IMAGE,
    size: Size | None = None,
    seeds: Sequence[int] = (1,),
    prompts: Sequence[str] = ("a red castle",),
    negatives: Sequence[str] = ("a blue cat",),
    report: Recorder | None = None,
    frugal: bool = False,
    files: dict[str, Any] | None = None,
    uploads: Sequence[dict[str, Any]] | None = None,
) -> list[Any]:
    """The outputs of one call with one member per seed."""
    batch = Batch(
        emits=emits,
        size=size or stage.output_size(side_of(given[0]), 64),
        prompts=list(prompts) * (len(seeds) // len(prompts)),
        negative_prompts=list(negatives) * (len(seeds) // len(negatives)),
        given=list(given) * (len(seeds) // len(given)),
        generators=[calling.generator(seed) for seed in seeds],
        adapters=files
        or {name: files_of(CATALOG[0], CATALOG[0].adapters[name]) for name, _ in stage.adapters().values()},
        uploads=uploads or [own_images(stage, side_of(given[0]) or size or Size(64, 64))] * len(seeds),
        frugal=frugal,
    )
    return stage.run(pipe, batch, report or Recorder())


def own_images(stage: Stage, size: Size) -> dict[str, Image.Image]:
    """An image for each that the stage names: a white disc on black for a mask, coloured blocks for all else."""
    return {loc: some_mask(size) if loc == "mask" else some_image().resize(size) for loc in stage.uploads()}


def some_mask(size: Size) -> Image.Image:
    """A white disc on black, RGB."""
    mask = Image.new("RGB", size)
    ImageDraw.Draw(mask).ellipse((size.width // 4, size.height // 4, size.width // 2, size.height // 2), fill="white")
    return mask


def side_of(given: Any) -> Size | None:
    """The size of an input in pixels."""
    if given is None:
        return None
    return Size(given.shape[2] * 8, given.shape[1] * 8) if isinstance(given, torch.Tensor) else Size(*given.size)


def same(first: Any, second: Any) -> bool:
    """Whether two outputs are equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return bool(torch.equal(first, second))
    return bool(first.size == second.size and first.tobytes() == second.tobytes())


def some_latents(side: int = 8, seed: int = 5) -> torch.Tensor:
    """Latents as a stage would hand them on."""
    return torch.randn(4, side, side, generator=calling.generator(seed))


def some_image(side: int = 64, seed: int = 5) -> Image.Image:
    """A picture of coloured blocks."""
    pixels = torch.randint(0, 256, (8, 8, 3), generator=calling.generator(seed), dtype=torch.uint8).numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


EVERY: dict[str, tuple[Stage, Any, Medium]] = {
    "text2img to latents": (Text2Img(num_inference_steps=4), None, Medium.LATENTS),
    "text2img to image": (Text2Img(num_inference_steps=4), None, Medium.IMAGE),
    "text2img of SDXL to image": (Text2Img(checkpoint="tiny-xl", num_inference_steps=4), None, Medium.IMAGE),
    "img2img of SDXL": (Img2Img(checkpoint="tiny-xl", num_inference_steps=6), some_image(), Medium.LATENTS),
    "img2img of SDXL's refiner": (
        Img2Img(checkpoint="tiny-xl-refiner", num_inference_steps=6),
        some_latents(),
        Medium.IMAGE,
    ),
    "img2img latents to latents": (Img2Img(num_inference_steps=6), some_latents(), Medium.LATENTS),
    "img2img image to image": (Img2Img(num_inference_steps=6), some_image(), Medium.IMAGE),
    "inpaint": (Inpaint(mask="m", num_inference_steps=4), some_image(), Medium.IMAGE),
    "inpaint with 9 channels": (
        Inpaint(mask="m", checkpoint="tiny-inpaint", num_inference_steps=4),
        some_image(),
        Medium.IMAGE,
    ),
    "inpaint of SDXL": (Inpaint(mask="m", checkpoint="tiny-xl", num_inference_steps=4), some_image(), Medium.IMAGE),
    "inpaint beyond the edges": (
        Inpaint(border=Border(left=16, bottom=8), blur_factor=2.0, num_inference_steps=4),
        some_image(),
        Medium.IMAGE,
    ),
    "inpaint of a region": (
        Inpaint(mask="m", padding_mask_crop=8, num_inference_steps=4),
        some_image(),
        Medium.IMAGE,
    ),
    "depth2img": (Depth2Img(num_inference_steps=6), some_image(), Medium.LATENTS),
    "depth2img with a map": (Depth2Img(depth="d", num_inference_steps=6), some_image(), Medium.IMAGE),
    "text2img with adapters": (
        Text2Img(
            loras=[Lora(name="tiny-lora", weight=0.7), Lora(name="tiny-lora-2")],
            embeddings=["tiny-word"],
            ip_adapters=[IPAdapter(name="tiny-ip", image="r")],
            controls=[Control(name="tiny-canny", image="c")],
            num_inference_steps=4,
        ),
        None,
        Medium.IMAGE,
    ),
    "text2img with weights": (
        Text2Img(weighting="a1111", prompt="a (red:1.4) castle", num_inference_steps=4),
        None,
        Medium.IMAGE,
    ),
    "img2img with two controls": (
        Img2Img(
            controls=[Control(name="tiny-canny", process="canny"), Control(name="tiny-pose", image="c", scale=0.5)],
            num_inference_steps=6,
        ),
        some_image(),
        Medium.LATENTS,
    ),
    "inpaint with a control": (
        Inpaint(mask="m", controls=[Control(name="tiny-pose", process="inpaint")], num_inference_steps=4),
        some_image(),
        Medium.IMAGE,
    ),
    "text2img of SDXL with adapters": (
        Text2Img(
            checkpoint="tiny-xl",
            loras=[Lora(name="tiny-xl-lora")],
            controls=[Control(name="tiny-xl-canny", image="c")],
            num_inference_steps=4,
        ),
        None,
        Medium.LATENTS,
    ),
    "upscale_latent to latents": (UpscaleLatent(num_inference_steps=4), some_latents(), Medium.LATENTS),
    "upscale_latent to image": (UpscaleLatent(num_inference_steps=4), some_latents(), Medium.IMAGE),
    "upscale": (Upscale(num_inference_steps=4), some_image(32), Medium.IMAGE),
    "upscale in tiles": (Upscale(num_inference_steps=2, tile=64), some_image(80), Medium.IMAGE),
}
"""Every stage with every medium: a quick stage, an input, and what it emits."""


@pytest.fixture(params=list(EVERY.values()), ids=list(EVERY))
def every(request: pytest.FixtureRequest) -> tuple[Stage, Any, Medium]:
    found: tuple[Stage, Any, Medium] = request.param
    return found


def checkpoint_source(catalog: Catalog, name: str) -> Source:
    """How a plain program loads a checkpoint."""
    path: Path = catalog.path(catalog.checkpoints[name])
    arguments = f"{str(path)!r}, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True"
    adapters = {each: adapter_source(catalog, each, "float32") for each in catalog.adapters}
    return Source(catalog.checkpoints[name].family, arguments, adapters=adapters)
