"""Do super-resolution files make the networks that they were, and do tiles leave no seams?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.catalog import Catalog
from farm.errors import StageFailed
from farm.stage import Size
from tests.stages.conftest import Recorder, call, same, some_image
from workers import pipelines, superres
from workers.realesrgan import HALF, named, read
from workers.stages.esrgan import Esrgan
from workers.superres import OVERLAP
from workers.tiles import spans

Pipe = Callable[..., Any]
KINDS = [("tiny-esrgan", 4), ("tiny-compact", 2)]


@pytest.mark.parametrize(("checkpoint", "factor"), KINDS)
def test_the_sides_grow_by_the_factor_and_it_repeats(pipe: Pipe, checkpoint: str, factor: Any) -> None:
    stage, image, report = Esrgan(checkpoint=checkpoint, factor=factor), some_image(64), Recorder()
    (made,) = call(stage, pipe(stage), [image], report=report)
    assert made.size == (64 * factor, 64 * factor) == stage.output_size(Size(64, 64), 64)
    assert stage.given_size(Size(*made.size)) == (64, 64)
    assert report.marks == ["encode", "step", (1, 1)]
    assert same(made, call(stage, pipe(stage), [image])[0])
    assert not same(made, call(stage, pipe(stage), [some_image(64, seed=9)])[0])


@pytest.mark.parametrize(("checkpoint", "factor"), KINDS)
def test_tiles_leave_no_seams(pipe: Pipe, checkpoint: str, factor: Any) -> None:
    # Given a picture larger than a tile
    image, report = some_image(64).resize((192, 128)), Recorder()
    whole, tiled = (Esrgan(checkpoint=checkpoint, factor=factor, tile=tile) for tile in (None, 64))
    # When it is enlarged at once and in tiles
    one = np.asarray(call(whole, pipe(whole), [image])[0], float)
    other = np.asarray(call(tiled, pipe(tiled), [image], report=report)[0], float)
    # Then both are the same but for the edges of tiles, where they differ less than pixels do by themselves
    assert report.marks.count("tile") == len([*spans(192, 64, OVERLAP)]) * len([*spans(128, 64, OVERLAP)]) > 4
    assert np.abs(one - other).max() <= np.abs(np.diff(one, axis=0)).max() / 4
    assert np.abs(one - other).mean() < 1


def test_spans_cover_a_side_and_overlap() -> None:
    for side in (8, 64, 65, 112, 200, 513):
        found = [*spans(side, 64, OVERLAP)]
        assert (found[0][0], found[-1][1]) == (0, side)
        assert all(end - start == min(64, side) for start, end in found)
        assert all(later - end <= -OVERLAP for (_, end), (later, _) in pairwise(found))


def test_the_first_release_s_names_make_the_same_network(catalog: Catalog, tmp_path: Path) -> None:
    # Given a file with the names of 2018
    files = pipelines.files_of(catalog, catalog.checkpoints["tiny-esrgan"])
    names = {"conv_first": "model.0", "conv_body": "model.1.sub.1", "conv_up1": "model.3", "conv_up2": "model.6",
             "conv_hr": "model.8", "conv_last": "model.10"}  # fmt: skip
    old = {}
    for name, value in load_file(files.path / "model.safetensors").items():
        stem, _, part = name.rpartition(".")
        if stem.startswith("body."):
            _, block, dense, conv = stem.split(".")
            stem = f"model.1.sub.{block}.{dense.upper()}.{conv}.0"
        old[f"{names.get(stem, stem)}.{part}"] = value
    save_file(old, tmp_path / "old.safetensors")
    # When
    networks = [superres.load(files, "cpu"), superres.load(
        pipelines.Files("old", tmp_path / "old.safetensors", True, None, None, "float32", "none"), "cpu")]  # fmt: skip
    # Then
    given = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(*(network(given) for network in networks))


@pytest.mark.parametrize("damage", ["other", "missing", "text"])
def test_a_file_that_is_no_network_is_refused(catalog: Catalog, tmp_path: Path, damage: str) -> None:
    files = pipelines.files_of(catalog, catalog.checkpoints["tiny-esrgan"])
    tensors, path = load_file(files.path / "model.safetensors"), tmp_path / "x.safetensors"
    if damage == "other":
        save_file({"weight": torch.zeros(3)}, path)
    elif damage == "missing":
        save_file({name: value for name, value in tensors.items() if name != "conv_hr.bias"}, path)
    else:
        path.write_text("no tensors")
    with pytest.raises(StageFailed) as caught:
        superres.load(pipelines.Files("x", path, True, None, None, "float32", "none"), "cpu")
    assert caught.value.code == "bad_checkpoint"


def test_a_checkpoint_enlarges_as_it_was_made_for() -> None:
    assert [error.loc for error in Esrgan(factor=2).fits("esrgan-x4")] == ["factor"]
    assert [error.loc for error in Esrgan().fits("sd")] == ["checkpoint"]
    assert not [*Esrgan().fits("esrgan-x4")]


def ncnn(network: Any) -> tuple[str, bytes]:
    """The layers and arrays of a network, as the ncnn runtime keeps them."""
    lines, arrays = ["7767517", "0 0"], b""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            weight = layer.weight.detach().half().numpy()
            lines.append(f"Convolution c 1 1 a b 0={layer.out_channels} 1=3 4=1 5=1 6={weight.size} -23310=1,2.0e-01")
            arrays += HALF.to_bytes(4, "little") + weight.tobytes() + bytes(-weight.nbytes % 4)
            arrays += layer.bias.detach().numpy().tobytes()
        elif isinstance(layer, torch.nn.PReLU):
            lines.append(f"PReLU p 1 1 a b 0={layer.num_parameters}")
            arrays += layer.weight.detach().numpy().tobytes()
        else:
            lines.append("Split s 1 2 a b c")
    return "\n".join(lines), arrays


@pytest.mark.parametrize(("checkpoint", "factor"), KINDS)
def test_arrays_of_ncnn_become_the_tensors_that_they_were(pipe: Pipe, checkpoint: str, factor: Any) -> None:
    # Given a network in 16 bits, as ncnn keeps it
    network = pipe(Esrgan(checkpoint=checkpoint, factor=factor))
    layers, arrays = ncnn(network)
    # When
    made = named(list(read(layers, arrays)))
    # Then
    wanted = {
        key: value.half().float() if key.endswith("weight") and value.dim() == 4 else value
        for key, value in network.state_dict().items()
    }
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[key], wanted[key]) for key in made)
    # and others than these are refused
    with pytest.raises(ValueError, match="left over"):
        list(read(layers, arrays + bytes(4)))
    with pytest.raises(ValueError, match="not an array of 16-bit floats"):
        list(read(layers, bytes(4) + arrays[4:]))
