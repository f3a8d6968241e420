"""Does depth guide the drawing, estimated or given?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from farm.catalog import Catalog
from tests.stages.conftest import call, same, some_image
from workers import pipelines
from workers.stages.depth2img import Depth2Img


def test_a_given_map_takes_the_place_of_the_estimate(pipe: Callable[..., Any]) -> None:
    plain, mapped = Depth2Img(num_inference_steps=5), Depth2Img(num_inference_steps=5, depth="d")
    estimated, given = (call(stage, pipe(stage), [some_image()])[0] for stage in (plain, mapped))
    assert not same(estimated, given)


def test_an_old_checkpoint_whose_processor_has_another_name_now_is_loaded(
    tmp_path: Path, catalog: Catalog, pipe: Callable[..., Any]
) -> None:
    # Given an index and a processor as stable-diffusion-2-depth has them
    folder, stage = tmp_path / "old", Depth2Img(num_inference_steps=5)
    shutil.copytree(catalog.path(catalog.checkpoints["tiny-depth"]), folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "DPTFeatureExtractor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    path = folder / "feature_extractor" / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    del settings["image_processor_type"]
    path.write_text(json.dumps({**settings, "feature_extractor_type": "DPTFeatureExtractor"}))
    # When
    files = pipelines.Files("old", folder, False, None, None, "float32", "tiny", "sd2-depth")
    (made,) = call(stage, stage.load(files, "cpu"), [some_image()])
    # Then
    assert same(made, call(stage, pipe(stage), [some_image()])[0])
