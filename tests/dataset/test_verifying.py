"""Is every kind of damage to a shard told, and a sound one never called damaged?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farm.dataset.sharding import Shard, ShardWriter, file_facts
from farm.dataset.shelves import ShardFolder
from farm.dataset.spec import Failed
from farm.dataset.tars import TarWriter, entries
from farm.dataset.verifying import Meant, Problem, verify
from farm.errors import NotFound
from farm.image import to_png
from farm.job import canonical
from tests.dataset.made import LONG, Maker, drawn


@pytest.fixture(params=["png", "webp", "jpg"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Shard:
    """A shard of four samples, one of which failed."""
    maker = Maker(tmp_path, chain=LONG, keep=("base",), image_format=request.param)
    pictures = [maker.picture(i) for i in (0, 1, 3)]
    failed = [Failed(maker.sample(2), "failed", "crashed", "gone")]
    found = maker.shard(tmp_path / "shards", pictures, failed=failed)
    write_stats(found)
    return found


def write_stats(shard: Shard) -> None:
    (shard.tar.parent / "00000_stats.json").write_text(json.dumps(shard.facts))


def rewrite(shard: Shard, change: Callable[[str, dict[str, bytes]], dict[str, bytes] | None]) -> None:
    """Puts what `change` makes of each sample into the tar, and its hash into the facts, as if it were so made."""
    fresh = shard.tar.with_name("fresh")
    with entries(shard.tar) as found, TarWriter(fresh) as writer:
        for entry in found:
            files = change(entry.key, {name: entry.read(name) for name in entry.files})
            if files is not None:
                writer.add(entry.key, files)
        writer.close()
    fresh.replace(shard.tar)
    shard.facts["files"]["00000.tar"] = file_facts(shard.tar)
    write_stats(shard)


def told(shard: Shard) -> list[tuple[str, str]]:
    return [(one.key[-1:], one.what) for one in verify(ShardFolder(shard.tar.parent)).problems]


def test_a_sound_shard_has_no_problem(shard: Shard) -> None:
    found = verify(ShardFolder(shard.tar.parent))
    sizes = sum(path.stat().st_size for path in (shard.tar, shard.parquet))
    assert (found.shards, found.samples, found.failed, found.bytes) == (1, 3, 1, sizes)
    assert found.problems == found.absent == ()


def test_shards_that_are_not_there_are_named(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    for number in (1, 4):
        shard = maker.shard(tmp_path / "shards", [maker.picture(8 * number)], number)
        (tmp_path / "shards" / f"{number:05d}_stats.json").write_text(json.dumps(shard.facts))
    assert verify(ShardFolder(tmp_path / "shards")).absent == (0, 2, 3)


@pytest.mark.parametrize("which", ["tar", "parquet"])
def test_a_turned_bit_is_told(shard: Shard, which: str) -> None:
    path = getattr(shard, which)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    assert told(shard)[0] == ("", f"00000.{which} is not the file that was written: its length or hash differs")


@pytest.mark.parametrize("which", ["tar", "parquet"])
def test_a_file_that_is_cut_or_gone_is_told(shard: Shard, which: str) -> None:
    path = getattr(shard, which)
    path.write_bytes(path.read_bytes()[:-1500])
    assert told(shard)
    path.unlink()
    assert told(shard) == [("", f"00000.{which} is missing")]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"successes": "x", "failed": 0, "files": {}}'])
def test_facts_that_are_none_are_told(shard: Shard, text: str) -> None:
    (shard.tar.parent / "00000_stats.json").write_text(text)
    (problem,) = verify(ShardFolder(shard.tar.parent)).problems
    assert "cannot be read" in problem.what


def changed(**fields: Any) -> Callable[[str, dict[str, bytes]], dict[str, bytes]]:
    """Gives sample 1 another JSON."""

    def change(key: str, files: dict[str, bytes]) -> dict[str, bytes]:
        if key.endswith("1"):
            files["json"] = canonical({**json.loads(files["json"]), **fields}).encode()
        return files

    return change


ROW = "its row of the table does not say what its JSON says"


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"seed": 5}, ["no stage had its seed"]),
        ({"prompt": "a plum"}, ["its text is not the prompt", "no stage had its prompt"]),
        ({"negative_prompt": "x"}, ["no stage had its negative_prompt"]),
        ({"width": 65}, ["its picture has 64x64 pixels, which its JSON does not say"]),
        ({"sha256": "0" * 64}, ["its picture does not have the SHA-256 that its JSON says"]),
        ({"key": "000000007"}, ["its JSON says that it is 000000007"]),
        ({"luma_std": 1.0}, []),
    ],
)
def test_a_sample_that_contradicts_itself_is_told(shard: Shard, fields: dict[str, Any], what: list[str]) -> None:
    rewrite(shard, changed(**fields))
    assert sorted(told(shard)) == sorted(("1", one) for one in [ROW, *what])


@pytest.mark.parametrize(
    "fields", [{"recipe": "{"}, {"seed": None, "prompt": 1, "recipe": "[{}]"}, {"choices": None}, {"recipe": "[1]"}]
)
def test_json_that_is_no_samples_is_told(shard: Shard, fields: dict[str, Any]) -> None:
    rewrite(shard, changed(**fields))
    assert ("1", "its JSON cannot be read") in told(shard)


def test_another_picture_is_told(shard: Shard) -> None:
    # Given that sample 1 has the picture of sample 0
    held: dict[str, bytes] = {}
    (form,) = {"png", "webp", "jpg"} & _extensions(shard)

    def change(key: str, files: dict[str, bytes]) -> dict[str, bytes]:
        held.setdefault("first", files[form])
        return {**files, form: held["first"]} if key.endswith("1") else files

    rewrite(shard, change)
    # Then
    expected = {
        ("1", "its picture does not have the SHA-256 that its JSON says"),
        ("1", "the recipe in its picture is another than its JSON's"),
        ("1", "its pixels do not have the SHA-256 that its JSON says"),
    }
    assert set(told(shard)) == expected


def _extensions(shard: Shard) -> set[str]:
    with entries(shard.tar) as found:
        return set(next(found).files)


@pytest.mark.parametrize("data", [b"", b"GIF89a", to_png(drawn(0))[:900], to_png(drawn(0))])
def test_a_picture_that_is_none_or_has_no_recipe_is_told(shard: Shard, data: bytes) -> None:
    (form,) = {"png", "webp", "jpg"} & _extensions(shard)
    rewrite(shard, lambda key, files: {**files, form: data} if key.endswith("1") else files)
    found = told(shard)
    assert ("1", "its picture does not have the SHA-256 that its JSON says") in found
    assert len(found) == 2


def test_samples_too_many_and_too_few_are_told(shard: Shard) -> None:
    # Given that sample 0 is gone, and 3 is called 9
    def change(key: str, files: dict[str, bytes]) -> dict[str, bytes] | None:
        return None if key.endswith("0") else files

    rewrite(shard, change)
    found = told(shard)
    assert ("", "3 samples were written, 2 are there") in found
    assert ("0", "it is neither made nor failed") in found
    # And one that is both made and failed
    shard.facts["failures"][0]["key"] = "000000003"
    write_stats(shard)
    found = told(shard)
    assert ("3", "it is there twice") in found
    assert ("2", "it is neither made nor failed") in found
    # And one of another shard
    shard.facts["failures"][0]["key"] = "000010002"
    write_stats(shard)
    assert ("2", "it is no sample of this shard") in told(shard)


def test_a_stage_of_its_own_prompt_and_seed_is_no_problem(tmp_path: Path) -> None:
    # Given a chain whose second stage has its own
    chain = {"stages": [LONG["stages"][0], {**LONG["stages"][1], "prompt": "oil", "negative_prompt": "", "seed": 3}]}
    maker = Maker(tmp_path, chain=chain)
    shard = maker.shard(tmp_path / "shards", [maker.picture(0)])
    write_stats(shard)
    assert verify(ShardFolder(tmp_path / "shards")).problems == ()


def test_samples_out_of_order_are_told(shard: Shard) -> None:
    # Given two tars, one after the other, in the wrong order
    fresh = shard.tar.with_name("fresh")
    with entries(shard.tar) as found, fresh.open("wb") as out:
        held = list(found)
        for entry in reversed(held):
            entry.copy(out)
        out.write(bytes(10240))
    fresh.replace(shard.tar)
    assert (
        Problem(0, "000000001", "it is not after the sample before it")
        in verify(ShardFolder(shard.tar.parent)).problems
    )


# ------------------------------------------------------------------------------------------- what was planned


@pytest.fixture
def two(tmp_path: Path) -> tuple[Maker, ShardFolder]:
    """The first two shards, of two samples each, of three that were planned."""
    maker = Maker(tmp_path, shard_samples=2)
    for number in (0, 1):
        pictures = [maker.picture(2 * number + place) for place in (0, 1)]
        shard = maker.shard(tmp_path / "shards", pictures, number, parameters={"steps": "integer"})
        (tmp_path / "shards" / f"{number:05d}_stats.json").write_text(json.dumps(shard.facts))
    return maker, ShardFolder(tmp_path / "shards")


def meant(maker: Maker, shards: int = 3, whole: bool = False, **told: Any) -> Meant:
    """Shards of two; `told` is otherwise of the second sample."""
    return Meant(
        "fruit", shards, lambda number: [maker.sample(2 * number), maker.sample(2 * number + 1, **told)], whole
    )


def test_shards_that_the_plan_has_are_missed(two: tuple[Maker, ShardFolder]) -> None:
    maker, shards = two
    found = verify(shards, meant(maker, changes={"steps": 5}))
    assert (found.absent, found.problems) == ((2,), ())
    # And once it was all written, that is a loss
    found = verify(shards, meant(maker, 4, whole=True))
    assert found.absent == (2, 3)
    assert found.problems == tuple(Problem(n, "", "it was written and is not there any more") for n in (2, 3))


def test_samples_that_were_not_planned_so_are_told(two: tuple[Maker, ShardFolder]) -> None:
    maker, shards = two
    for told, name in (
        ({"seed": 5}, "seed"),
        ({"prompt": "x"}, "prompt"),
        ({"negative_prompt": ""}, "negative_prompt"),
        ({"changes": {"steps": 6}}, "steps"),
    ):
        found = verify(shards, meant(maker, **told))
        assert found.problems == tuple(
            Problem(n, f"{n:05d}0001", f"its {name} is not the one that was planned") for n in (0, 1)
        )
    # And a shard too many, and samples of another count
    assert verify(shards, meant(maker, 1)).problems[0] == Problem(
        1, "", "1 shards were planned, and this is none of them"
    )
    more = Meant(
        "fruit", 2, lambda number: [maker.sample(2 * number + place) for place in (0, 1)] * (1 - number), False
    )
    assert ("", "0 samples were planned, it tells of 2") in [
        (one.key, one.what) for one in verify(shards, more).problems
    ]

    # And a plan that is gone is a problem of each shard
    def gone(number: int) -> list[Any]:
        raise NotFound(f"the plan of shard {number} is gone")

    assert [one.what for one in verify(shards, Meant("fruit", 2, gone, False)).problems] == [
        "the plan of shard 0 is gone",
        "the plan of shard 1 is gone",
    ]


def test_what_an_earlier_try_made_has_not_failed(tmp_path: Path) -> None:
    # Given a shard with all of its samples, and a later try that made none of them
    maker = Maker(tmp_path)
    before = maker.shard(tmp_path / "before", [maker.picture(0), maker.picture(1)])
    with ShardWriter(tmp_path, 0, maker.spec, ()) as writer:
        writer.keep(before.tar)
        found = writer.finish([Failed(maker.sample(place), "failed", "crashed", "gone") for place in (1, 2)])
    # Then only what is not there has failed
    assert [one["key"] for one in found.facts["failures"]] == ["000000002"]
    assert (found.facts["count"], found.facts["successes"], found.facts["failed"]) == (3, 2, 1)
