"""Is a checkpoint run as its catalog entry says, with the pixels that it says?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

from farm.catalog import Catalog, Switches
from tests.stages.conftest import call
from workers import pipelines
from workers.stages.text2img import Text2Img

STAGE = Text2Img(num_inference_steps=4)
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def load(catalog: Catalog, device: str = "cpu", name: str = "tiny", **switches: Any) -> Any:
    """A pipeline that is run with `switches`."""
    files = pipelines.files_of(catalog, catalog.checkpoints[name])
    return STAGE.load(replace(files, switches=Switches(**switches)), device)


def processors(pipe: Any) -> set[type]:
    return {type(found) for found in pipe.unet.attn_processors.values()}


def layout(pipe: Any) -> bool:
    weight: torch.Tensor = pipe.unet.down_blocks[0].resnets[0].conv1.weight
    return weight.is_contiguous(memory_format=torch.channels_last)


SEEN: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "eager": ({"attention": "eager"}, lambda pipe: processors(pipe) == {AttnProcessor}),
    "sliced": ({"attention": "sliced"}, lambda pipe: processors(pipe) == {SlicedAttnProcessor}),
    "slicing": ({"slicing": True}, lambda pipe: bool(pipe.vae.use_slicing)),
    "fused": (
        {"fuse_qkv_projections": True},
        lambda pipe: any("FusedAttn" in found.__name__ for found in processors(pipe)),
    ),
    "channels_last": ({"channels_last": True}, layout),
}
"""Switches that a CPU runs as well, and how they show."""


@pytest.mark.parametrize("name", SEEN)
def test_a_switch_changes_how_it_runs_and_pixels_at_most_by_rounding(
    catalog: Catalog, pipe: Callable[..., Any], name: str
) -> None:
    # Given
    switches, shows = SEEN[name]
    plain, switched = pipe(STAGE), load(catalog, **switches)
    assert shows(switched)
    assert not shows(plain)
    # When
    one, other = (np.asarray(call(STAGE, each)[0], int) for each in (plain, switched))
    # Then
    assert np.abs(one - other).max() <= 1
    # and it stays so from call to call
    again = np.asarray(call(STAGE, switched)[0], int)
    assert (again == other).all()
    assert shows(switched)


def test_two_entries_with_other_switches_share_no_models(catalog: Catalog) -> None:
    plain, same, switched = load(catalog), load(catalog), load(catalog, channels_last=True)
    assert plain.unet is same.unet
    assert plain.unet is not switched.unet


def test_compile_is_asked_for_and_offload_needs_a_gpu(catalog: Catalog) -> None:
    # Given a machine that may have no compiler: it is not run
    compiled, offloaded = load(catalog, compile=True), load(catalog, offload="model")
    # Then
    assert compiled.unet._compiled_call_impl is not None
    assert load(catalog).unet._compiled_call_impl is None
    assert call(STAGE, offloaded)[0].tobytes() == call(STAGE, load(catalog))[0].tobytes()


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param({"offload": "model"}, id="model", marks=GPU),
        pytest.param({"offload": "sequential"}, id="sequential", marks=GPU),
        pytest.param({"compile": True}, id="compile", marks=GPU),
        pytest.param(
            {"attention": "xformers"}, id="xformers",
            marks=[*GPU, pytest.mark.skipif(find_spec("xformers") is None, reason="xformers is not installed")],
        ),
    ],
)  # fmt: skip
def test_on_a_gpu_every_switch_gives_the_same_picture_but_for_rounding(
    catalog: Catalog, switches: dict[str, Any]
) -> None:
    # Given
    plain, switched = load(catalog, "cuda"), load(catalog, "cuda", **switches)
    # When
    one, other = (np.asarray(call(STAGE, each)[0], int) for each in (plain, switched))
    # Then
    assert np.abs(one - other).max() <= (0 if "offload" in switches else 2)
    # and what is offloaded has left the device
    if "offload" in switches:
        assert {parameter.device.type for parameter in switched.text_encoder.parameters()} <= {"cpu", "meta"}
