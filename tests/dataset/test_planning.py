"""Are the samples of rows the ones that are meant, and is every row that is not possible named?"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ReadTimeoutError
from pydantic import SecretStr

from farm.catalog import Catalog
from farm.client import Farm
from farm.dataset import axes
from farm.dataset.asking import Asked, Stopped, ask, carry_out, carry_out_apart, is_asked
from farm.dataset.desk import Datasets
from farm.dataset.drafts import Planned
from farm.dataset.folder import Folder
from farm.dataset.images import Images
from farm.dataset.moulds import Moulds
from farm.dataset.planning import Refused, plan_rows
from farm.dataset.plans import Plan, read_sample
from farm.dataset.reading import rows
from farm.dataset.samples import Planner
from farm.dataset.seats import Seats
from farm.dataset.serve import Planning
from farm.dataset.sources import source_of
from farm.dataset.spec import DatasetSpec, Row, RowError, Sample, sample_id
from farm.dataset.wildcards import Wildcards
from farm.errors import Conflict, InvalidJob, NotFound
from farm.servers import environment
from farm.settings import Settings
from farm.store import Store
from tests.api.conftest import picture
from tests.conftest import free_port, own_bucket
from tests.dataset.farms import CHAIN
from tests.e2e.rig import until

REDRAW = {"stages": [{"kind": "img2img", "checkpoint": "tiny", "strength": 0.5}]}


@pytest.fixture
def farm(family: Catalog, settings: Settings) -> Farm:
    """A farm that is only asked what is possible."""
    return Farm(settings.model_copy(update={"models": family.models_dir}))


@pytest.fixture
def stocked(farm: Farm, s3_settings: Settings) -> Iterator[Farm]:
    """The same with a bucket of its own, and nobody who works."""
    reached = {name: getattr(s3_settings, name) for name in ("bucket", "s3_endpoint", "s3_access_key", "s3_secret_key")}
    found = Farm(farm.settings.model_copy(update=reached))
    with own_bucket(found.store):
        yield found


def samples_of(farm: Farm, values: Mapping[str, Any], *, text: bool = False, **asked: Any) -> list[Sample]:
    """What one row means."""
    spec = DatasetSpec.model_validate({"name": "some", "chain": CHAIN, **asked})
    wildcards = Wildcards({"animal": ("cat", "dog")})
    return Planner(farm, spec, wildcards, no_picture, text=text).samples(Row(7, values), 0)


def no_picture(cell: Any) -> Any:
    raise AssertionError(f"nobody names an image, but {cell}")


def wrongs(call: Callable[[], object]) -> list[tuple[str, str]]:
    """Where and how something is refused."""
    with pytest.raises(InvalidJob) as caught:
        call()
    return [(one.loc, one.code) for one in caught.value.errors] or [("", caught.value.code)]


# ---------------------------------------------------------------------------------------------------- what a row means


def test_a_column_gives_what_it_is_called_and_others_go_along(farm: Farm) -> None:
    (made,) = samples_of(
        farm,
        {
            "prompt": "a fig",
            "negative_prompt": "blur",
            "seed": "9",
            "steps": "3",
            "1.strength": "0.75",
            "label": "x",
        },
        text=True,
    )
    assert (made.prompt, made.negative_prompt, made.seed) == ("a fig", "blur", 9)
    assert made.changes == {"steps": 3, "1.strength": 0.75}
    assert made.columns == {"label": "x"}


def test_the_spec_says_which_column_gives_what(farm: Farm) -> None:
    (made,) = samples_of(
        farm, {"caption": "a fig", "prompt": "another text", "s": 0.75},
        columns={"prompt": "caption", "1.strength": "s"},
    )  # fmt: skip
    assert (made.prompt, made.changes) == ("a fig", {"1.strength": 0.75})
    assert made.columns == {"prompt": "another text"}, "it gives no prompt, so it goes along"


def test_what_a_row_leaves_out_is_the_chains(farm: Farm) -> None:
    chain = {**CHAIN, "prompt": "a plum", "negative_prompt": "grey"}
    (made,) = samples_of(farm, {"label": 3}, chain=chain)
    assert (made.prompt, made.negative_prompt, made.columns) == ("a plum", "grey", {"label": "3"})


def test_axes_multiply_and_share_the_seed_unless_it_is_swept(farm: Farm) -> None:
    axes = [{"1.strength": [0.5, 0.6]}, {"steps": [2, 3], "guidance_scale": [5.0, 7.5]}]
    made = samples_of(farm, {"prompt": "a fig"}, sweep=axes)
    assert [(one.changes["1.strength"], one.changes["steps"], one.changes["guidance_scale"]) for one in made] == [
        (0.5, 2, 5.0), (0.5, 3, 7.5), (0.6, 2, 5.0), (0.6, 3, 7.5),
    ]  # fmt: skip
    assert [one.variant for one in made] == [0, 1, 2, 3]
    assert len({one.seed for one in made}) == 1
    assert [one.seed for one in samples_of(farm, {"prompt": "a fig"}, sweep=[{"seed": [4, 2]}])] == [4, 2]


def test_ids_and_seeds_follow_from_dataset_row_and_variant(farm: Farm) -> None:
    first, again = (samples_of(farm, {"prompt": "a fig"}) for _ in range(2))
    assert first == again
    others = [samples_of(farm, {"prompt": "a fig"}, name="other"), samples_of(farm, {"prompt": "a fig"}, seed=1)]
    assert len({made[0].seed for made in (first, *others)}) == 3
    assert len({sample_id(name, row, variant) for name in "ab" for row in (1, 2, 11) for variant in (0, 1, 12)}) == 18


@pytest.mark.parametrize(
    ("how", "prompts"),
    [
        ({"templates": "all"}, ["a red cat", "a red dog", "a blue cat", "a blue dog"]),
        ({"templates": "off"}, ["a {red|blue} __animal__"]),
    ],
)
def test_a_template_means_its_prompts(farm: Farm, how: dict[str, Any], prompts: list[str]) -> None:
    made = samples_of(farm, {"prompt": "a {red|blue} __animal__"}, **how)
    assert [one.prompt for one in made] == prompts
    assert how["templates"] == "off" or made[1].choices == ("red", "dog")


def test_prompts_are_drawn_alike_each_time_and_not_from_row_to_row(farm: Farm) -> None:
    spec = DatasetSpec(name="some", chain=CHAIN, templates="random", variants=8)
    planner = Planner(farm, spec, Wildcards(), no_picture, text=False)
    template = {"prompt": "{1|2|3|4|5|6|7|8|9}{1|2|3|4|5|6|7|8|9}"}
    first, again, other = (planner.samples(Row(row, template), 0) for row in (1, 1, 2))
    assert first == again
    assert [one.prompt for one in first] != [one.prompt for one in other]
    assert len({one.seed for one in first}) == 8, "each draw has a seed of its own"


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("values", "where", "code"),
    [
        ({"prompt": 7}, "prompt", "invalid_field"),
        ({"prompt": "x" * 2001}, "prompt", "invalid_field"),
        ({"prompt": "bell \x07"}, "prompt", "invalid_field"),
        ({"prompt": "half \ud800"}, "prompt", "invalid_field"),
        ({"prompt": "a", "seed": "first"}, "seed", "invalid_field"),
        ({"prompt": "a", "seed": -1}, "seed", "invalid_field"),
        ({"prompt": "a", "seed": 2**53}, "seed", "invalid_field"),
        ({"prompt": "a", "seed": 1.5}, "seed", "invalid_field"),
        ({"prompt": "a", "seed": True}, "seed", "invalid_field"),
        ({"prompt": "a", "1.strength": 2}, "stages.1.strength", "invalid_field"),
        ({"prompt": "a", "strength": "much"}, "stages.1.strength", "invalid_field"),
        ({"prompt": "a", "width": 65}, "stages.0.width", "bad_size"),
        ({"prompt": "a", "1.strength": 0.1}, "stages.1.strength", "no_steps"),
        ({"prompt": "a", "scheduler": "fastest"}, "stages.0.scheduler", "unknown_scheduler"),
    ],
)
def test_a_row_that_is_not_possible_says_why(farm: Farm, values: dict[str, Any], where: str, code: str) -> None:
    assert (where, code) in wrongs(lambda: samples_of(farm, values))


def test_rows_without_a_prompt_are_told_unless_the_chain_has_one(farm: Farm) -> None:
    assert wrongs(lambda: samples_of(farm, {"caption": "a fig"})) == [("prompt", "unknown_column")]
    assert samples_of(farm, {"caption": "a fig"}, columns={"prompt": "caption"})[0].prompt == "a fig"
    assert samples_of(farm, {"caption": "a fig"}, chain={**CHAIN, "prompt": ""})[0].prompt == ""
    assert samples_of(farm, {"caption": "a fig"}, sweep=[{"prompt": ["a", "b"]}])[1].prompt == "b"


def test_whole_numbers_that_gaps_made_floats_are_seeds(farm: Farm) -> None:
    assert samples_of(farm, {"prompt": "a", "seed": 42.0})[0].seed == 42


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"columns": {"colour": "c"}}, "columns.colour"),
        ({"columns": {"prompt": "a", "seed": "a"}}, "columns"),
        ({"sweep": [{"colour": [1]}]}, "sweep.colour"),
        ({"sweep": [{"seed": list(range(2000))}]}, "sweep"),
        ({"sweep": [{"seed": []}]}, "sweep.0"),
    ],
)
def test_a_spec_that_means_nothing_is_refused(farm: Farm, asked: dict[str, Any], where: str) -> None:
    assert where in [loc for loc, _ in wrongs(lambda: samples_of(farm, {"prompt": "a"}, **asked))]


def test_a_row_that_means_too_much_is_refused(farm: Farm) -> None:
    bomb = {"prompt": "{a|b}" * 40}
    with pytest.raises(InvalidJob):
        samples_of(farm, bomb, templates="all")
    with pytest.raises(InvalidJob, match="at most 4") as caught:
        samples_of(farm, {"prompt": "a"}, templates="random", variants=5, per_row=4)
    assert caught.value.errors[0].loc == "prompt"


# ---------------------------------------------------------------------------------------------------- a whole file


def planned(farm: Farm, path: Path, name: str = "some", **asked: Any) -> Planned:
    return Datasets(farm).plan(source_of(path), name, asked.pop("chain", CHAIN), folder=path.parent, **asked)


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_all_or_nothing(stocked: Farm, tmp_path: Path) -> None:
    # Given a file with two wrong rows
    path = table(tmp_path / "a.csv", "prompt,seed", "a fig,1", "a plum,-3", "a pear", "a lime,4")
    # When it is planned
    with pytest.raises(Refused) as caught:
        planned(stocked, path)
    # Then each is named by row, column and code, and there is nothing
    assert [(one.row, one.column, one.code) for one in caught.value.rows] == [
        (2, "seed", "invalid_field"), (3, "", "bad_row"),
    ]  # fmt: skip
    assert [one.loc for one in caught.value.errors] == ["rows.2.seed", "rows.3"]
    assert caught.value.code == "bad_rows"
    assert (caught.value.message, caught.value.hint) == (
        "2 of the file's 4 rows cannot be taken", "mend them, or leave them out (partial)",
    )  # fmt: skip
    assert not Folder(stocked.store, "some").names("")
    # Unless the others are asked for
    found = planned(stocked, path, partial=True)
    assert (found.plan.rows, found.plan.rejected, found.plan.samples) == (2, 2, 2)
    assert [sample.row for sample in Folder(stocked.store, "some").samples(0)] == [1, 4]


def test_of_many_wrong_rows_the_first_hundred_are_named(stocked: Farm, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "prompt,seed", *(f"a,x{number}" for number in range(250)))
    with pytest.raises(Refused) as caught:
        planned(stocked, path, partial=True)
    assert (len(caught.value.errors), caught.value.count) == (100, 250)
    # And nobody is told to leave out what would leave nothing
    assert caught.value.message == "none of the file's rows can be taken"
    assert caught.value.hint == (
        "these are the first 100 of 250 wrong rows; mend them: there is no other row to be planned"
    )


def test_a_mapped_column_that_the_file_lacks_is_told_at_once(stocked: Farm, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "prompt,label", "a,b")
    with pytest.raises(InvalidJob, match="no column 'caption'") as caught:
        planned(stocked, path, columns={"prompt": "caption"})
    assert caught.value.errors[0].code == "unknown_column"


def test_a_second_try_is_the_same_dataset_and_another_one_is_refused(stocked: Farm, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "prompt", *(f"number {number}" for number in range(10)))
    first = planned(stocked, path, shard_samples=4)
    again = planned(stocked, path, shard_samples=4)
    assert (first.fresh, again.fresh) == (True, False)
    assert first.plan == again.plan
    with pytest.raises(Conflict, match=r"another dataset of this name already: with other shard_samples$"):
        planned(stocked, path, shard_samples=5)
    # Also where nothing but a column has another name
    renamed = table(tmp_path / "b.csv", "caption", *(f"number {number}" for number in range(10)))
    with pytest.raises(Conflict, match=r"already: of another file, a\.csv and with other columns, shard_samples$"):
        planned(stocked, renamed, columns={"prompt": "caption"})
    with pytest.raises(Conflict, match="another dataset"):
        planned(stocked, table(path, "prompt", "number 0"), shard_samples=4)
    # And of somebody else's no more is told than that it is there
    with pytest.raises(Conflict, match=r"another dataset of this name already$"):
        planned(stocked, path, shard_samples=5, owner="ada")


def test_a_planning_that_broke_off_leaves_nothing_that_counts(stocked: Farm, tmp_path: Path) -> None:
    # Given what a planning of more and other samples had written when it was killed
    folder, path = Folder(stocked.store, "some"), table(tmp_path / "a.csv", "prompt", "a fig", "a plum", "a pear")
    for number in range(3):
        folder.write(f"plan/{'0' * 16}/{number:05d}.jsonl.gz", gzip.compress(b"{}"))
    with pytest.raises(NotFound):
        folder.plan()
    # When it is planned again
    plan = planned(stocked, path, shard_samples=2).plan
    # Then it is as if nothing had been
    assert folder.names("") == ["plan.json", plan.path_of(0), plan.path_of(1)]
    assert [sample.prompt for sample in (*folder.samples(0), *folder.samples(1))] == ["a fig", "a plum", "a pear"]


def test_the_plan_says_what_it_comes_to(stocked: Farm, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "prompt,label,width", "a fig,x,64", "a plum,y,128")
    found = planned(stocked, path, sweep=[{"seed": [1, 2]}], shard_samples=3)
    plan = found.plan
    assert (plan.samples, plan.shards, plan.samples_of(0), plan.samples_of(1)) == (4, 2, 3, 1)
    assert plan.sizes == ((64, 64), (128, 64))
    assert found.size_bytes_most == 4 * 128 * 64 * 3
    assert plan.columns == ("label",)
    assert plan.source["name"] == "a.csv"
    assert [one["name"] for one in plan.checkpoints] == ["tiny"]
    assert [sample.key for sample in found.first] == ["000000000", "000000001", "000000002"]


@pytest.mark.parametrize(("then", "now"), [("off", "refuse"), ("tag", "off")])
def test_the_card_tells_the_safety_policy_of_the_plan(stocked: Farm, tmp_path: Path, then: str, now: str) -> None:
    # Given what was planned under one policy
    given = {"safety_checker": "tiny-lax"}
    farms = [Farm(stocked.settings.model_copy(update={**given, "safety": policy})) for policy in (then, now)]
    planned(farms[0], table(tmp_path / "a.csv", "prompt", "a fig"))
    # When the farm has another one, Then the card says what these pictures go through
    assert f"policy was `{then}`" in Datasets(farms[1]).card("some")


def relocked(farm: Farm, tmp_path: Path, name: str) -> Farm:
    """The same farm after other files of these weights were pulled."""
    shutil.copytree(farm.settings.models_dir, tmp_path / "models")
    found = Farm(farm.settings.model_copy(update={"models": tmp_path / "models"}))
    path = found.catalog.lock_path({**found.catalog.checkpoints, **found.catalog.adapters}[name])
    told = json.loads(path.read_text())
    told["files"] = dict.fromkeys(told["files"], "0" * 64)
    path.write_text(json.dumps(told))
    return found


def test_adapters_are_of_the_plan_as_checkpoints_are(stocked: Farm, tmp_path: Path) -> None:
    # Given a plan of which only some rows have adapters
    chain = {"stages": [{**CHAIN["stages"][0], "loras": [{"name": "tiny-lora"}]}]}
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a fig", "loras": [{"name": "tiny-lora-2"}]}\n{"prompt": "a pear", "loras": []}\n')
    plan = planned(stocked, path, chain=chain).plan
    assert [one["name"] for one in plan.adapters] == ["tiny-lora-2"]
    assert set(plan.adapters[0]) == {"name", "build", "licence", "family", "manifest"}
    # Then the card names them with their licence
    assert "| tiny-lora-2 | built by workers.demo.tiny |" in Datasets(stocked).card("some")
    # When they are other files by now, Then nothing is made with them
    farm, changes = relocked(stocked, tmp_path, "tiny-lora-2"), {"loras": [{"name": "tiny-lora-2"}]}
    assert Moulds(stocked, plan.spec, plan=plan).of(changes)
    with pytest.raises(Conflict, match="the adapter tiny-lora-2 is not the one"):
        Moulds(farm, plan.spec, plan=plan).of(changes)
    assert Moulds(farm, plan.spec, plan=plan).of({"loras": []})
    # And of a plan that an earlier build made, which names none, nothing is said
    assert Moulds(farm, plan.spec, plan=earlier(plan)).of(changes)
    # And asked for once more it is the same one
    folder = Folder(stocked.store, "some")
    folder.write("plan.json", earlier(plan).model_dump_json(exclude_unset=True).encode())
    assert not planned(stocked, path, chain=chain).fresh


def earlier(plan: Plan) -> Plan:
    """A plan as builds wrote it that knew nothing of adapters, sizes in bytes, and policies."""
    return Plan.model_validate_json(plan.model_dump_json(exclude={"adapters", "sample_bytes", "safety"}))


@pytest.mark.parametrize(("then", "now"), [("off", "refuse"), ("refuse", "off"), ("tag", "blur")])
def test_under_another_policy_nothing_is_made(stocked: Farm, tmp_path: Path, then: str, now: str) -> None:
    # Given what was planned under one policy
    given = {"safety_checker": "tiny-lax"}
    before, after = (Farm(stocked.settings.model_copy(update={**given, "safety": policy})) for policy in (then, now))
    plan = planned(before, table(tmp_path / "a.csv", "prompt", "a fig")).plan
    (sample,) = Folder(stocked.store, "some").samples(0)
    assert Moulds(before, plan.spec, plan=plan).job(sample, 0, 50, 1.0)
    # When the farm has another one, Then what the card says of it would not be true
    with pytest.raises(Conflict, match=f"is {now}, and the dataset was planned under {then}") as caught:
        Moulds(after, plan.spec, plan=plan).job(sample, 0, 50, 1.0)
    assert f"FARM_SAFETY={then}" in caught.value.hint
    assert Moulds(after, plan.spec, plan=earlier(plan)).job(sample, 0, 50, 1.0)


def test_the_largest_of_many_sizes_and_what_is_kept_count(stocked: Farm, tmp_path: Path) -> None:
    # Given rows of more sizes than a plan tells, of which the last one is the largest
    sides = [8 * number for number in range(8, 20)]
    rows = [f"a fig,{width},{height}" for width in sides for height in sides]
    path = table(tmp_path / "a.csv", "prompt,width,height", *rows)
    # When
    found = planned(stocked, path, store=False)
    # Then
    assert (len(found.plan.sizes), found.size_bytes_most) == (100, len(rows) * 3 * 152 * 152)
    # And kept pictures and latents count, as they are stored
    one = table(tmp_path / "b.csv", "prompt,width,height", "a fig,128,128")
    space = stocked.catalog.spaces["tiny"]
    latents = 4 * space.channels * (128 // space.factor) ** 2
    for keep, most in ((("base",), 6 * 128 * 128), (("latents",), 3 * 128 * 128 + latents)):
        assert planned(stocked, one, store=False, keep=keep).size_bytes_most == most
    # And what an earlier build planned is told as it was
    assert replace(found, plan=earlier(found.plan)).size_bytes_most == len(rows) * max(
        3 * width * height for width, height in found.plan.sizes
    )


def test_a_dry_run_stores_nothing(stocked: Farm, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(picture())
    path = table(tmp_path / "a.csv", "prompt,image", "a fig,one.png")
    assert planned(stocked, path, chain=REDRAW, store=False).plan.samples == 1
    # Nor the images that the chain's stages name, as files or as bytes
    for mask in (str(tmp_path / "white.png"), picture("white")):
        (tmp_path / "white.png").write_bytes(picture("white"))
        stage = {"kind": "inpaint", "checkpoint": "tiny", "mask": mask, "num_inference_steps": 2, "strength": 0.5}
        assert planned(stocked, path, chain={"stages": [stage]}, store=False).plan.samples == 1
    assert stocked.store.client.list_objects_v2(Bucket=stocked.store.bucket)["KeyCount"] == 0


def test_rows_name_input_images(stocked: Farm, tmp_path: Path) -> None:
    # Given files beside the table, and one that is stored
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        (tmp_path / name).write_bytes(picture(colour))
    stored = stocked.upload(picture("green"))
    path = table(tmp_path / "a.csv", "prompt,image", "a,red.png", "b,blue.png", f"c,{stored}", "d,red.png")
    # When
    planned(stocked, path, chain=REDRAW)
    # Then each sample names a stored image
    made = Folder(stocked.store, "some").samples(0)
    assert len({one.image for one in made}) == 3
    assert made[0].image == made[3].image
    assert all(stocked.store.exists(one.image) and one.image_size == (64, 64) for one in made)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("none.png", "none.png"),
        ("text.png", "no picture that can be read"),
        ("s3://elsewhere/x.png", "own bucket"),
        ("sha256:" + "0" * 64, "no such image is stored"),
        ("sha256:../../etc", "no such image is stored"),
    ],
)
def test_an_image_that_is_none_is_told_by_row(stocked: Farm, tmp_path: Path, cell: str, told: str) -> None:
    (tmp_path / "text.png").write_text("no picture")
    path = table(tmp_path / "a.csv", "prompt,image", f"a,{cell}")
    with pytest.raises(Refused) as caught:
        planned(stocked, path, chain=REDRAW)
    (wrong,) = caught.value.rows
    assert (wrong.row, wrong.column) == (1, "image")
    assert wrong.code in ("bad_image", "bad_file")


def test_no_file_elsewhere_is_read_as_an_image(stocked: Farm, tmp_path: Path) -> None:
    # Given a table, pictures in its folder, and one that lies elsewhere, also by a link
    beside, elsewhere = tmp_path / "table", tmp_path / "mine.png"
    (beside / "more").mkdir(parents=True)
    for path in (elsewhere, beside / "a.png", beside / "more" / "b.png"):
        path.write_bytes(picture())
    (beside / "link.png").symlink_to(elsewhere)
    # When, Then
    for cell in ("../mine.png", str(elsewhere), "more/../../mine.png", "link.png"):
        with pytest.raises(Refused) as caught:
            planned(stocked, table(beside / "a.csv", "prompt,image", f"a,{cell}"), chain=REDRAW, store=False)
        (told,) = caught.value.rows
        assert (told.column, told.code, "outside of the table's folder" in told.message) == ("image", "bad_image", True)
    for cell in ("a.png", "more/b.png", "more/../a.png", str(beside / "a.png")):
        assert planned(stocked, table(beside / "a.csv", "prompt,image", f"a,{cell}"), chain=REDRAW, store=False)


def test_a_chain_that_needs_an_image_says_so_of_rows_without(stocked: Farm, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        planned(stocked, table(tmp_path / "a.csv", "prompt", "a fig"), chain=REDRAW)
    assert caught.value.rows[0].code == "no_image"


def test_samples_survive_being_written(stocked: Farm, tmp_path: Path) -> None:
    rng = random.Random(3)
    spec = DatasetSpec(name="some", chain=CHAIN, shard_samples=3)
    planner = Planner(stocked, spec, Wildcards(), no_picture, text=False)
    given = [
        Row(number, {"prompt": "".join(rng.choices('añ中"\\\n,\t😀', k=9)), "steps": 2, "x": {"a": [None, 1.5]}})
        for number in range(1, 8)
    ]
    plan, _ = plan_rows(planner, spec, given, tmp_path, {})
    read = [
        read_sample(line)
        for number in range(plan.shards)
        for line in gzip.decompress((tmp_path / f"plan/{number:05d}.jsonl.gz").read_bytes()).splitlines()
    ]
    fresh = Planner(stocked, spec, Wildcards(), no_picture, text=False)
    made = [sample for start, row in enumerate(given) for sample in fresh.samples(row, start)]
    assert read == made
    assert json.loads(read[0].columns["x"]) == {"a": [None, 1.5]}


def test_row_errors_of_the_reader_are_told_with_the_planners(stocked: Farm, tmp_path: Path, store: Store) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n[1]\n{"prompt": 3}\n')
    found = [one for one in rows(source_of(path)) if isinstance(one, RowError)]
    with pytest.raises(Refused) as caught:
        planned(stocked, path)
    assert [one.row for one in caught.value.rows] == [found[0].row, 3]


def test_a_row_is_told_by_the_column_that_gave_what_is_wrong(stocked: Farm, tmp_path: Path) -> None:
    # Given a column that is called like a parameter and gives none, and a strength that steps from elsewhere forbid
    path = tmp_path / "a.csv"
    path.write_text("prompt,steps,n\na fig,3,0\n")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"columns": {"steps": "n"}}, "n"),
        ({"sweep": [{"strength": [0.1]}]}, ""),
    )
    for asked, column in cases:
        # When, Then
        with pytest.raises(Refused) as caught:
            planned(stocked, path, store=False, **asked)
        assert {one.column for one in caught.value.rows} == {column}
        assert len({(one.column, one.message) for one in caught.value.rows}) == len(caught.value.rows)
    assert planned(stocked, path, store=False).plan.samples == 1


WRONG_AXES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "a value of its field": ({"sweep": [{"steps": [2, 0]}]}, [("sweep.steps", "0: ")]),
    "several, each once": (
        {"sweep": [{"steps": [2, 0, "x"]}, {"1.strength": [2]}]},
        [("sweep.steps", "0: "), ("sweep.steps", "x: "), ("sweep.1.strength", "2: ")],
    ),
    "a seed": ({"sweep": [{"seed": [1, -1]}]}, [("sweep.seed", "-1: a whole number")]),
    "a prompt": ({"sweep": [{"prompt": ["a", 7]}], "left_out": ("prompt",)}, [("sweep.prompt", "7: a text")]),
    "a field of the chain": ({"sweep": [{"exact": [True, 3]}]}, [("sweep.exact", "3: ")]),
    "a checkpoint that is not there": (
        {"sweep": [{"0.checkpoint": ["tiny", "huge"]}, {"steps": [2, 3]}]}, [("sweep.0.checkpoint", "huge")],
    ),
    "what does not go with another field": (
        {"sweep": [{"1.strength": [0.5, 0.1]}, {"seed": list(range(400))}]}, [("sweep.1.strength", "1.strength 0.1: ")],
    ),
    "two that go side by side": (
        {"sweep": [{"steps": [2, 3], "checkpoint": ["tiny", "huge"]}]},
        [("sweep.checkpoint", "steps 3, checkpoint huge: ")],
    ),
    "the chain's own": (
        {"chain": {"stages": [{"kind": "text2img", "checkpoint": "huge"}]}}, [("stages.0.checkpoint", "huge")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ["csv", "jsonl"])
@pytest.mark.parametrize("case", WRONG_AXES)
def test_what_no_row_could_mend_is_told_once_and_not_by_row(farm: Farm, tmp_path: Path, case: str, end: str) -> None:
    # Given many rows, and a value beside them that is wrong with all of them
    asked, told = WRONG_AXES[case]
    path = tmp_path / f"a.{end}"
    lines = ["prompt", *["a fig"] * 1000] if end == "csv" else ['{"prompt": "a fig"}'] * 1000
    path.write_text("\n".join(lines))
    read = list[int]()
    # When
    with pytest.raises(InvalidJob) as caught:
        planned(farm, path, store=False, progress=read.append, **asked)
    # Then it is told at once where it was said
    assert not isinstance(caught.value, Refused)
    assert [one.loc for one in caught.value.errors] == [loc for loc, _ in told]
    assert all(words in one.msg for one, (_, words) in zip(caught.value.errors, told, strict=True))
    assert not read


def test_what_a_row_may_mend_is_told_by_row(farm: Farm, tmp_path: Path) -> None:
    # Given a strength of which the chain's steps leave none, and rows of which one gives more
    asked: dict[str, Any] = {"sweep": [{"1.strength": [0.1, 0.5]}], "store": False}
    path = table(tmp_path / "a.csv", "prompt,steps", "a fig,20", "a plum,2")
    # Then the other one alone is wrong
    with pytest.raises(Refused) as caught:
        planned(farm, path, **asked)
    assert [one.row for one in caught.value.rows] == [2]
    assert planned(farm, path, partial=True, **asked).plan.samples == 2
    # And so in a file that does not tell its columns first
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"prompt": "a plum"}\n' * 150 + '{"prompt": "a fig", "steps": 20}\n')
    assert planned(farm, lines, partial=True, **asked).plan.rejected == 150


def test_what_takes_too_long_to_try_is_told_by_row(farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an axis with a place that no row can mend, and no time to try it
    asked: dict[str, Any] = {"sweep": [{"1.strength": [0.5, 0.1]}], "store": False}
    path = table(tmp_path / "a.csv", "prompt", "a fig", "a plum")
    monkeypatch.setattr(axes, "TRIED_S", -1.0)
    # When, Then
    with pytest.raises(Refused) as caught:
        planned(farm, path, **asked)
    assert [one.row for one in caught.value.rows] == [1, 2]


def test_an_image_is_the_rows_and_none_is_missing_before(farm: Farm, tmp_path: Path) -> None:
    chain = {"stages": [{"kind": "img2img", "checkpoint": "tiny"}]}
    path = table(tmp_path / "a.csv", "prompt,image", "a fig,none.png")
    with pytest.raises(Refused):
        planned(farm, path, chain=chain, store=False, sweep=[{"strength": [0.5, 0.6]}])
    with pytest.raises(InvalidJob, match="huge") as caught:
        planned(farm, path, chain=chain, store=False, sweep=[{"checkpoint": ["tiny", "huge"]}])
    assert [one.loc for one in caught.value.errors] == ["sweep.checkpoint"]


@pytest.mark.parametrize(
    ("sweep", "loc"),
    [
        ([{"steps": [2, 3]}, {"steps": [4]}], "sweep"), ([{"steps": [2, 2]}], "sweep"),
        ([{"steps": [2, 3]}, {"num_inference_steps": [4, 5]}], "sweep"),
        ([{"seed": [1, 2]}], "seed"), ([{"num_inference_steps": [2]}], "steps"), ([{"prompt": ["a"]}], "prompt"),
        ([{"1.num_inference_steps": [2]}], "steps"), ([{"1.strength": [0.5]}, {"strength": [0.6]}], "sweep"),
        ([{"1.strength": [0.5], "strength": [0.6]}], "sweep"), ([{"0.width": [64]}, {"width": [72]}], "sweep"),
    ],
)  # fmt: skip
def test_nothing_that_was_given_is_passed_over(stocked: Farm, tmp_path: Path, sweep: Any, loc: str) -> None:
    # Given what two axes, or an axis and a column, give at once
    path = tmp_path / "a.csv"
    path.write_text("prompt,steps,seed\na fig,3,1\n")
    # When, Then it is refused, also row by row where a file has no header
    with pytest.raises(InvalidJob) as caught:
        planned(stocked, path, store=False, sweep=sweep)
    assert [one.loc for one in caught.value.errors] == [loc]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"prompt": "a fig", "steps": 3, "seed": 1}\n')
    with pytest.raises(InvalidJob):
        planned(stocked, lines, store=False, sweep=sweep)
    # And without that column it is planned
    if loc != "sweep":
        asked = {"sweep": sweep, "left_out": (loc,), "chain_fields": {"prompt": "a plum"}}
        assert planned(stocked, path, store=False, **asked).plan.samples == len(next(iter(sweep[0].values())))


@pytest.mark.parametrize(
    ("first", "second"),
    [("1.steps", "steps"), ("steps", "num_inference_steps"), ("0.width", "width"), ("strength", "1.strength")],
)
def test_what_two_columns_give_at_once_is_refused_by_row(farm: Farm, tmp_path: Path, first: str, second: str) -> None:
    # Given rows that give one field twice, by two names of it, and others that give it once
    one = "1" if "strength" in first else "4"
    path = table(
        tmp_path / "a.csv",
        f"prompt,{first},{second}", f"a fig,{one},{one}", f"a plum,{one},", f"a pear,,{one}", "a lime,,",
    )  # fmt: skip
    # When, Then the first ones alone are wrong, and told by the second column
    with pytest.raises(Refused) as caught:
        planned(farm, table(tmp_path / "b.csv", *path.read_text().splitlines()[:2]), store=False)
    assert [(one.row, one.column, "0.NAME and 1.NAME" in one.message) for one in caught.value.rows] == [
        (1, second, True)
    ]
    if "width" not in first:
        found = planned(farm, path, store=False, partial=True)
        assert [one.prompt for one in found.first] == ["a plum", "a pear", "a lime"]
        assert set(found.first[0].changes) == {first}
        # And each stage may have its own
        both = table(tmp_path / "c.csv", "prompt,0.steps,1.num_inference_steps,1.prompt", "a fig,3,4,a red fig")
        assert planned(farm, both, store=False).first[0].changes == {
            "0.steps": 3, "1.num_inference_steps": 4, "1.prompt": "a red fig"
        }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "cells", "column"),
    [
        ("1.steps", "0", "1.steps"), ("0.steps,1.num_inference_steps", "3,0", "1.num_inference_steps"),
        ("0.num_inference_steps,1.steps", "3,0", "1.steps"), ("0.steps,1.steps", "0,3", "0.steps"),
        ("0.vae,1.vae", "none,", "0.vae"), ("steps,0.loras", '3,"[{""adapter"": 7}]"', "0.loras"),
    ],
)  # fmt: skip
def test_a_stages_own_column_is_told(farm: Farm, tmp_path: Path, header: str, cells: str, column: str) -> None:
    with pytest.raises(Refused) as caught:
        planned(farm, table(tmp_path / "a.csv", f"prompt,{header}", f"a fig,{cells}"), store=False)
    assert {one.column for one in caught.value.rows} == {column}, caught.value.rows


def test_a_table_of_pandas_is_read_as_it_was_meant(stocked: Farm, tmp_path: Path) -> None:
    # Given whole numbers with a gap, and a column of nothing but gaps
    path, nan = tmp_path / "a.parquet", float("nan")
    columns = {"prompt": ["a", "b"], "steps": [2.0, nan], "score": [nan, 0.5], "none": [nan, nan]}
    pq.write_table(pa.table(columns), path)
    # When
    found = planned(stocked, path, store=False)
    # Then
    assert [dict(one.changes) for one in found.first] == [{"steps": 2}, {}]
    assert [dict(one.columns) for one in found.first] == [{}, {"score": "0.5"}]
    assert found.plan.columns == ("score", "none")


def test_a_name_that_cannot_be_is_told_in_words(stocked: Farm, tmp_path: Path) -> None:
    with pytest.raises(InvalidJob) as caught:
        planned(stocked, table(tmp_path / "a.csv", "prompt", "a"), "Weird")
    (error,) = caught.value.errors
    assert error.loc == "name"
    assert "a letter or digit at both ends" in error.msg


def test_two_who_plan_one_name_do_not_mix_their_samples(stocked: Farm, tmp_path: Path) -> None:
    # Given two files, and somebody who plans the second one while the samples of the first are written
    first = table(tmp_path / "a.csv", "prompt", "a fig", "a plum")
    second = table(tmp_path / "b.csv", "prompt", "a pear", "a lime")
    folder, quicker = Folder(stocked.store, "some"), list[Planned]()

    def meanwhile() -> None:
        if folder.names("plan/") and not quicker:
            quicker.append(planned(stocked, second, shard_samples=1))

    # When
    with pytest.raises(Conflict, match="another dataset"):
        planned(stocked, first, shard_samples=1, wanted=meanwhile)
    # Then the plan has its own samples, and those of the other are gone
    (other,) = quicker
    assert folder.plan() == other.plan
    assert [folder.samples(number)[0].prompt for number in range(2)] == ["a pear", "a lime"]
    assert folder.names("") == ["plan.json", other.plan.path_of(0), other.plan.path_of(1)]


def wish(farm: Farm, path: Path, owner: str, name: str = "some", **given: Any) -> Asked:
    """What is asked for from afar, with its file in the store."""
    key = f"files/{owner}/{path.name}"
    farm.store.client.put_object(Bucket=farm.store.bucket, Key=key, Body=path.read_bytes())
    spec = DatasetSpec.model_validate({"name": name, "chain": CHAIN, "shard_samples": 1})
    kind = path.suffix.removeprefix(".")
    return Asked(spec=spec, file=key, file_name=path.name, format=kind, owner=owner, **given)


def test_what_was_deleted_and_asked_for_by_another_is_the_others(stocked: Farm, tmp_path: Path) -> None:
    # Given a wish that is deleted while it is planned, and another owner's of the same name
    mine = wish(stocked, table(tmp_path / "a.csv", "prompt", "a fig", "a plum"), "ada")
    theirs = wish(stocked, table(tmp_path / "b.csv", "prompt", "a pear"), "bob")
    folder = Folder(stocked.store, "some")
    assert ask(stocked, mine)

    def stop() -> bool:
        if folder.names("plan/") and mine.owner == Datasets(stocked).owner("some"):
            Datasets(stocked).rm("some")
            ask(stocked, theirs)
        return False

    # When
    with pytest.raises(Stopped):
        carry_out(stocked, "some", stop)
    # Then nothing was planned, until the other's is
    assert folder.planned() is None
    carry_out(stocked, "some", lambda: False)
    assert (folder.plan().owner, folder.samples(0)[0].prompt) == ("bob", "a pear")


def test_a_name_that_was_asked_for_is_planned_by_nobody_else(stocked: Farm, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "prompt", "a fig")
    ask(stocked, wish(stocked, path, "ada"))
    with pytest.raises(Conflict, match="another dataset"):
        planned(stocked, path)
    assert Folder(stocked.store, "some").names("") == ["asked.json"]


def test_more_samples_than_a_dataset_may_have_are_refused_early(farm: Farm, tmp_path: Path) -> None:
    # Given a farm that plans ten samples, and rows without end, of which the first one is wrong
    small = Farm(farm.settings.model_copy(update={"max_dataset_samples": 10}))
    spec = DatasetSpec(name="some", chain=CHAIN, sweep=[{"seed": [1, 2]}])
    planner, read = Planner(small, spec, Wildcards(), no_picture, text=False), list[int]()

    def endless() -> Iterator[Row]:
        for number in count(1):
            read.append(number)
            yield Row(number, {"prompt": "a fig" if number > 1 else 3})

    # When, Then
    for partly in (True, False):
        read.clear()
        assert wrongs(lambda: plan_rows(planner, spec, endless(), tmp_path, {}, partial=partly)) == [  # noqa: B023
            ("rows", "bad_rows")
        ]
        assert len(read) == 7


def test_a_row_of_too_many_columns_is_wrong_alone(farm: Farm, tmp_path: Path) -> None:
    spec = DatasetSpec(name="some", chain=CHAIN)
    planner = Planner(farm, spec, Wildcards(), no_picture, text=False)
    wide = {"prompt": "a plum", **{f"c{number}": "x" for number in range(1001)}}
    given = [Row(1, {"prompt": "a fig", "label": "x"}), Row(2, wide), Row(3, {"prompt": "a pear", "other": "y"})]
    plan, rejected = plan_rows(planner, spec, given, tmp_path, {}, partial=True)
    assert ([one.row for one in rejected], plan.rows) == ([2], 2)
    assert plan.columns == ("label", "other")


def test_a_strangers_file_ends_its_planner_alone_and_is_refused(
    stocked: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a small file whose later rows are some 16 GB, asked for before a sound one
    path, cell = tmp_path / "a.parquet", pa.array(["a fig", "x" * (8 << 20)])
    rest = pa.DictionaryArray.from_arrays(pa.array([0] * 4096 + [1] * 2048, pa.int32()), cell)
    pq.write_table(pa.table({"prompt": rest}), path, compression="zstd", row_group_size=8192)
    for name, value in environment(stocked.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FARM_MODELS", str(stocked.settings.models_dir))
    monkeypatch.setattr("farm.dataset.serve.AGAIN_S", 0.5)
    desk, stop, seats = Datasets(stocked), threading.Event(), Seats(stocked.settings)
    ask(stocked, wish(stocked, path, "ada", "first"))
    ask(stocked, wish(stocked, table(tmp_path / "b.csv", "prompt", "a pear"), "bob", "second"))
    planning = Planning(stocked.settings, seats, stop)

    def is_over(name: str) -> bool:
        for each in ("first", "second"):
            if is_asked(Folder(stocked.store, each)):
                planning.begin(each)
        return desk.status(name).state != "planning"

    try:
        # When both are planned
        until(lambda: is_over("second"), 120, "the second one's turn")
        # Then the sound one does not wait until the other is given up, which is refused in the end
        assert (desk.status("first").state, desk.status("second").state) == ("planning", "planned")
        until(lambda: is_over("first"), 180, "the first one to be refused")
        refused = desk.status("first").refused
        assert refused is not None
        assert (refused["code"], "memory" in refused["message"]) == ("bad_file", True)
    finally:
        stop.set()
        seats.close()


def test_a_planner_ends_when_its_dataset_is_deleted(
    stocked: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a planner that has more to do than anybody waits for
    for name, value in environment(stocked.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FARM_MODELS", str(stocked.settings.models_dir))
    path = table(tmp_path / "a.csv", "prompt", *(f"a fig, number {number}" for number in range(1_000_000)))
    ask(stocked, wish(stocked, path, "ada"))
    folder, seats = Folder(stocked.store, "some"), Seats(stocked.settings)
    with seats.held():
        Planning(stocked.settings, seats, threading.Event()).begin("some")
        until(lambda: folder.names("progress.json"), 120, "rows to be read")
        # When
        Datasets(stocked).rm("some", 30)
        # Then
        assert folder.names("") == []
    # And a server that is away, or an end of this process, is no try
    ask(stocked, wish(stocked, path, "ada"))
    carry_out_apart(stocked, "some", lambda: True)
    assert json.loads(folder.read("tries.json") or b"") == 0


@pytest.mark.parametrize("asked_anew", [False, True])
def test_what_is_being_planned_can_be_deleted(stocked: Farm, tmp_path: Path, asked_anew: bool) -> None:
    # Given a planner that has the dataset's seat until nobody asks for it any more, and another one who asks then
    mine = wish(stocked, table(tmp_path / "a.csv", "prompt", "a fig"), "ada")
    theirs = wish(stocked, table(tmp_path / "b.csv", "prompt", "a pear"), "bob")
    folder, seats = Folder(stocked.store, "some"), Seats(stocked.settings)
    ask(stocked, mine)
    folder.write("plan/0/00000.jsonl.gz", b"some of its samples")

    def plans() -> None:
        until(lambda: folder.read("asked.json") is None, 30, "the wish to be deleted")
        if asked_anew:
            ask(stocked, theirs)
        seats.leave("some")

    with seats.held(), ThreadPoolExecutor(1) as pool:
        assert seats.take("some")
        planner = pool.submit(plans)
        # When
        Datasets(stocked).rm("some")
        planner.result(30)
    # Then all of it is gone, and nothing of another's
    assert folder.names("") == ["asked.json"][: int(asked_anew)]
    if asked_anew:
        assert Datasets(stocked).owner("some") == "bob"


STALLS = """
import re
from farm.dataset import asking, samples
asking.STALLED_S = 2.0
samples.Planner.samples = lambda *_: re.fullmatch("(a*)*b", "a" * 60)
asking.main()
"""
"""A planner whose first row takes for ever, in a call that lets no other thread run."""


def test_a_planner_that_comes_no_further_is_ended_and_its_file_refused(
    stocked: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    def run(settings: Settings, name: str, stop: Callable[[], bool]) -> int:
        env = {**os.environ, **environment(settings), "FARM_MODELS": str(settings.models_dir)}
        words = [sys.executable, "-c", STALLS, name, "--parent", str(os.getpid())]
        return subprocess.run(words, env=env, timeout=120).returncode

    monkeypatch.setattr("farm.dataset.asking._run", run)
    ask(stocked, wish(stocked, table(tmp_path / "a.csv", "prompt", "a fig"), "ada"))
    # When it is planned once
    carry_out_apart(stocked, "some", lambda: False)
    # Then
    refused = Datasets(stocked).status("some").refused
    assert refused is not None
    assert (refused["code"], "of the processor" in refused["message"]) == ("bad_file", True)


def test_each_row_is_a_sign_of_life(farm: Farm, tmp_path: Path) -> None:
    spec, read = DatasetSpec(name="some", chain=CHAIN), list[int]()
    planner = Planner(farm, spec, Wildcards(), no_picture, text=False)
    given = [Row(number, {"prompt": "a fig" if number != 2 else 7}) for number in (1, 2, 3)]
    plan_rows(planner, spec, given, tmp_path, {}, partial=True, progress=read.append)
    assert read == [1, 2, 3]


def test_one_slow_answer_does_not_end_a_planning(stocked: Farm, tmp_path: Path) -> None:
    # Given a store that is silent at the first request of each kind, and no ledger
    (tmp_path / "red.png").write_bytes(picture("red"))
    stage = {"kind": "inpaint", "checkpoint": "tiny", "mask": str(tmp_path / "white.png"), "num_inference_steps": 2}
    (tmp_path / "white.png").write_bytes(picture("white"))
    stored = stocked.upload(tmp_path / "white.png")
    spec = DatasetSpec.model_validate({"name": "some", "chain": {"stages": [{**stage, "mask": stored}]}})
    client, broken = stocked.store.client, list[str]()

    def once(request: Any, operation_name: str, **_: Any) -> None:
        if operation_name not in broken:
            broken.append(operation_name)
            raise ReadTimeoutError(endpoint_url=request.url)

    def never(**_: Any) -> None:
        raise AssertionError("the store that nobody waits for is not asked")

    client.meta.events.register("before-send.s3", lambda request, event_name, **_: once(request, event_name))
    stocked.inbox.client.meta.events.register("before-send.s3", never)
    lost = Farm(stocked.settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{free_port()}/0")}))
    lost.__dict__.update(store=stocked.store, inbox=stocked.inbox)
    # When
    image = Images(lost, spec, tmp_path, store=True).input("red.png")
    mould = Moulds(lost, spec).of({}, image)
    # Then each was sent again, and all is there
    assert len(broken) > 1
    assert stocked.store.exists(image.sha256)
    assert mould.plan
