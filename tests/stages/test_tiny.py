"""Is the tiny family complete, the same every time, and worth looking at?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageStat

from farm.catalog import Catalog
from tests.stages.conftest import call
from workers.demo import tiny
from workers.stages.text2img import Text2Img


def test_the_catalog_and_the_family_agree(catalog: Catalog) -> None:
    assert {name for name, entry in catalog.checkpoints.items() if entry.build == "workers.demo.tiny"} == {*tiny.SEEDS}


@pytest.mark.parametrize("name", list(tiny.SEEDS))
def test_building_twice_gives_the_same_bytes(catalog: Catalog, name: str, tmp_path: Path) -> None:
    # Given a built and recorded checkpoint
    built, recorded = catalog.path(catalog.checkpoints[name]), catalog.lock(catalog.checkpoints[name]).files
    # When it is built again elsewhere
    tiny.build(name, tmp_path)
    # Then every file is the same
    again = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert again == set(recorded)
    for file in again:
        assert (tmp_path / file).read_bytes() == (built / file).read_bytes()


def test_one_space_is_one_vae(catalog: Catalog) -> None:
    # Given the recorded hashes of the family's VAEs
    weights = "vae/diffusion_pytorch_model.safetensors"
    by_space: dict[str, set[str]] = {}
    for name in tiny.SEEDS:
        entry = catalog.checkpoints[name]
        if not entry.family.startswith("esrgan"):
            by_space.setdefault(entry.space, set()).add(catalog.lock(entry).files[weights])
    # Then checkpoints of one space share theirs, and spaces do not
    assert all(len(hashes) == 1 for hashes in by_space.values())
    assert len(set.union(*by_space.values())) == len(by_space)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        tiny.build("huge", tmp_path)
    assert not list(tmp_path.iterdir())


def test_pictures_are_neither_flat_nor_clipped(pipe: Callable[..., Any]) -> None:
    # Given pictures with the default parameters
    stage = Text2Img()
    # When some are drawn
    for seed in (1, 2, 3):
        image = call(stage, pipe(stage), seeds=[seed])[0]
        # Then each channel varies, and few pixels lie at the ends
        assert min(ImageStat.Stat(image).stddev) > 15
        histogram = image.histogram()
        ends = sum(histogram[channel * 256] + histogram[channel * 256 + 255] for channel in range(3))
        assert ends < 0.2 * sum(histogram)


def test_known_words_are_one_token(pipe: Callable[..., Any]) -> None:
    # Given the family's tokenizer
    tokenizer = pipe(Text2Img()).tokenizer
    # When words of its vocabulary and others are cut
    # Then they are one token each, others are spelled, and nothing is unknown
    known = [len(tokenizer(word).input_ids) - 2 for word in tiny.WORDS]
    assert set(known) == {1}
    spelled = tokenizer("zürich 東京").input_ids[1:-1]
    assert len(spelled) > 8
    assert tokenizer.eos_token_id not in spelled
    assert tokenizer.decode(spelled) == "zürich 東京"
