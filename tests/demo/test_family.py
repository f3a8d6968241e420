"""The demo family's checkpoints are what the hub's own are: folders that real pipelines load and run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from farm.chain import parse_chain
from farm.stage import Batch, Medium, Size
from tests.stages.conftest import Recorder
from workers import calling, pipelines
from workers.demo import family

PARTS = {
    "vae": family.vae, "text_encoder": family.text_encoder, "unet": family.unet, "unet_style": family.unet,
    "unet_x2": family.unet_x2, "unet_x4": family.unet_x4,
}  # fmt: skip
LIMIT_BYTES, IN_ALL_BYTES = 15e6, 40e6
"""The largest weights file that may ship, and all of them."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as training leaves them, of parts that know nothing yet."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, part in PARTS.items():
        save_file({key: value.half() for key, value in part().state_dict().items()}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def built(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "WEIGHTS", weights)
        for name in family.MEMBERS:
            family.build(name, folder / name)
    return folder


def test_the_weights_are_small_enough_to_ship(weights: Path) -> None:
    sizes = [path.stat().st_size for path in weights.iterdir()]
    assert max(sizes) <= LIMIT_BYTES
    assert sum(sizes) <= IN_ALL_BYTES


def test_building_twice_gives_the_same_bytes(weights: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "WEIGHTS", weights)
    again = built / "again"
    family.build("demo", again)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert {str(path) for path in files} >= {"model_index.json", "unet/diffusion_pytorch_model.safetensors"}
    assert all((again / path).read_bytes() == (built / "demo" / path).read_bytes() for path in files)


def test_all_members_share_one_latent_space(built: Path) -> None:
    vaes = {(built / name / "vae/diffusion_pytorch_model.safetensors").read_bytes() for name in family.MEMBERS}
    assert len(vaes) == 1


@pytest.mark.parametrize(
    ("name", "stage", "emits", "size", "shape"),
    [
        ("demo", {"kind": "text2img"}, Medium.LATENTS, Size(64, 64), (4, 16, 16)),
        ("demo-style", {"kind": "img2img", "strength": 0.5}, Medium.LATENTS, Size(64, 64), (4, 16, 16)),
        ("demo-x2", {"kind": "upscale_latent"}, Medium.IMAGE, Size(128, 128), (128, 128)),
        ("demo-x4", {"kind": "upscale"}, Medium.IMAGE, Size(256, 256), (256, 256)),
    ],
)
def test_every_stage_runs_on_its_member(
    built: Path, name: str, stage: dict[str, object], emits: Medium, size: Size, shape: Sequence[int]
) -> None:
    from PIL import Image

    (made,) = parse_chain({"prompt": "a red apple", "stages": [{**stage, "steps": 2}]}).stages
    given = {
        "text2img": None,
        "img2img": torch.zeros(4, 16, 16),
        "upscale_latent": torch.zeros(4, 16, 16),
        "upscale": Image.new("RGB", (64, 64)),
    }[made.kind]
    pipe = made.load(pipelines.Files(name, built / name, False, None, None, "float32", "demo"), "cpu")
    batch = Batch(emits, size, ["a red apple"], [""], [given], [calling.generator(1)])
    (output,) = made.run(pipe, batch, Recorder())
    assert tuple(output.shape if emits is Medium.LATENTS else output.size) == tuple(shape)


def test_known_words_are_one_token_each() -> None:
    tokenizer = family.tokenizer()
    assert {word: tokenizer.tokenize(word) for word in family.WORDS} == {word: [f"{word}</w>"] for word in family.WORDS}
    assert len(tokenizer.tokenize("a zebra")) > 2
