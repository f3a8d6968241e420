"""What the demo family was trained for, measured on combinations that its training never saw.

The judge is `tests.demo.scorer`, which must itself be right on drawn scenes first. Bounds are for the shipped weights,
rendered as the catalog recommends; `-s` prints what is found, with 95 % Wilson intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForInpainting
from PIL import Image

from farm.catalog import Catalog
from farm.chain import parse_chain
from farm.settings import Settings
from farm.stage import Batch, Medium, Size
from tests.demo import scorer
from tests.demo.scorer import Scorer, as_tensor
from tests.stages.conftest import Recorder
from workers import calling, pipelines
from workers.demo import family
from workers.demo.scenes import COLOURS, SHAPES, Scene, Thing, draw, held_out
from workers.demo.sprites import OBJECTS, Sprites
from workers.stages.upscale import OVERLAP
from workers.tiles import spans

pytestmark = pytest.mark.timeout(1200)
"""Hundreds of pictures take minutes, and several times as many beside other work."""
FORTY = list(OBJECTS)[:40]
Render = Callable[..., list[Any]]
Arms = dict[str, tuple[float, float]]


def share(good: Sequence[bool], what: str) -> float:
    """The share of `good`, printed with its interval. Source: Wilson 1927, doi:10.1080/01621459.1927.10502953."""
    n, k, z = len(good), sum(good), 1.96
    middle, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    print(f"{what}: {k}/{n} = {k / n:.1%} [{middle - half:.1%}, {middle + half:.1%}]")
    return k / n


def singles(names: Sequence[str]) -> list[Scene]:
    """One object in the middle of a ground that training never showed it on."""
    scenes = [Scene((Thing(name),), (ground,)) for name in names for ground in COLOURS]
    return [scene for scene in scenes if held_out(scene)]


def placed(names: Sequence[str]) -> list[Scene]:
    """One object where training never showed it, or on a ground it never did."""
    scenes = [
        Scene((Thing(name, place=place),), (ground,))
        for name in names for place in ("left", "right", "top", "bottom") for ground in ("white", "blue", "pink")
    ]  # fmt: skip
    return [scene for scene in scenes if held_out(scene)]


def shapes() -> list[Scene]:
    """A shape in a colour that training never showed it in, or on such a ground."""
    scenes = [
        Scene((Thing(shape, colour),), (ground,))
        for shape in SHAPES for colour in COLOURS for ground in COLOURS if colour != ground
    ]  # fmt: skip
    return [scene for scene in scenes if held_out(scene)]


def some(scenes: Sequence[Scene], count: int) -> list[Scene]:
    """`count` of `scenes`, spread over them; all of them several times if they are fewer."""
    dice = np.random.default_rng(len(scenes))
    return list(islice(cycle([scenes[int(row)] for row in dice.permutation(len(scenes))]), count))


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """What a stage gives for prompts, run as a worker runs it."""
    folder, pipes = tmp_path_factory.mktemp("demo"), {}
    catalog = Catalog.load(Settings(catalog=None))

    def run(
        prompts: Sequence[str], given: Sequence[Any] | None = None, *, checkpoint: str = "demo",
        kind: str = "text2img", negative: str = "", seed: int = 0, emits: Medium = Medium.IMAGE, **fields: Any,
    ) -> list[Any]:  # fmt: skip
        (stage,) = parse_chain({"stages": [{"kind": kind, **fields}]}).stages
        stage = catalog.checkpoints[checkpoint].advise(stage)
        if (checkpoint, kind) not in pipes:
            place = folder / checkpoint
            if not place.exists():
                family.build(checkpoint, place)
            files = pipelines.Files(checkpoint, place, False, None, None, "float32", "demo")
            pipes[checkpoint, kind] = stage.load(files, "cpu")
        made: list[Any] = []
        for start in range(0, len(prompts), 64):
            texts = list(prompts[start : start + 64])
            inputs = list(given[start : start + 64]) if given else [None] * len(texts)
            side = 64 * {"upscale_latent": 2, "upscale": 8}.get(kind, 1)
            generators = [calling.generator(seed + start + row) for row in range(len(texts))]
            batch = Batch(emits, Size(side, side), texts, [negative] * len(texts), inputs, generators)
            made += stage.run(pipes[checkpoint, kind], batch, Recorder())
        return made

    return run


@pytest.fixture(scope="module")
def judge() -> Scorer:
    return Scorer()


@pytest.fixture(scope="module")
def vae() -> Any:
    from safetensors.torch import load_file

    made = family.vae()
    made.load_state_dict({name: value.float() for name, value in load_file(family.WEIGHTS / "vae.safetensors").items()})
    return made.eval()


# -------------------------------------------------------------------------------------------- the judge


def test_the_judge_is_right_on_drawn_scenes_it_never_saw(judge: Scorer, sprites: Sprites) -> None:
    scenes = [Scene(scene.things, scene.ground, style, seed)
              for seed in range(4) for style in ("flat", "shaded")
              for scene in (*singles(FORTY), *placed(FORTY))]  # fmt: skip
    pictures = [draw(scene, 64, sprites) for scene in scenes]
    named, styled = judge.things(pictures, FORTY), judge.styles(pictures)
    assert share([name == scene.things[0].name for name, scene in zip(named, scenes, strict=True)], "judge") >= 0.95
    assert share([style == scene.style for style, scene in zip(styled, scenes, strict=True)], "styles") >= 0.95
    grounds = [scorer.ground(picture) == scene.ground[0] for picture, scene in zip(pictures, scenes, strict=True)]
    assert share(grounds, "grounds") >= 0.95
    coloured = [(scorer.colour(draw(scene, 64, sprites)), scene.things[0].colour) for scene in shapes()]
    assert share([found == wanted for found, wanted in coloured], "colours") >= 0.95


# -------------------------------------------------------------------------------------------- prompts


def test_grounds_colours_and_objects_are_those_of_the_prompt(render: Render, judge: Scorer) -> None:
    # Given at least 500 prompts for combinations that training never saw
    objects, elsewhere, coloured = some(singles(FORTY), 256), some(placed(FORTY), 64), some(shapes(), 192)
    scenes = [*objects, *elsewhere, *coloured]
    # When
    pictures = render([scene.caption() for scene in scenes])
    # Then
    grounds = [scorer.ground(picture) == scene.ground[0] for picture, scene in zip(pictures, scenes, strict=True)]
    assert share(grounds, "grounds") >= 0.95
    named = judge.things(pictures[:320], FORTY)
    right = [name == scene.things[0].name for name, scene in zip(named, scenes, strict=False)]
    share(right[256:], "objects off the middle")
    assert share(right, "objects") >= 0.80
    found = [scorer.colour(picture) == scene.things[0].colour
             for picture, scene in zip(pictures[320:], coloured, strict=True)]  # fmt: skip
    assert share(found, "colours") >= 0.90


def pairs(count: int) -> list[tuple[str, str]]:
    """Two objects for the left and the right."""
    dice = np.random.default_rng(2)
    drawn = [dice.choice(FORTY, 2, replace=False) for _ in range(count)]
    return [(str(left), str(right)) for left, right in drawn]


def seen(judge: Scorer, pictures: Sequence[Image.Image], wanted: Sequence[tuple[str, str]]) -> list[tuple[bool, bool]]:
    """Whether each half, the other one painted over, shows its object."""
    found = [judge.things([half(picture, side) for picture in pictures], FORTY) for side in (0, 1)]
    return [(one == left, other == right) for one, other, (left, right) in zip(*found, wanted, strict=True)]


def test_two_objects_are_both_there_the_more_so_with_guidance(render: Render, judge: Scorer) -> None:
    # Given prompts for two objects side by side
    wanted, right, both = pairs(64), {}, {}
    prompts = [Scene((Thing(left), Thing(other)), ("white",)).caption() for left, other in wanted]
    # When
    for guidance in (1.0, 5.0, 7.5):
        found = seen(judge, render(prompts, guidance_scale=guidance), wanted)
        both[guidance] = share([all(each) for each in found], f"both of two objects, guidance {guidance}")
        right[guidance] = share([one for each in found for one in each], f"one of two objects, guidance {guidance}")
    # Then
    assert right[5.0] > right[1.0]
    assert right[7.5] > 0.25  # by chance 1 of 40
    assert both[7.5] > 0.05  # by chance 1 of 1,600


def half(picture: Image.Image, side: int) -> Image.Image:
    """`picture` with only its left (0) or right (1) half; the other is plain ground."""
    pixels = np.asarray(picture.convert("RGB")).copy()
    rim = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    pixels[:, 32 * (1 - side) : 32 * (2 - side)] = np.median(rim, 0)
    return Image.fromarray(pixels)


def test_a_negative_prompt_lowers_what_it_names(render: Render) -> None:
    # Given prompts that leave the ground open
    prompts = [Scene((Thing(name),), ("red",)).caption(ground=False) for name in FORTY] * 2
    blue = {negative: [scorer.ground(picture) == "blue" for picture in render(prompts, negative=negative, seed=9)]
            for negative in ("", "a blue background")}  # fmt: skip
    assert share(blue["a blue background"], "blue, unwanted") < share(blue[""], "blue")


# -------------------------------------------------------------------------------------------- redrawing


def test_strength_moves_from_the_input_to_the_prompt(render: Render, judge: Scorer, sprites: Sprites) -> None:
    # Given drawn inputs, and prompts for something else on another ground
    names, grounds = FORTY[:32], list(COLOURS)
    inputs = [Scene((Thing(name),), (grounds[row % 10],), seed=row) for row, name in enumerate(names)]
    wanted = [Scene((Thing(names[-1 - row]),), (grounds[(row + 3) % 10],)) for row in range(32)]
    pictures = [draw(scene, 64, sprites) for scene in inputs]
    strengths, moved, right = (0.2, 0.4, 0.6, 0.75, 0.9), [], []
    # When they are redrawn without guidance, which drives to the prompt by itself
    for strength in strengths:
        made = render([scene.caption() for scene in wanted], pictures, kind="img2img", strength=strength,
                      num_inference_steps=20, guidance_scale=1.0)  # fmt: skip
        moved.append(float(np.mean([distance(one, other) for one, other in zip(made, pictures, strict=True)])))
        named = judge.things(made, FORTY)
        right.append(np.mean([
            (name == scene.things[0].name) + (scorer.ground(picture) == scene.ground[0])
            for name, picture, scene in zip(named, made, wanted, strict=True)
        ]) / 2)  # fmt: skip
        print(f"strength {strength}: {moved[-1]:.1f} of 255 from the input, {right[-1]:.0%} of the prompt")
    # Then
    assert all(more > less for less, more in pairwise(moved))
    assert all(more >= less for less, more in pairwise(right))
    assert right[-1] > right[0] + 0.3


def test_the_style_checkpoint_draws_in_its_style(render: Render, judge: Scorer) -> None:
    # Given latents of the base checkpoint, which it takes over as they are
    scenes = some(singles(FORTY), 64)
    prompts = [scene.caption() for scene in scenes]
    base = render(prompts, emits=Medium.LATENTS)
    # When
    flat = render(prompts, base, kind="img2img", strength=0.75)
    shaded = render(prompts, base, kind="img2img", strength=0.75, checkpoint="demo-style")
    # Then
    share([name == "shaded" for name in judge.styles(flat)], "shaded by demo")
    assert share([name == "shaded" for name in judge.styles(shaded)], "shaded by demo-style") >= 0.8


def test_a_masked_half_is_drawn_anew_and_the_other_stays(tmp_path: Path, judge: Scorer, sprites: Sprites) -> None:
    # Given drawn pictures of two objects, and diffusers' own pipeline for inpainting
    wanted = pairs(24)
    family.build("demo", tmp_path / "demo")
    pipe = AutoPipelineForInpainting.from_pretrained(
        tmp_path / "demo", local_files_only=True, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    ghost = Thing("ghost", place="right")
    before = [draw(Scene((Thing(left, place="left"), ghost), ("white",)), 64, sprites) for left, _ in wanted]
    # When the right one is to be another
    prompts = [Scene((Thing(left), Thing(right)), ("white",)).caption() for left, right in wanted]
    made = pipe(prompts, image=before, mask_image=[mask] * 24, strength=1.0, num_inference_steps=20,
                generator=[calling.generator(seed) for seed in range(24)]).images  # fmt: skip
    # Then
    left, right = zip(*seen(judge, made, wanted), strict=True)
    assert share(left, "the half that stays") >= 0.8
    assert share(right, "the half that is drawn anew") >= 0.5


# -------------------------------------------------------------------------------------------- sizes


def test_the_vae_gives_back_what_it_is_given(vae: Any, sprites: Sprites) -> None:
    scenes = some([*singles(list(OBJECTS)), *shapes()], 64)
    images = as_tensor([draw(scene, 64, sprites) for scene in scenes])
    with torch.no_grad():
        made = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    found = float(np.mean([psnr(one, other) for one, other in zip(made, images, strict=True)]))
    print(f"round trip {found:.2f} dB")
    assert found >= 26


def test_the_preview_shows_the_colours_of_latents(vae: Any, sprites: Sprites) -> None:
    # Given the catalog's projection
    rows = torch.tensor(Catalog.load(Settings(catalog=None)).spaces["demo"].preview)
    images = as_tensor([draw(scene, 64, sprites) for scene in some([*singles(list(OBJECTS)), *shapes()], 64)])
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean * family.SCALING_FACTOR
    # When
    shown = torch.einsum("bchw,cr->brhw", latents, rows[:-1]) + rows[-1][:, None, None]
    # Then
    wanted = torch.nn.functional.avg_pool2d(images, 4)
    found = float(np.mean([psnr(one, other) for one, other in zip(shown, wanted, strict=True)]))
    print(f"preview {found:.2f} dB")
    assert found >= 15


@pytest.fixture(scope="module")
def doubled(render: Render, vae: Any, sprites: Sprites) -> Arms:
    """Latents of pictures of 64 px, doubled by `demo-x2` and, as decoded pixels, by bicubic."""
    scenes = some(singles(list(OBJECTS)), 48)
    truth = [draw(scene, 128, sprites) for scene in scenes]
    small = as_tensor([picture.resize((64, 64), Image.Resampling.BOX) for picture in truth])
    with torch.no_grad():
        latents = vae.encode(small).latent_dist.mean * family.SCALING_FACTOR
        decoded = vae.decode(latents / family.SCALING_FACTOR).sample
    prompts = [scene.caption() for scene in scenes]
    made = render(prompts, list(latents), kind="upscale_latent", checkpoint="demo-x2")
    return compared("x2", made, enlarged(decoded, 128), truth)


@pytest.fixture(scope="module", params=["drawn", "decoded"])
def quadrupled(request: pytest.FixtureRequest, render: Render, vae: Any, sprites: Sprites) -> Arms:
    """Pictures of 128 px, as drawn or as a chain decodes them, quadrupled by `demo-x4` and by bicubic."""
    scenes = some(singles(list(OBJECTS)), 8)
    truth = [draw(scene, 512, sprites) for scene in scenes]
    small = [picture.resize((128, 128), Image.Resampling.BOX) for picture in truth]
    if request.param == "decoded":
        with torch.no_grad():
            small = enlarged(vae.decode(vae.encode(as_tensor(small)).latent_dist.mean).sample, 128)
    made = render([scene.caption() for scene in scenes], small, kind="upscale", checkpoint="demo-x4")
    bicubic = [picture.resize((512, 512), Image.Resampling.BICUBIC) for picture in small]
    return compared(f"x4 of {request.param} pictures", made, bicubic, truth)


def test_edges_are_steeper_when_latents_are_doubled(doubled: Arms) -> None:
    assert abs(1 - doubled["made"][1]) < abs(1 - doubled["bicubic"][1])


def test_edges_are_steeper_when_pictures_are_quadrupled(quadrupled: Arms) -> None:
    assert abs(1 - quadrupled["made"][1]) < abs(1 - quadrupled["bicubic"][1])


def test_pixels_are_nearer_when_latents_are_doubled(doubled: Arms) -> None:
    assert doubled["made"][0] > doubled["bicubic"][0]


def test_pixels_are_nearer_when_pictures_are_quadrupled(quadrupled: Arms) -> None:
    assert quadrupled["made"][0] > quadrupled["bicubic"][0]


def test_tiles_meet_without_seams(render: Render, vae: Any, sprites: Sprites) -> None:
    # Given pictures that are enlarged at once and in tiles, and large latents that are decoded at once and in tiles
    truth = [draw(scene, 512, sprites) for scene in some(singles(list(OBJECTS)), 4)]
    small = [picture.resize((128, 128), Image.Resampling.BOX) for picture in truth]
    made = [as_tensor(render([""] * 4, small, kind="upscale", checkpoint="demo-x4", tile=tile)) for tile in (None, 64)]
    with torch.no_grad():
        latents = vae.encode(as_tensor(truth)).latent_dist.mean
        decoded = [vae.decode(latents).sample.clamp(-1, 1)]
        vae.enable_tiling()
        decoded.append(vae.decode(latents).sample.clamp(-1, 1))
        vae.disable_tiling()
    # Then pixels hardly change, and their change hardly jumps where a tile ends
    ends = {
        "x4 in tiles": [4 * side for span in spans(128, 64, OVERLAP) for side in span if 0 < side < 128],
        # Source: `AutoencoderKL.tiled_decode`: every three quarters of 64 px, blended over the last quarter.
        "VAE in tiles": [side for left in range(0, 512, 48) for side in (left, left + 16) if 0 < side < 512],
    }
    for (name, columns), (whole, tiled) in zip(ends.items(), (made, decoded), strict=True):
        off = (tiled - whole) * 127.5
        jumps = (off[..., 1:] - off[..., :-1]).abs().mean((0, 1, 2))
        there = float(jumps[[column - 1 for column in columns]].mean())
        print(
            f"{name}: {off.abs().mean():.2f} of 255 off, jumps at their ends {there:.2f}, anywhere {jumps.mean():.2f}"
        )
        assert there < 1


def compared(name: str, made: list[Image.Image], bicubic: list[Image.Image], truth: list[Image.Image]) -> Arms:
    """Of what was made and of bicubic: PSNR to the truth, dB, and how steep edges are beside the truth's; prints it."""
    wanted, arms = as_tensor(truth), {}
    for arm, pictures in {"made": made, "bicubic": bicubic}.items():
        tensors = as_tensor(pictures)
        near = float(np.mean([psnr(one, other) for one, other in zip(tensors, wanted, strict=True)]))
        arms[arm] = near, steepness(tensors, wanted)
        print(f"{name} {arm}: {near:.2f} dB, edges {arms[arm][1]:.2f} as steep as the truth's")
    return arms


def steepness(made: torch.Tensor, truth: torch.Tensor) -> float:
    """The mean gradient where the truth has its steepest hundredth, as a share of the truth's own there."""
    return float(np.mean([
        (gradient(one)[edges].mean() / steep[edges].mean()).item()
        for one, steep in zip(made, map(gradient, truth), strict=True)
        for edges in [steep >= steep.quantile(0.99)]
    ]))  # fmt: skip


def gradient(image: torch.Tensor) -> torch.Tensor:
    """How much brightness changes from pixel to pixel: [height - 1, width - 1]."""
    grey = image.mean(0)
    return torch.hypot(grey[1:, :-1] - grey[:-1, :-1], grey[:-1, 1:] - grey[:-1, :-1])


def enlarged(images: torch.Tensor, side: int) -> list[Image.Image]:
    """Decoded images as PIL's bicubic filter enlarges them."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in pixels]


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal to noise of images in -1…1, dB."""
    return 10 * math.log10(4 / max(1e-9, (one.clamp(-1, 1) - other).square().mean().item()))


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures, of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other.convert("RGB"), float)).mean())
