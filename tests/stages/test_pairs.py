"""Does every stage run after every other, or is the chain refused before it is submitted?

`python -m tests.stages.test_pairs` prints the table that the README has.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from farm.catalog import Catalog
from farm.chain import parse_chain
from farm.errors import InvalidJob
from farm.plan import plan
from farm.settings import Settings
from farm.stage import Medium, Size
from tests.conftest import TINY
from tests.stages.conftest import call, some_image, some_latents
from workers import pipelines

README = Path(__file__).parents[2] / "README.md"
CLASSES: dict[str, dict[str, Any]] = {
    "text2img · SD": {"kind": "text2img", "checkpoint": "tiny"},
    "text2img · SD 2": {"kind": "text2img", "checkpoint": "tiny-sd2"},
    "text2img · SDXL": {"kind": "text2img", "checkpoint": "tiny-xl"},
    "img2img · SD": {"kind": "img2img", "checkpoint": "tiny"},
    "img2img · SD 2": {"kind": "img2img", "checkpoint": "tiny-sd2"},
    "img2img · SDXL": {"kind": "img2img", "checkpoint": "tiny-xl"},
    "img2img · SDXL refiner": {"kind": "img2img", "checkpoint": "tiny-xl-refiner"},
    "inpaint · SD": {"kind": "inpaint", "checkpoint": "tiny", "mask": "sha256:" + "0" * 64},
    "inpaint · SD 2": {"kind": "inpaint", "checkpoint": "tiny-sd2", "mask": "sha256:" + "0" * 64},
    "inpaint · SDXL": {"kind": "inpaint", "checkpoint": "tiny-xl", "mask": "sha256:" + "0" * 64},
    "depth2img · SD": {"kind": "depth2img", "checkpoint": "tiny-depth"},
    "upscale_latent · SD": {"kind": "upscale_latent", "checkpoint": "tiny-x2"},
    "upscale · SD": {"kind": "upscale", "checkpoint": "tiny-x4"},
    "esrgan": {"kind": "esrgan", "checkpoint": "tiny-esrgan"},
}
"""Each stage kind with each class of checkpoint that it runs."""


def edge(giver: dict[str, Any], taker: dict[str, Any], catalog: Catalog, settings: Settings) -> Any:
    """What passes between two stages, as a plan; or the code of the refusal."""
    stages = [giver, taker]
    first = parse_chain({"stages": [giver]}).stages[0]
    if first.takes and Medium.IMAGE not in first.takes:
        stages = [CLASSES["text2img · SD"], giver, taker]
    size = Size(64, 64) if Medium.IMAGE in first.takes else None
    try:
        return plan(parse_chain({"prompt": "a castle", "stages": stages}), catalog, settings, size)
    except InvalidJob as error:
        return error.errors[0].code


def table() -> str:
    """The README's table: givers down, takers across."""
    settings = Settings(catalog=TINY)
    catalog = Catalog.load(settings)
    rows = [f"| from \\ to | {' | '.join(CLASSES)} |", "|---" * (len(CLASSES) + 1) + "|"]
    for name, giver in CLASSES.items():
        found = [edge(giver, taker, catalog, settings) for taker in CLASSES.values()]
        cells = ["–" if isinstance(each, str) else each[-2].emits.value for each in found]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_readme_has_the_table() -> None:
    assert table() in README.read_text("utf-8")


def test_every_class_of_every_kind_is_in_the_table(family: Catalog) -> None:
    from farm.stage import kinds

    known = {(kind, of) for kind, cls in kinds().items() for of in getattr(cls, "by_family", {"esrgan-x4": ""})}
    told = {(each["kind"], family.checkpoints[each["checkpoint"]].family) for each in CLASSES.values()}
    assert told == known


@pytest.mark.parametrize(("giver", "taker"), list(product(CLASSES, CLASSES)))
def test_a_pair_works_or_is_refused(giver: str, taker: str, family: Catalog, settings: Settings) -> None:
    # Given two stages in a row
    quick = {"num_inference_steps": 2}
    one, two = (each | (quick if each["kind"] != "esrgan" else {}) for each in (CLASSES[giver], CLASSES[taker]))
    planned = edge(one, two, family, settings)
    # When it is refused, the reason is one of these
    if isinstance(planned, str):
        assert planned in {"medium_mismatch", "space_mismatch"}
        return
    # Else what the first emits is what the second runs on
    given: Any = some_image(64)
    for item in planned[-2:]:
        start = {Medium.LATENTS: some_latents(), Medium.IMAGE: given, None: None}[item.takes]
        given = start if item is planned[-2] else given
        pipe = item.stage.load(pipelines.files_of(family, item.checkpoint), "cpu")
        (given,) = call(item.stage, pipe, [given], emits=item.emits, size=item.size)
    assert given.size == planned[-1].size


if __name__ == "__main__":
    print(table())
