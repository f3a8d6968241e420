"""On an accelerator: `pytest -m gpu`. Every stage twice with the same seed, and near what the CPU makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from farm.catalog import Catalog
from farm.stage import Medium, Stage
from tests.stages.conftest import DEFAULTS, EVERY, call, same
from workers import pipelines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("stage", "given", "emits"), EVERY.values(), ids=EVERY)
def test_every_stage_repeats_itself_on_the_device(
    catalog: Catalog, pipe: Any, stage: Stage, given: Any, emits: Medium
) -> None:
    # Given the pipeline on the device
    checkpoint = catalog.checkpoints[stage.checkpoint or DEFAULTS[stage.kind]]
    there = stage.load(pipelines.files_of(catalog, checkpoint), "cuda")
    # When it runs twice there, and once on the CPU, with the same noise
    (first,), (second,) = (call(stage, there, [given], emits=emits) for _ in range(2))
    (here,) = call(stage, pipe(stage), [given], emits=emits)
    # And once with one model at a time on the device
    (spared,) = call(stage, there, [given], emits=emits, frugal=True)
    # Then the device agrees with itself to the bit, and with the CPU but for rounding
    assert same(first, second)
    assert same(first, spared)
    assert next(getattr(there, "unet", there).parameters()).device.type == "cuda"
    if emits is Medium.LATENTS:
        assert torch.allclose(first.cpu(), here, atol=5e-2)
    else:
        assert first.size == here.size
