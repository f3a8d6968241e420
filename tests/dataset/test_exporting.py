"""Does an export hold what was asked for and nothing else, and does every loader read it?"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from farm.dataset.card import About
from farm.dataset.choosing import Condition, ExportSpec, choose
from farm.dataset.exporting import MARK, export
from farm.dataset.parameters import NONE, Kinds
from farm.dataset.quality import measure
from farm.dataset.sharding import file_facts
from farm.dataset.shelves import ShardFolder, TargetFolder
from farm.dataset.spec import Failed, Picture
from farm.errors import BadBlob, Conflict, InvalidJob, NotFound
from tests.dataset.made import LONG, Maker, drawn

FORMATS = ("webdataset", "parquet", "imagefolder")


def write(
    maker: Maker,
    folder: Path,
    pictures: list[Picture],
    failed: tuple[Failed, ...] = (),
    columns: tuple[str, ...] = ("day", "src_file_name"),
    parameters: Kinds = NONE,
) -> ShardFolder:
    """Shards of these samples in a folder, as they lie in the store."""
    by_shard: dict[int, list[Picture]] = {}
    for picture in pictures:
        by_shard.setdefault(picture.sample.place[0], []).append(picture)
    for number, held in by_shard.items():
        shard = maker.shard(folder, held, number, columns, failed if not number else (), parameters)
        (folder / f"{number:05d}_stats.json").write_text(json.dumps(shard.facts))
    return ShardFolder(folder)


def score(folder: Path, number: int, values: dict[str, list[Any]]) -> None:
    pq.write_table(pa.table(values), folder / f"{number:05d}_scores.parquet")


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path, shard_samples=8)


@pytest.fixture
def shards(maker: Maker, tmp_path: Path) -> ShardFolder:
    """Three shards of eight, of which the first lacks one sample; the second alone was scored, and its last not."""
    columns = {"day": "2024-01-01", "src_file_name": "a.jpg"}
    pictures = [maker.picture(i, choices=("x",)[: i % 3], columns=columns) for i in range(24) if i != 5]
    found = write(maker, tmp_path / "shards", pictures, (Failed(maker.sample(5), "failed", "crashed", "gone"),))
    keys = [f"00001000{i}" for i in range(7)]
    score(tmp_path / "shards", 1, {"key": keys[::-1], "clip_score": [round(0.1 * i, 1) for i in range(7)][::-1]})
    return found


@pytest.fixture
def about(maker: Maker) -> About:
    return About(maker.spec, "rows.csv", 24)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def kept_keys(shards: ShardFolder, **spec: Any) -> list[str]:
    """The keys that an export would take, as shard and place in it."""
    chosen = choose(shards, ExportSpec(**spec))
    found: list[str] = []
    for number, marks in chosen.marks.items():
        with shards.parquet(number) as path:
            keys = pq.read_table(path)["key"].to_pylist()
        found += [key for key, mark in zip(keys, marks, strict=True) if mark]
    return found


# ------------------------------------------------------------------------------------------- what is chosen


def test_a_rule_over_a_score_is_kept(shards: ShardFolder) -> None:
    # Then what was not measured does not fulfil it
    assert kept_keys(shards, where=("clip_score >= 0.3",)) == [f"00001000{i}" for i in (3, 4, 5, 6)]
    assert kept_keys(shards, where=("clip_score>=0.3", "seed<1014", "row != 13")) == ["000010003", "000010005"]


@pytest.mark.parametrize(
    ("text", "holding"),
    [("seed>=1002", "23"), ("seed<=1002", "012"), ("seed>1002", "3"), ("seed<1002", "01"), ("seed==1.002e3", "2"),
     ("seed!=+1002", "013"), (" seed  >  -.5 ", "0123")],
)  # fmt: skip
def test_every_sign_is_known(maker: Maker, tmp_path: Path, text: str, holding: str) -> None:
    shards = write(maker, tmp_path / "four", [maker.picture(i) for i in range(4)])
    assert "".join(key[-1] for key in kept_keys(shards, where=(text,))) == holding


@pytest.mark.parametrize(
    "text", ["", "seed", "seed=1", "seed>", "seed>nan", "seed>inf", ">1", "seed>1 or 1", "a b>1", "__import__('os')>1",
             "seed>1_0", "seed>0x1", "1>2"],
)  # fmt: skip
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob, match="NAME OP NUMBER") as caught:
        Condition.parse(text)
    assert caught.value.errors[0].loc == "where"


@pytest.mark.parametrize("name", ["clip", "prompt", "phash", "key", "columns", "checkpoints", "columns.night", "row.x"])
def test_a_rule_over_what_cannot_be_chosen_by_names_what_can(shards: ShardFolder, name: str) -> None:
    numbers = "row, variant, seed, width, height, luma_mean, luma_std, luma_top, clip_score, columns.day, columns.src"
    with pytest.raises(InvalidJob, match=f"no column '{name}' to choose by; there are {numbers}"):
        choose(shards, ExportSpec(where=(f"{name}>1",)))


KINDS: Kinds = {"1.strength": "number", "steps": "integer", "vae": "text", "vae_tiling": "truth"}


@pytest.fixture
def varied(tmp_path: Path) -> ShardFolder:
    """Two shards of six in which parameters and columns of the file differ."""
    maker = Maker(tmp_path / "varying", chain=LONG, keep=("base", "latents"), shard_samples=6)
    pictures = [
        maker.picture(
            i,
            changes={"steps": 2 + i % 3, "1.strength": 1 if i == 0 else 0.5, "vae_tiling": i < 6},
            columns={"a b": ["7", "seven", "8.0", ""][i % 4], "day": f"2024-01-{10 + i}", "src_file_name": "a.jpg"},
        )
        for i in range(12)
    ]
    return write(maker, tmp_path / "varied", pictures, (), ("a b", "day", "src_file_name"), KINDS)


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (["parameters.steps>=4"], [2, 5, 8, 11]),
        (["parameters.1.strength > 0.5"], [0]),
        (["parameters.vae_tiling==true", "parameters.steps==2"], [0, 3]),
        (["parameters.vae_tiling!=true"], [6, 7, 8, 9, 10, 11]),
        (["parameters.vae=="], None),
        (['parameters.vae==""'], list(range(12))),
        (["columns.a b>=7"], [0, 2, 4, 6, 8, 10]),
        (["columns.a b==8"], [2, 6, 10]),
        (['columns.a b=="8"'], []),
        (["columns.a b==seven"], [1, 5, 9]),
        (["columns.a b!=7"], [1, 2, 3, 5, 6, 7, 9, 10, 11]),
        (["columns.a b=='seven'"], [1, 5, 9]),
        (["columns.a b=='seven"], None),
        (["columns.a b!=seven", 'columns.a b!=""'], [0, 2, 4, 6, 8, 10]),
        (['columns.day=="2024-01-12"'], [2]),
        (["columns.day==2024-01-12"], [2]),
        (["columns.day>2024"], []),
    ],
)
def test_a_rule_over_a_parameter_or_a_column_of_the_file_is_kept(
    varied: ShardFolder, rules: list[str], kept: list[int] | None
) -> None:
    if kept is None:
        with pytest.raises(InvalidJob, match="nor NAME==TEXT or NAME!=TEXT"):
            choose(varied, ExportSpec(where=tuple(rules)))
    elif kept:
        assert kept_keys(varied, where=tuple(rules)) == [f"0000{i // 6}000{i % 6}" for i in kept]
    else:
        with pytest.raises(NotFound, match="no sample is left"):
            choose(varied, ExportSpec(where=tuple(rules)))


@pytest.mark.parametrize("name", ["seed", "luma_std", "parameters.steps", "parameters.1.strength"])
def test_a_number_is_held_against_numbers(varied: ShardFolder, name: str) -> None:
    with pytest.raises(InvalidJob, match=f"{name} is a number; 'ten' is none"):
        choose(varied, ExportSpec(where=(f"{name}==ten",)))


def test_each_reason_is_told_once_and_duplicates_are_sought_among_the_rest(maker: Maker, tmp_path: Path) -> None:
    # Given 0 and 1 blank and equal, 2 good, 3 equal to it, 4 like it but for a pixel, 5 of its prompt, 6 another
    blank, near = Image.new("RGB", (64, 64), "teal"), drawn(2)
    near.putpixel((3, 3), (1, 2, 3))
    assert measure(near).phash == measure(drawn(2)).phash
    images = [blank, blank, drawn(2), drawn(2), near, drawn(5), drawn(6)]
    prompts = ["a", "b", "a  Pear", "c", "d", "A pear ", "e"]
    pictures = [maker.picture(i, image, prompt=p) for i, (image, p) in enumerate(zip(images, prompts, strict=True))]
    shards = write(maker, tmp_path / "odd", pictures)
    # When
    told = {"blank_below": 1.0, "unique_prompts": True, "where": ("seed>1000",), "limit": 1}
    found = choose(shards, ExportSpec(dedupe="near", **told))
    # Then
    rows = [(row["key"][-1], row["reasons"], (row["of"] or "")[-1:]) for row in found.rejects.to_pylist()]
    assert rows == [
        ("0", ["blank", "seed>1000"], ""),
        ("1", ["blank"], ""),
        ("3", ["duplicate"], "2"),
        ("4", ["duplicate"], "2"),
        ("5", ["prompt"], "2"),
        ("6", ["limit"], ""),
    ]
    assert (found.counts, found.kept, found.made) == ({"train": 1}, 1, 7)
    assert found.dropped == {"blank": 2, "seed>1000": 1, "duplicate": 2, "prompt": 1, "limit": 1}
    # And without likeness only what is equal is left out
    assert kept_keys(shards, dedupe="exact") == [f"00000000{i}" for i in (0, 2, 4, 5, 6)]


def test_a_sample_stays_in_its_split_whatever_else_is_exported(shards: ShardFolder) -> None:
    def validation(**spec: Any) -> set[str]:
        chosen = choose(shards, ExportSpec(validation=0.4, **spec))
        return {f"{n}.{i}" for n, marks in chosen.marks.items() for i, mark in enumerate(marks) if mark == 2}

    whole, part = validation(), validation(where=("seed>=1010",))
    assert 3 < len(whole) < 16
    assert part == {one for one in whole if one in part}
    assert {one for one in whole if one.startswith("2")} == {one for one in part if one.startswith("2")}


def test_nothing_left_is_told(shards: ShardFolder, tmp_path: Path, about: About) -> None:
    with pytest.raises(NotFound, match="no sample is left"):
        export(shards, TargetFolder(tmp_path / "out"), ExportSpec(where=("seed<0",)), about)
    assert not (tmp_path / "out").exists()


def test_too_many_loose_files_are_refused(shards: ShardFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.dataset.choosing.MAX_FOLDER", 10)
    with pytest.raises(InvalidJob, match="an imagefolder of 23 files is more than"):
        choose(shards, ExportSpec(format="imagefolder"))


def test_shards_of_two_datasets_are_told_apart(maker: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    write(maker, folder, [maker.picture(0)])
    shard = maker.shard(folder, [maker.picture(8)], 1)
    (folder / "00001_stats.json").write_text(json.dumps(shard.facts))
    with pytest.raises(BadBlob, match="shard 1 has other columns"):
        choose(ShardFolder(folder), ExportSpec())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"seed": [1.0]}, "the score seed has the name of a column"),
        ({"image": [1.0]}, "the score image has the name of a column"),
        ({"columns.day": [1.0]}, "the score columns.day has the name of a column"),
        ({"taste": ["sour"]}, "the score taste is no number"),
    ],
)
def test_scores_that_cannot_be_joined_are_told(
    maker: Maker, tmp_path: Path, about: About, values: dict[str, list[Any]], told: str
) -> None:
    shards = write(maker, tmp_path / "one", [maker.picture(0)])
    score(tmp_path / "one", 0, {"key": ["000000000"], **values})
    with pytest.raises(BadBlob, match=told):
        export(shards, TargetFolder(tmp_path / "out"), ExportSpec(), about)


def test_scores_of_nobody_are_told(maker: Maker, tmp_path: Path) -> None:
    shards = write(maker, tmp_path / "one", [maker.picture(0)])
    score(tmp_path / "one", 0, {"taste": [1.0]})
    with pytest.raises(BadBlob, match="its scores do not say by `key` whose they are"):
        choose(shards, ExportSpec())


# ------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("form", FORMATS)
def test_equal_wishes_give_equal_bytes(shards: ShardFolder, tmp_path: Path, about: About, form: Any) -> None:
    spec = ExportSpec(format=form, validation=0.3, file_samples=4, where=("seed>=1002",), dedupe="near")
    found = [export(shards, TargetFolder(tmp_path / name), spec, about) for name in ("one", "other")]
    one, other = files_of(tmp_path / "one"), files_of(tmp_path / "other")
    assert one == other
    assert found[0] == found[1]
    # And the mark tells of every file
    mark = json.loads(one.pop(MARK))
    assert mark["whole"] is True
    assert mark["files"] == {name: file_facts(tmp_path / "one" / name) for name in one}
    assert mark["counts"] == found[0].counts
    assert sum(found[0].counts.values()) == 21
    rejects = pq.read_table(tmp_path / "one" / "rejects.parquet")
    assert rejects["key"].to_pylist() == ["000000000", "000000001", "000000005"]
    with Image.open(tmp_path / "one" / "contact-sheet.webp") as sheet:
        assert sheet.size == (6 * 192, 4 * 192)


def test_tars_have_the_samples_byte_by_byte(shards: ShardFolder, tmp_path: Path, about: About) -> None:
    # When nothing is left out, and files are as long as shards
    export(shards, TargetFolder(tmp_path / "out"), ExportSpec(file_samples=8, where=("row>8",)), about)
    # Then they are the shards
    written = files_of(tmp_path / "out")
    for number in (1, 2):
        with shards.tar(number) as tar:
            assert written[f"data/train-{number - 1:05d}.tar"] == tar.read_bytes()
    # And scores are in the tables
    table = pq.read_table(tmp_path / "out" / "data" / "train-00000.parquet")
    assert table["clip_score"].to_pylist() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, None]
    assert pq.read_table(tmp_path / "out" / "data" / "train-00001.parquet").schema == table.schema


def test_another_export_replaces_the_earlier(shards: ShardFolder, tmp_path: Path, about: About) -> None:
    # Given an export, a file of somebody's, and what an export left that was cut off
    out = tmp_path / "out"
    export(shards, TargetFolder(out), ExportSpec(file_samples=2), about)
    (out / "notes.txt").write_text("mine")
    (out / "data" / ".train-00000.tar.part").write_text("half")
    # When
    export(shards, TargetFolder(out), ExportSpec(format="imagefolder", limit=2), about)
    # Then only the new one is there, and what was not ours
    pictures = {f"train/00000000{i}.png" for i in range(2)}
    told = {"README.md", "contact-sheet.webp", "export.json", "rejects.parquet", "notes.txt"}
    assert set(files_of(out)) == pictures | told | {"train/metadata.jsonl"}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("thesis.tex", "x", "something else"),
        (MARK, "{", "something else"),
        (MARK, "[]", "something else"),
        (MARK, '{"dataset": "birds"}', "an export of birds"),
    ],
)
def test_a_target_with_something_else_is_left_alone(
    shards: ShardFolder, tmp_path: Path, about: About, name: str, text: str, told: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(Conflict, match=f"the target holds {told}"):
        export(shards, TargetFolder(tmp_path / "out"), ExportSpec(), about)
    assert files_of(tmp_path / "out") == {name: text.encode()}


class Full(TargetFolder):
    """A disk that is full after some files."""

    left = 4

    def put(self, name: str, path: Path) -> None:
        self.left -= 1
        if not self.left:
            raise OSError(28, "No space left on device")
        super().put(name, path)


def test_an_export_has_those_shards_that_were_there_when_it_was_chosen(
    maker: Maker, shards: ShardFolder, tmp_path: Path, about: About, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a dataset that runs: whenever its shards are listed, one more is there
    spec = ExportSpec(where=("seed!=1009",))
    export(ShardFolder(shards.folder), TargetFolder(tmp_path / "still"), spec, about)
    columns = {"day": "2024-01-01", "src_file_name": "a.jpg"}
    last = Failed(maker.sample(29), "failed", "crashed", "gone")
    more = maker.shard(shards.folder, [maker.picture(24, columns=columns)], 3, ("day", "src_file_name"), [last])
    (shards.folder / "00003_stats.json").write_text(json.dumps(more.facts))
    lists = iter([[0, 1, 2], [0, 1, 2, 3]])
    monkeypatch.setattr(shards, "numbers", lambda: next(lists, [1, 2, 3]))
    # When
    export(shards, TargetFolder(tmp_path / "out"), spec, about)
    # Then
    assert files_of(tmp_path / "out") == files_of(tmp_path / "still")


def test_a_shard_that_is_written_again_while_it_is_exported_is_told(
    maker: Maker, tmp_path: Path, about: About, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a shard whose second sample is made after all once the samples are chosen
    pictures = [maker.picture(place) for place in range(3)]
    shards = write(maker, tmp_path / "one", [pictures[0], pictures[2]])

    def chosen(*given: Any) -> Any:
        found = choose(*given)
        write(maker, tmp_path / "one", pictures)
        return found

    monkeypatch.setattr("farm.dataset.exporting.choose", chosen)
    # Then nothing is taken for what it is not
    with pytest.raises(BadBlob, match="shard 0 was written again meanwhile"):
        export(shards, TargetFolder(tmp_path / "out"), ExportSpec(), about)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_is_cut_off_says_so_and_can_be_made_again(
    shards: ShardFolder, tmp_path: Path, about: About, form: Any
) -> None:
    # Given
    out, work = tmp_path / "out", tmp_path / "work"
    work.mkdir()
    spec = ExportSpec(format=form, file_samples=3)
    with pytest.raises(OSError, match="No space"):
        export(shards, Full(out), spec, about, work=work)
    assert json.loads((out / MARK).read_text())["whole"] is False
    assert list(work.iterdir()) == []
    # When there is room
    export(shards, TargetFolder(out), spec, about, work=work)
    export(shards, TargetFolder(tmp_path / "fresh"), spec, about)
    # Then
    assert files_of(out) == files_of(tmp_path / "fresh")


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_shard_is_told(maker: Maker, tmp_path: Path, about: About, form: Any) -> None:
    # Given a shard whose tar is another's
    shards = write(maker, tmp_path / "bad", [maker.picture(i) for i in range(3)])
    other = maker.shard(tmp_path / "other", [maker.picture(i) for i in (0, 2)])
    (tmp_path / "bad" / "00000.tar").write_bytes(other.tar.read_bytes())
    with pytest.raises(BadBlob, match=r"00000\.tar is not the file that was written"):
        export(shards, TargetFolder(tmp_path / "out"), ExportSpec(format=form), about)
    # And where it was written so
    stats = tmp_path / "bad" / "00000_stats.json"
    told = json.loads(stats.read_text())
    told["files"]["00000.tar"] = file_facts(other.tar)
    stats.write_text(json.dumps(told))
    with pytest.raises(BadBlob, match="do not have the same samples"):
        export(shards, TargetFolder(tmp_path / "out"), ExportSpec(format=form), about)
    (tmp_path / "bad" / "00000.tar").unlink()
    with pytest.raises(BadBlob, match=r"00000.tar is missing"):
        export(shards, TargetFolder(tmp_path / "out"), ExportSpec(format=form), about)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["000000000./../../../evil", "../../evil.png", "000000000.exe", "evil.png"])
def test_what_strangers_named_is_written_nowhere(
    maker: Maker, tmp_path: Path, about: About, form: Any, name: str
) -> None:
    # Given a stranger's shard with one member more, whose facts are made to fit
    folder, target = tmp_path / "theirs", tmp_path / "a" / "b" / "out"
    write(maker, folder, [maker.picture(0)])
    with tarfile.open(folder / "00000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo(name))
    stats = folder / "00000_stats.json"
    told = json.loads(stats.read_text())
    told["files"]["00000.tar"] = file_facts(folder / "00000.tar")
    stats.write_text(json.dumps({**told, "kept": [name.partition(".")[2]]}))
    before = files_of(tmp_path).keys()
    # When, Then
    with pytest.raises(BadBlob, match="which is nothing of a sample"):
        export(ShardFolder(folder), TargetFolder(target), ExportSpec(format=form), about)
    assert files_of(tmp_path).keys() - before == {"a/b/out/export.json"}


def test_a_folder_without_shards_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(NotFound, match="no shard is here"):
            ShardFolder(folder)


# ------------------------------------------------------------------------------------------- what others read


@pytest.fixture(params=["png", "webp", "jpg"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Writes an export of twelve samples in two splits; the pictures have the fixture's form."""
    maker = Maker(tmp_path, shard_samples=8, image_format=request.param)
    columns = {"day": "2024-01-01", "src_file_name": "a.jpg"}
    pictures = [maker.picture(i, choices=("x",) if i > 6 else (), columns=columns) for i in range(12)]
    shards = write(maker, tmp_path / "shards", pictures)

    def make(**spec: Any) -> tuple[Path, str, dict[str, int]]:
        out = tmp_path / "out"
        found = export(shards, TargetFolder(out), ExportSpec(validation=0.4, file_samples=3, **spec), about)
        assert sum(found.counts.values()) == 12
        assert set(found.counts) == {"train", "validation"}
        return out, request.param, found.counts

    about = About(maker.spec, "rows.csv", 12)
    return make


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_datasets_loads_the_folder_by_its_card(exported: Any, hf: Any, form: str, streaming: bool) -> None:
    # Given
    out, extension, counts = exported(format=form)
    # When it is loaded as one would from the hub
    loaded = hf.load_dataset(str(out), streaming=streaming)
    # Then all of it is there, with its types
    rows = {split: list(loaded[split]) for split in loaded}
    assert {split: len(held) for split, held in rows.items()} == counts
    picture = extension if form == "webdataset" else "image"
    features = loaded["train"].features
    assert isinstance(features[picture], hf.Image)
    seen = {}
    for held in rows.values():
        for row in held:
            known = row["json"] if form == "webdataset" else row
            seen[known["row"] - 1] = known
            assert row[picture].size == (64, 64)
            if extension == "png":
                assert row[picture].convert("RGB").tobytes() == drawn(known["row"] - 1).tobytes()
    assert sorted(seen) == list(range(12))
    assert [seen[i]["prompt"] for i in range(12)] == [f"pear no. {i}" for i in range(12)]
    inner = features["json"] if form == "webdataset" else features
    assert {name: inner[name].dtype for name in ("prompt", "seed", "luma_std", "recipe")} == {
        "prompt": "string",
        "seed": "int64",
        "luma_std": "float64",
        "recipe": "string",
    }
    assert inner["checkpoints"] == hf.List(hf.Value("string"))
    if form == "imagefolder":
        assert json.loads(seen[0]["columns"]) == {"day": "2024-01-01", "src_file_name": "a.jpg"}
        assert inner["choices"] == hf.Value("string")
    elif form == "parquet":
        assert (inner["columns.day"], inner["columns.src_file_name"]) == (hf.Value("string"), hf.Value("string"))
    else:
        assert inner["columns"] == {"day": hf.Value("string"), "src_file_name": hf.Value("string")}
    assert inner["choices"] == (hf.List(hf.Value("string")) if form == "parquet" else hf.Value("string"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_datasets_loads_parameters_columns_and_what_earlier_stages_made(
    varied: ShardFolder, tmp_path: Path, about: About, hf: Any, form: Any, streaming: bool
) -> None:
    # Given
    out, spec = tmp_path / "out", ExportSpec(format=form, validation=0.4, file_samples=3)
    found = export(varied, TargetFolder(out), spec, about)
    # When
    loaded = hf.load_dataset(str(out), streaming=streaming)
    # Then every parameter and column has its values, of its type
    features = {split: loaded[split].features for split in loaded}
    assert features["train"] == features["validation"]
    rows = [row for split in loaded for row in loaded[split]]
    assert len(rows) == sum(found.counts.values()) == 12
    for row in rows:
        known = row["json"] if form == "webdataset" else row
        i = known["row"] - 1
        told = {"1.strength": 1.0 if i == 0 else 0.5, "steps": 2 + i % 3, "vae": "", "vae_tiling": i < 6}
        columns = {"a b": ["7", "seven", "8.0", ""][i % 4], "day": f"2024-01-{10 + i}", "src_file_name": "a.jpg"}
        if form == "webdataset":
            assert (known["parameters"], known["columns"]) == (told, columns)
        else:
            assert {name: row[f"parameters.{name}"] for name in told} == told
            flat = ["a b"] if form == "imagefolder" else list(columns)  # the others are a date and a file to it
            assert {name: row[name] for name in row if name.startswith("columns.")} == {
                f"columns.{name}": columns[name] for name in flat
            }
        if form == "imagefolder":
            assert (json.loads(row["parameters"]), json.loads(row["columns"])) == (told, columns)
        # And what the stage before the last made is beside the picture
        picture = row["png" if form == "webdataset" else "image"]
        assert picture.convert("RGB").tobytes() == drawn(i).tobytes()
        assert row["stage0.png"].convert("RGB").tobytes() == drawn(-i).tobytes()
        latents = row["stage0.safetensors"]
        if form == "imagefolder":
            place = next(out.glob(f"*/{known['key']}.stage0.safetensors"))
            assert latents == place.name
            latents = place.read_bytes()
        assert latents == bytes(8) + str(i).encode()
    inner = features["train"]["json"]["parameters"] if form == "webdataset" else features["train"]
    prefix = "" if form == "webdataset" else "parameters."
    kinds = {name: inner[prefix + name].dtype for name in KINDS}
    assert kinds == {"1.strength": "float64", "steps": "int64", "vae": "string", "vae_tiling": "bool"}
    assert isinstance(features["train"]["stage0.png"], hf.Image)
    # And the card tells of each, and no more
    card = (out / "README.md").read_text("utf-8")
    names = [line.split(" | ")[0].strip("| ").replace("\\", "") for line in card.splitlines() if line.startswith("| ")]
    listed = set(names[names.index("column") + 1 :]) - {"---"}
    seen = set(features["train"]) - {"image", "png", "txt", "__key__", "__url__"}
    assert listed == (seen - {"json"} | set(features["train"]["json"]) if form == "webdataset" else seen)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_with_files_beside_the_pictures_is_replaced(
    varied: ShardFolder, shards: ShardFolder, tmp_path: Path, about: About, form: Any
) -> None:
    # Given an export with what earlier stages made, when one without is written in its place
    export(varied, TargetFolder(tmp_path / "out"), ExportSpec(format=form), about)
    export(shards, TargetFolder(tmp_path / "out"), ExportSpec(format=form), about)
    export(shards, TargetFolder(tmp_path / "fresh"), ExportSpec(format=form), about)
    # Then nothing is left of the first
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_equal_shards_with_files_beside_give_equal_bytes(varied: ShardFolder, tmp_path: Path, about: About) -> None:
    for form in FORMATS:
        for name in ("one", "other"):
            export(varied, TargetFolder(tmp_path / form / name), ExportSpec(format=form, file_samples=5), about)  # type: ignore[arg-type]
        assert files_of(tmp_path / form / "one") == files_of(tmp_path / form / "other")


def test_a_dataset_of_which_some_lack_latents_loads(tmp_path: Path, about: About, hf: Any) -> None:
    # Given samples of which the first alone has them
    maker = Maker(tmp_path / "some", chain=LONG, keep=("base", "latents"), shard_samples=4)
    pictures = [maker.picture(i) for i in range(4)]
    for one in pictures[1:]:
        one.recipes[0]["emits"] = "image"
        del one.kept["stage0.safetensors"]  # type: ignore[attr-defined]
    shards = write(maker, tmp_path / "shards", pictures, (), ())
    # Then
    for form in ("parquet", "imagefolder"):
        spec = ExportSpec(format=form, validation=0.5)  # type: ignore[arg-type]
        found = export(shards, TargetFolder(tmp_path / form), spec, about)
        assert len(found.counts) == 2, "one of the splits has none at all"
        loaded = hf.load_dataset(str(tmp_path / form))
        rows = sorted((row for split in loaded for row in loaded[split]), key=lambda row: str(row["key"]))
        assert [bool(row["stage0.safetensors"]) for row in rows] == [True, False, False, False]
        assert all(row["stage0.png"].size == (64, 64) for row in rows)


def test_files_beside_the_pictures_count_as_loose_ones(varied: ShardFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.dataset.choosing.MAX_FOLDER", 35)
    with pytest.raises(InvalidJob, match="an imagefolder of 36 files is more than"):
        choose(varied, ExportSpec(format="imagefolder"))


@pytest.mark.parametrize("form", FORMATS)
def test_datasets_loads_each_form_by_name(exported: Any, hf: Any, form: str) -> None:
    out, _, counts = exported(format=form)
    given = {"data_dir": str(out)}
    if form != "imagefolder":
        end = {"webdataset": "tar", "parquet": "parquet"}[form]
        given = {"data_files": {split: str(out / "data" / f"{split}-*.{end}") for split in counts}}
    loaded = hf.load_dataset(form, **given)
    assert {split: loaded[split].num_rows for split in loaded} == counts


def test_webdataset_loads_the_tars(exported: Any) -> None:
    out, extension, counts = exported(format="webdataset")
    files = [str(path) for path in sorted((out / "data").glob("*.tar"))]
    rows = list(webdataset.WebDataset(files, shardshuffle=False).decode("pil").to_tuple(extension, "txt", "json"))
    assert len(rows) == sum(counts.values())
    assert all(image.size == (64, 64) and text == known["prompt"] for image, text, known in rows)


def test_a_parquet_file_is_fetched_in_small_groups(
    maker: Maker, tmp_path: Path, about: About, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given 250 samples, which may be one picture
    many = replace(maker.picture(0))
    spec = maker.spec.model_copy(update={"shard_samples": 1000})
    maker.spec = spec
    pictures = [Picture(maker.sample(i), many.data, many.recipes, many.made) for i in range(250)]
    shards = write(maker, tmp_path / "many", pictures)
    export(shards, TargetFolder(tmp_path / "out"), ExportSpec(format="parquet"), about)
    found = pq.ParquetFile(tmp_path / "out" / "data" / "train-00000-of-00001.parquet").metadata
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == [100, 100, 50]
    # And in smaller ones where pictures are large
    monkeypatch.setattr("farm.dataset.forms.GROUP_BYTES", 40 * len(many.data))
    export(shards, TargetFolder(tmp_path / "out"), ExportSpec(format="parquet"), about)
    found = pq.ParquetFile(tmp_path / "out" / "data" / "train-00000-of-00001.parquet").metadata
    assert {found.row_group(i).num_rows for i in range(found.num_row_groups)} == {40, 10}


def test_nothing_heavy_is_loaded_until_it_is_needed() -> None:
    code = (
        "import sys, farm.dataset.exporting, farm.dataset.verifying\n"
        "print({'pyarrow', 'numpy', 'imagehash', 'scipy', 'pandas'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
