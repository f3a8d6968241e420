"""Has every sample of a dataset the same parameters of the same kinds, whatever its row gave?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from farm.catalog import Catalog
from farm.client import Farm
from farm.dataset.parameters import as_kind, kinds_of, values_of
from farm.dataset.planning import Planner, plan_rows
from farm.dataset.sharding import ShardWriter, schema
from farm.dataset.spec import DatasetSpec, Row, RowError
from farm.dataset.tars import entries
from farm.dataset.wildcards import Wildcards
from farm.settings import Settings
from tests.dataset.farms import CHAIN
from tests.dataset.made import LONG, Maker
from tests.dataset.test_planning import no_picture


def planned(farm: Farm, folder: Path, rows: list[Mapping[str, Any]], **asked: Any) -> dict[str, str]:
    """The kinds of the parameters of a plan of these rows."""
    spec = DatasetSpec.model_validate({"name": "some", "chain": CHAIN, **asked})
    planner = Planner(farm, spec, Wildcards(), no_picture, text=False)
    given: list[Row | RowError] = [Row(number, row) for number, row in enumerate(rows, 1)]
    return dict(plan_rows(planner, spec, given, folder, {}, partial=True)[0].parameters)


@pytest.fixture
def farm(family: Catalog, settings: Settings) -> Farm:
    return Farm(settings.model_copy(update={"models": family.models_dir}))


def test_axes_and_columns_that_give_one_are_parameters(farm: Farm, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "steps": 2, "label": "x", "cfg": 7}, {"prompt": "b", "label": "y", "cfg": 7.5}]
    found = planned(
        farm, tmp_path, rows, columns={"guidance_scale": "cfg"},
        sweep=[{"seed": [1, 2]}, {"1.strength": [0.5, 1]}, {"fit": ["cover", "contain"], "reuse": [True, False]}],
    )  # fmt: skip
    # Then neither prompt, seed nor other columns are among them, and a whole number is one of a field of numbers
    assert found == {
        "1.strength": "number", "fit": "text", "guidance_scale": "number", "reuse": "truth", "steps": "integer",
    }  # fmt: skip


def test_a_number_that_some_rows_leave_open_is_text(farm: Farm, tmp_path: Path) -> None:
    with_, without = {"prompt": "a", "clip_skip": 1, "width": 64, "1.seed": 5}, {"prompt": "b"}
    assert planned(farm, tmp_path, [with_, with_]) == {"1.seed": "integer", "clip_skip": "integer", "width": "integer"}
    assert planned(farm, tmp_path, [without, with_]) == {"1.seed": "integer", "clip_skip": "text", "width": "integer"}
    # And a row that is left out counts for nothing
    found = planned(farm, tmp_path, [with_, {"prompt": "c", "steps": -1}, with_], sweep=[{"1.strength": [0.5, 0.6]}])
    assert found["clip_skip"] == "integer"
    assert "steps" not in found


def test_what_a_row_gives_no_value_has_the_one_that_it_ran_with(tmp_path: Path) -> None:
    # Given samples of which one gives all and one nothing
    chain = {**LONG, "fit": "contain"}
    maker = Maker(tmp_path, chain=chain)
    full = {
        "steps": 7, "1.strength": 0.25, "scheduler": "DPM++ 2M Karras", "width": 72, "height": 64, "1.seed": 3,
        "checkpoint": "tiny", "fit": "cover", "reuse": False, "clip_skip": 1, "1.prompt": "a fig", "exact": True,
        "loras": [],
    }  # fmt: skip
    kinds = kinds_of(maker.spec, dict.fromkeys(full, 1), 2)
    assert [*kinds] == sorted(full)
    pictures = [maker.picture(0, changes=full), maker.picture(1)]
    # When
    first, second = (values_of(one.sample, maker.spec, kinds, one.recipes) for one in pictures)
    # Then the first has what it gave, by the words that it gave it in
    assert first == {name: as_kind(kinds[name], value) for name, value in full.items()}
    assert (first["scheduler"], first["loras"], first["clip_skip"]) == ("DPM++ 2M Karras", "[]", "1")
    # And the second what the chain and the checkpoint came to
    assert second == {
        "steps": 5, "1.strength": 0.5, "scheduler": "", "width": 64, "height": 64,
        "1.seed": pictures[1].recipes[1]["seed"], "checkpoint": "tiny", "fit": "contain", "reuse": True,
        "clip_skip": "", "1.prompt": "pear no. 1", "exact": False, "loras": "[]",
    }  # fmt: skip
    assert {name: type(value) for name, value in first.items()} == {name: type(value) for name, value in second.items()}


def test_the_size_is_that_of_what_a_stage_was_given(tmp_path: Path) -> None:
    chain = {"stages": [{"kind": "img2img", "strength": 0.5}, {"kind": "esrgan"}]}
    spec = DatasetSpec(name="some", chain=chain)
    recipe = {
        "kind": "img2img", "parameters": {"strength": 0.5}, "checkpoint": {"name": "tiny"}, "seed": 1,
        "given": {"image": "0" * 64}, "size": [96, 64],
    }  # fmt: skip
    kinds = kinds_of(spec, {"width": 1}, 2)
    sample = Maker(tmp_path).sample(0)
    assert values_of(sample, spec, kinds, [recipe]) == {"width": 96}


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("number", 7, 7.0), ("integer", 7, 7), ("truth", True, True), ("text", "a", "a"), ("text", None, ""),
        ("text", 0.5, "0.5"), ("text", [1, 2], "[1,2]"), ("text", {"b": 1}, '{"b":1}'),
    ],
)  # fmt: skip
def test_values_are_of_their_kind(kind: Any, value: Any, told: Any) -> None:
    found = as_kind(kind, value)
    assert (found, type(found)) == (told, type(told))


def test_a_shard_has_them_in_json_and_table(tmp_path: Path) -> None:
    # Given
    kinds = {"1.strength": "number", "steps": "integer", "vae": "text", "vae_tiling": "truth"}
    maker = Maker(tmp_path, chain=LONG)
    pictures = [maker.picture(i, changes={"steps": 2 + i, "1.strength": 1, "vae_tiling": True}) for i in range(3)]
    shard = maker.shard(tmp_path / "out", pictures, parameters=kinds)  # type: ignore[arg-type]
    # Then
    told = [{"1.strength": 1.0, "steps": 2 + i, "vae": "", "vae_tiling": True} for i in range(3)]
    with entries(shard.tar) as found:
        assert [entry.known()["parameters"] for entry in found] == told
    table = pq.read_table(shard.parquet)
    assert table["parameters"].to_pylist() == told
    assert table.schema == schema((), kinds)  # type: ignore[arg-type]
    assert [field.type for field in table.schema.field("parameters").type] == [
        pa.float64(), pa.int64(), pa.string(), pa.bool_(),
    ]  # fmt: skip
    # And a later try of it keeps them
    (tmp_path / "again").mkdir()
    with ShardWriter(tmp_path / "again", 0, maker.spec, (), kinds) as writer:  # type: ignore[arg-type]
        writer.add(pictures[2])
        writer.keep(shard.tar)
        again = writer.finish([])
    assert again.facts == shard.facts
