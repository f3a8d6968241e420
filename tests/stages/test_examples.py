"""Does every example chain run, on small checkpoints of the same classes?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from farm.catalog import Catalog
from farm.client import Farm
from farm.plan import plan
from farm.settings import Settings
from farm.stage import Medium, Size
from tests.stages.conftest import call, some_image
from workers import pipelines
from workers.adapters import files_of

EXAMPLES = sorted((Path(__file__).parents[2] / "farm/examples").glob("*.yaml"))
LIKE = {
    ("sd", "text2img"): "tiny", ("sd", "img2img"): "tiny", ("sd", "inpaint"): "tiny-inpaint",
    ("sd", "upscale_latent"): "tiny-x2", ("sd", "upscale"): "tiny-x4", ("sd2-depth", "depth2img"): "tiny-depth",
    ("sdxl", "text2img"): "tiny-xl", ("sdxl", "inpaint"): "tiny-xl", ("sdxl-refiner", "img2img"): "tiny-xl-refiner",
}  # fmt: skip
ADAPTER_LIKE = {"controlnet": "tiny-canny", "lora": "tiny-lora", "ip_adapter": "tiny-ip", "vae": "tiny-vae"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, family: Catalog, tmp_path: Path, s3_settings: Settings) -> None:
    # Given the farm's own catalog with small sizes, and the images that the chain names
    own = Catalog.load(Settings(catalog=None, models=tmp_path / "models"))
    small = {name: entry.model_copy(update={"native": 64}) for name, entry in own.checkpoints.items()}
    catalog = own.model_copy(update={"checkpoints": small})
    for name in ("mask", "depth", "reference", "pose", "landscape"):
        some_image(96).save(tmp_path / f"{name}.png")
    (tmp_path / path.name).write_text(path.read_text().replace("128", "16"))
    farm = Farm(s3_settings)
    farm.__dict__["catalog"] = catalog
    # When it is planned as a submit would
    chain = farm.chain(tmp_path / path.name, steps=10)
    size = Size(64, 64) if chain.stages[0].takes else None
    chain, fresh = farm.fitted(chain, size)
    planned = plan(chain, catalog, s3_settings, size)
    assert len(fresh) == sum(len(stage.uploads()) for stage in chain.stages)
    # Then every stage runs, on small weights of the same class, on what the stage before it emits
    given: Any = some_image(64) if size else None
    for item in planned:
        like = family.checkpoints[LIKE[item.checkpoint.family, item.stage.kind]]
        files = {name: files_of(family, family.adapters[ADAPTER_LIKE[catalog.adapters[name].type]])
                 for name, _ in item.stage.adapters().values()}  # fmt: skip
        pipe = item.stage.load(pipelines.files_of(family, like), "cpu")
        (given,) = call(item.stage, pipe, [given], emits=item.emits, size=item.size, files=files)
        assert (item.emits is Medium.IMAGE) == isinstance(given, Image.Image)
    assert given.size == planned[-1].size
