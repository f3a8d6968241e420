"""Training goes on from where it stopped, and leaves what the family is built from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from workers.demo import family
from workers.demo.train import loop, parts


@pytest.fixture(scope="module")
def work(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "sets").symlink_to(sets)
    return folder


def test_a_training_that_was_stopped_ends_where_an_unbroken_one_does(work: Path) -> None:
    def train(name: str, stops: list[int]) -> dict[str, torch.Tensor]:
        for steps in stops:
            torch.manual_seed(0)
            part = parts.Vae(work, 64)
            part.name, part.batch = name, 4
            # A state is saved only at the end, so a stop is an end; the fall of the learning rate must not differ.
            loop.fit(part, Accelerator(cpu=True), work, steps, planned=4)
        return load_file(work / name / "vae.safetensors")

    # Given one that never stopped, and one that stopped after two steps
    whole, broken = train("vae", [4]), train("out", [2, 4])
    # Then
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


@pytest.mark.parametrize("part", ["vae", "decoder", "base", "style", "x2", "x2-fine", "x4", "x4-fine"])
def test_each_part_trains_and_shows_itself(work: Path, part: str) -> None:
    # Given the parts before it, as the order of the parameters has it
    device = torch.device("cpu")
    made: loop.Part = {
        "vae": lambda: parts.Vae(work, 64),
        "decoder": lambda: parts.Decoder(work, 64),
        "base": lambda: parts.Base(work, 64, device),
        "style": lambda: parts.Base(work, 64, device, "shaded"),
        "x2": lambda: parts.X2(work, 64, device),
        "x2-fine": lambda: parts.X2(work, 64, device, fine=True),
        "x4": lambda: parts.X4(work, 64, device),
        "x4-fine": lambda: parts.X4(work, 64, device, fine=True),
    }[part]()
    # When it takes two steps
    loop.fit(made, Accelerator(cpu=True), work, 2)
    # Then its weights, a sheet and a plot are there
    folder = work / part
    assert {path.name for path in folder.glob("*.safetensors")} >= {f"{name}.safetensors" for name in made.model}
    for name in ("sheet.png", "loss.png"):
        assert Image.open(folder / name).size > (0, 0)


def test_folding_changes_what_the_latents_are_and_nothing_else(work: Path) -> None:
    # Given a VAE and pictures
    torch.manual_seed(0)
    part = parts.Vae(work, 64)
    vae = part.model["vae"].eval()
    images = parts.to_float(part._images[:32])
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        # When
        part.finish()
        latents = vae.encode(images).latent_dist.mean * family.SCALING_FACTOR
        after = vae.decode(latents / family.SCALING_FACTOR).sample
    # Then the round trip is the same, and latents are of mean 0 and spread 1
    assert torch.allclose(before, after, atol=1e-3)
    assert latents.mean().abs() < 0.2
    assert 0.7 < latents.std() < 1.3
