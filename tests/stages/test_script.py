"""Does the plain diffusers program of a chain make the farm's very pixels?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from farm.catalog import Catalog
from farm.image import to_png
from farm.stage import Medium, Size, Stage
from tests.stages.conftest import DEFAULTS, call, checkpoint_source, own_images, same, side_of
from workers import codec
from workers.diffusion import FreeU, Lora
from workers.guidance import Control, IPAdapter
from workers.stages.depth2img import Depth2Img
from workers.stages.img2img import Img2Img
from workers.stages.inpaint import Border, Inpaint
from workers.stages.text2img import Text2Img
from workers.stages.upscale import Upscale
from workers.stages.upscale_latent import UpscaleLatent

WORDS: dict[str, Any] = {"prompt": 'a "red" castle\nat the sea', "negative_prompt": "it's a blue cat"}
CHAINS: list[list[Stage]] = [
    # the defaults, all four stages
    [Text2Img(**WORDS), Img2Img(**WORDS), UpscaleLatent(**WORDS), Upscale(**WORDS)],
    # an image between stages of different spaces, every field set, schedulers that need to be told more
    [
        Text2Img(
            **WORDS,
            checkpoint="tiny-other",
            width=96,
            num_inference_steps=5,
            guidance_scale=3.5,
            eta=0.5,
            clip_skip=2,
        ),
        Img2Img(**WORDS, num_inference_steps=5, strength=0.7, scheduler="DPMSolverSDEScheduler", clip_skip=1),
        Upscale(**WORDS, num_inference_steps=2, noise_level=30, scheduler="PNDMScheduler"),
    ],
    # SDXL's base hands noisy latents to its refiner, and its image to the base without a negative prompt
    [
        Text2Img(**WORDS, checkpoint="tiny-xl", num_inference_steps=10, denoising_end=0.7, guidance_rescale=0.5),
        Img2Img(
            **WORDS, checkpoint="tiny-xl-refiner", num_inference_steps=10, denoising_start=0.7, aesthetic_score=7.0
        ),
        Img2Img(
            prompt="a castle", checkpoint="tiny-xl", scheduler="EulerDiscreteScheduler", timesteps=[999, 600, 300, 100]
        ),
    ],
    # text2img → inpaint in three ways → depth2img, estimated and given
    [
        Text2Img(**WORDS),
        Inpaint(**WORDS, mask="m", blur_factor=3.0, num_inference_steps=5),
        Inpaint(**WORDS, mask="m", checkpoint="tiny-inpaint", border=Border(right=8, top=16), num_inference_steps=5),
        Inpaint(**WORDS, mask="m", padding_mask_crop=4, strength=0.8, num_inference_steps=5),
        Depth2Img(**WORDS, num_inference_steps=5),
        Depth2Img(**WORDS, depth="d", num_inference_steps=5, strength=0.9, scheduler="EulerDiscreteScheduler"),
    ],
    # all that goes on top of a checkpoint
    [
        Text2Img(
            **WORDS,
            loras=[Lora(name="tiny-lora", weight=0.7), Lora(name="tiny-lora-2")],
            embeddings=["tiny-word"],
            ip_adapters=[IPAdapter(name="tiny-ip", image="r")],
            controls=[Control(name="tiny-canny", image="c")],
            num_inference_steps=5,
        ),
        Img2Img(
            **WORDS,
            num_inference_steps=5,
            controls=[
                Control(name="tiny-canny", process="canny", low_threshold=50),
                Control(name="tiny-pose", image="c", scale=0.5, start=0.2, end=0.9),
            ],
        ),
        Inpaint(
            **WORDS,
            mask="m",
            controls=[Control(name="tiny-pose", process="inpaint")],
            num_inference_steps=5,
        ),
        Depth2Img(**WORDS, loras=[Lora(name="tiny-lora-3")], vae="tiny-vae", num_inference_steps=5),
    ],
    [
        Text2Img(
            prompt="a <gleam> castle",
            checkpoint="tiny-xl",
            freeu=FreeU(b1=1.3),
            loras=[Lora(name="tiny-xl-lora", weight=-0.5)],
            embeddings=["tiny-xl-word"],
            controls=[Control(name="tiny-xl-canny", image="c")],
            num_inference_steps=5,
        ),
    ],
    # weights, in both syntaxes, with more words than the encoder takes
    [
        Text2Img(prompt="a (red:1.4) castle, [dark] " + "house " * 100, weighting="a1111", num_inference_steps=5),
        Img2Img(
            prompt="a (red castle)1.3 and sea++",
            negative_prompt="a <gleam>",
            weighting="compel",
            embeddings=["tiny-word"],
            num_inference_steps=5,
        ),
        Img2Img(prompt="(bright:0.5) sky", checkpoint="tiny-xl", weighting="a1111", num_inference_steps=5),
    ],
    [Text2Img(**WORDS, width=96), Upscale(**WORDS, num_inference_steps=2, tile=64)],
    # SD 2.x, and its latents to SD 1.x
    [
        Text2Img(**WORDS, checkpoint="tiny-sd2", num_inference_steps=5),
        Img2Img(**WORDS, num_inference_steps=5),
        Inpaint(**WORDS, checkpoint="tiny-sd2", mask="m", num_inference_steps=5),
    ],
    # a sampler by A1111's name
    [Text2Img.model_validate({**WORDS, "sampler_name": "DPM++ 2M SDE Karras", "steps": 5})],
]


def _passes(chain: list[Stage], index: int) -> Medium:
    """What stage `index` emits: latents where the next one takes them and works in the same space."""
    if index + 1 == len(chain) or Medium.LATENTS not in chain[index + 1].accepts():
        return Medium.IMAGE
    other = "tiny-other" in (chain[index].checkpoint, chain[index + 1].checkpoint)
    return Medium.IMAGE if other else Medium.LATENTS


def _farm(chain: list[Stage], pipe: Callable[..., Any]) -> Image.Image:
    """The chain's image, with every hand-off through bytes."""
    given: Any = None
    for index, stage in enumerate(chain):
        emits, size = _passes(chain, index), stage.output_size(side_of(given), 64)
        out = call(
            stage,
            pipe(stage),
            [given],
            emits=emits,
            seeds=[index + 7],
            prompts=[stage.prompt or ""],
            negatives=[stage.negative_prompt or ""],
        )[0]
        if emits is Medium.LATENTS:
            shape = (4, size.height // 8, size.width // 8)
            given = codec.decode_latents(codec.encode_latents(out, "tiny", 4, 8, "float32"), "tiny", shape, "float32")
        else:
            given = codec.decode_image(to_png(out), size)
    assert isinstance(given, Image.Image)
    return given


def test_program_makes_the_same_pixels(catalog: Catalog, pipe: Callable[..., Any], tmp_path: Path) -> None:
    # Given the program of two chains
    lines = ["import torch", "from PIL import Image"]
    for number, chain in enumerate(CHAINS):
        given, size = None, Size(0, 0)
        for index, stage in enumerate(chain):
            source = checkpoint_source(catalog, stage.checkpoint or DEFAULTS[stage.kind])
            before = size if index else stage.output_size(None, 64)
            size = stage.output_size(size if index else None, 64)
            named = {"given": given} if given else {}
            for loc, image in own_images(stage, before).items():
                # the control's own image is named by its place
                named[loc] = f"{loc.replace('.', '_')}_{number}_{index}"
                image.save(tmp_path / f"{named[loc]}.png")
                lines.append(f'{named[loc]} = Image.open("{named[loc]}.png")')
            lines += stage.script(named, _passes(chain, index), size, index + 7, source)
            lines.append(f"stage_{index} = out")
            given = f"stage_{index}"
        lines.append(f'out.save("{number}.png")')
    (tmp_path / "program.py").write_text("\n".join(lines))
    # When it runs by itself, knowing nothing of the farm
    ended = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert not [line for line in lines if "farm" in line or "workers" in line]
    # Then its pictures are those of the stages, bit for bit (on one device type and with as many threads)
    torch.set_num_threads(1)
    for number, chain in enumerate(CHAINS):
        with Image.open(tmp_path / f"{number}.png") as made:
            assert same(made, _farm(chain, pipe))
