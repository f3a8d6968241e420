"""Single files, as others distribute checkpoints: the same pixels as the folder they were made of, also converted."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from farm import models
from farm.catalog import Catalog
from farm.errors import FarmError, InvalidJob
from tests.stages.conftest import call
from workers import pipelines
from workers.stages.text2img import Text2Img

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
VAE = (
    (r"\.mid_block\.resnets\.(\d)", lambda found: f".mid.block_{int(found[1]) + 1}"),
    (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
    (r"\.group_norm\.", ".norm."), (r"\.to_([qkv])\.", r".\1."), (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."), (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.down_blocks\.(\d)\.resnets", r".down.\1.block"),
    (r"\.down_blocks\.(\d)\.downsamplers\.0", r".down.\1.downsample"),
)  # fmt: skip
"""Names in a folder, and in a single file. Source: the layouts of CompVis/latent-diffusion."""


def as_single_file(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a Stable Diffusion 1.x in the hub's layout, named as in a single file."""
    found = {}
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        tensors = load_file(folder / part / f"{name}.safetensors")
        found |= dict({"unet": _unet, "vae": _vae, "text_encoder": _text}[part](tensors))
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _unet(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    layers = 1 + max(int(found[1]) for key in tensors if (found := re.match(r"down_blocks\.0\.resnets\.(\d)", key)))
    for key, tensor in tensors.items():
        name = key
        for ours, theirs in UNET.items():
            name = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", name)
        if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key):
            way, level, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
            per = layers + 1
            place = level * per + (0 if way == "up" else 1) + index
            if kind == "downsamplers":
                name = f"input_blocks.{level * per + per}.0.op.{rest.removeprefix('conv.')}"
            elif kind == "upsamplers":
                attends = any(other.startswith(f"up_blocks.{level}.attentions") for other in tensors)
                name = f"output_blocks.{level * per + layers}.{2 if attends else 1}.{rest}"
            else:
                block = "input_blocks" if way == "down" else "output_blocks"
                name = f"{block}.{place}.{1 if kind == 'attentions' else 0}.{_resnet(rest)}"
        elif found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
            name = f"middle_block.{MIDDLE[f'{found[1]}.{found[2]}']}.{_resnet(found[3])}"
        yield f"model.diffusion_model.{name}", tensor


def _resnet(rest: str) -> str:
    first, _, last = rest.partition(".")
    return f"{RESNET.get(first, first)}.{last}"


def _vae(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    levels = 1 + max(int(found[1]) for key in tensors if (found := re.match(r"decoder\.up_blocks\.(\d)", key)))
    for key, tensor in tensors.items():
        name = key
        for ours, theirs in VAE:
            name = re.sub(ours, theirs, name)
        if found := re.match(r"decoder\.up_blocks\.(\d)\.(?:resnets\.(\d)|upsamplers\.0)\.(.*)", name):
            what = "upsample" if found[2] is None else f"block.{found[2]}"
            name = f"decoder.up.{levels - 1 - int(found[1])}.{what}.{found[3]}"
        attention = re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", name)
        yield f"first_stage_model.{name}", tensor[..., None, None] if attention else tensor


def _text(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in tensors.items():
        yield f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}", tensor


@pytest.fixture
def single(tmp_path: Path, catalog: Catalog) -> Path:
    """`tiny` as one file, in a folder with its configuration without weights."""
    folder = catalog.path(catalog.checkpoints["tiny"])
    save_file(as_single_file(folder), tmp_path / "one.safetensors")
    shutil.copytree(folder, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "one.safetensors"


def test_a_single_file_renders_the_pixels_of_the_folder_it_was_made_of(single: Path, pipe: Callable[..., Any]) -> None:
    # Given
    stage = Text2Img(num_inference_steps=2)
    files = pipelines.Files("one", single, True, single.with_name("config"), None, "float32", "tiny")
    # When
    (ours,) = call(stage, stage.load(files, "cpu"))
    # Then
    (theirs,) = call(stage, pipe(stage))
    assert ours.tobytes() == theirs.tobytes()
    # and as a folder that it was converted to
    target = single.with_name("folder")
    models.convert(single, target, single.with_name("config"))
    whole = pipelines.Files("folder", target, False, None, None, "float32", "tiny")
    (converted,) = call(stage, stage.load(whole, "cpu"))
    assert converted.tobytes() == theirs.tobytes()


def test_a_pickle_of_tensors_becomes_safetensors(tmp_path: Path) -> None:
    # Given an image prompt's weights, in tables within a table, and an embedding as A1111 keeps it
    torch.save({"ip_adapter": {"1.to_k.weight": torch.ones(2)}, "image_proj": {"norm": torch.zeros(3)}, "step": 7},
               tmp_path / "ip.bin")  # fmt: skip
    torch.save({"string_to_param": {"*": torch.ones(1, 4)}, "name": "word"}, tmp_path / "word.pt")
    torch.save({"state_dict": {"shared": (one := torch.ones(2)), "again": one}, "epoch": 1}, tmp_path / "sd.ckpt")
    # When
    for name in ("ip.bin", "word.pt", "sd.ckpt"):
        models.convert(tmp_path / name, tmp_path / f"{name}.safetensors")
    # Then
    made = {path.name: {key: list(value.shape) for key, value in load_file(path).items()}
            for path in tmp_path.glob("*.safetensors")}  # fmt: skip
    assert made == {
        "ip.bin.safetensors": {"ip_adapter.1.to_k.weight": [2], "image_proj.norm": [3]},
        "word.pt.safetensors": {"emb_params": [1, 4]},
        "sd.ckpt.safetensors": {"shared": [2], "again": [2]},
    }


class Evil:
    """A pickle that touches a file when it is read by a careless reader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    # Given
    torch.save({"state_dict": {"weight": torch.ones(1)}, "more": Evil(tmp_path / "ran")}, tmp_path / "bad.ckpt")
    assert zipfile.is_zipfile(tmp_path / "bad.ckpt")
    # When
    with pytest.raises(FarmError) as caught:
        models.convert(tmp_path / "bad.ckpt", tmp_path / "bad.safetensors")
    # Then
    assert caught.value.code == "bad_checkpoint"
    assert "UnpicklingError" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["bad.ckpt"]


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("missing.ckpt", "new.safetensors", "bad_file"),
        ("a.ckpt", "a.ckpt", "bad_file"),
        ("a.txt", "new", "bad_file"),
        ("a.ckpt", "new", "usage"),
        ("a.safetensors", "new", "usage"),
    ],
)
def test_what_does_not_go_together_is_not_begun(tmp_path: Path, source: str, target: str, code: str) -> None:
    for name in ("a.ckpt", "a.txt", "a.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(InvalidJob) as caught:
        models.convert(tmp_path / source, tmp_path / target)
    assert caught.value.code == code


def test_a_file_that_fits_no_checkpoint_is_refused_and_nothing_is_left(tmp_path: Path, single: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FarmError) as caught:
        models.convert(tmp_path / "other.safetensors", tmp_path / "folder", tmp_path / "config")
    assert caught.value.code == "bad_checkpoint"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "one.safetensors", "other.safetensors"]
