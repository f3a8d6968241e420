"""Is a shard the same bytes whenever it is written, and does every loader read all of it?"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tarfile
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import ExifTags, Image
from sd_parsers import ParserManager
from sd_parsers.data import Generators

from farm.dataset.encoding import decode, encode, recipe_in
from farm.dataset.quality import measure
from farm.dataset.sharding import Shard, ShardWriter
from farm.dataset.spec import Failed, Picture, sample_id
from farm.dataset.tars import TarWriter, entries
from farm.errors import BadBlob, Conflict, InvalidJob
from farm.image import hash_pixels, pixels_sha256, read_recipe, read_told, to_png
from farm.job import canonical
from farm.label import PACKET, label
from tests.dataset.made import LONG, Maker, drawn

FORMATS = ("png", "webp", "jpg")


def bytes_of(shard: Shard) -> tuple[bytes, bytes]:
    return shard.tar.read_bytes(), shard.parquet.read_bytes()


def known(shard: Shard) -> list[dict[str, Any]]:
    with entries(shard.tar) as found:
        return [entry.known() for entry in found]


def test_a_shard_says_all_of_its_samples(tmp_path: Path) -> None:
    # Given
    maker = Maker(tmp_path, chain=LONG, keep=("base", "latents"))
    pictures = [maker.picture(i, choices=("a", "b")[:i], columns={"source": f"s{i}"}) for i in range(3)]
    failed = [Failed(maker.sample(i), "failed", "gpu_oom", "no room") for i in (4, 3)]
    # When
    shard = maker.shard(tmp_path / "out", pictures, columns=("source", "note"), failed=failed)
    # Then the tar has the members of every sample, in order, and no trace of when and where
    with tarfile.open(shard.tar) as tar:
        members = tar.getmembers()
        ends = ("png", "txt", "json", "stage0.png", "stage0.safetensors")
        assert [one.name for one in members] == [f"00000000{i}.{end}" for i in range(3) for end in ends]
        bare = {(one.mtime, one.uid, one.gid, one.uname, one.gname, one.mode, one.type) for one in members}
        assert bare == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}
    # And each member is what was given
    with entries(shard.tar) as found:
        for entry, picture in zip(found, pictures, strict=True):
            assert entry.picture() == ("png", picture.data)
            assert entry.read("txt").decode() == picture.sample.prompt
            assert {name: entry.read(name) for name in picture.kept} == picture.kept
    # And what is known of a sample is in its JSON
    first = known(shard)[1]
    image = decode(pictures[1].data)
    assert first == {
        "key": "000000001",
        "sample": sample_id("fruit", 2, 0),
        "row": 2,
        "variant": 0,
        "prompt": "pear no. 1",
        "negative_prompt": "blurry",
        "seed": 1001,
        "width": 64,
        "height": 64,
        "choices": '["a"]',
        "checkpoints": ["tiny", "tiny"],
        "columns": {"source": "s1", "note": ""},
        "recipe": canonical(pictures[1].recipes),
        "made": canonical(pictures[1].made),
        "sha256": hashlib.sha256(pictures[1].data).hexdigest(),
        "pixels": hash_pixels(image),
        "phash": measure(image).phash,
        "luma_mean": measure(image).luma_mean,
        "luma_std": measure(image).luma_std,
        "luma_top": measure(image).luma_top,
    }
    # And the table has the same, with lists where JSON has text
    rows = pq.read_table(shard.parquet).to_pylist()
    assert rows == [{**one, "choices": json.loads(one["choices"])} for one in known(shard)]
    # And its facts are those of the files
    sizes = [len(picture.data) for picture in pictures]
    for path in (shard.tar, shard.parquet):
        data = path.read_bytes()
        told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert shard.facts["files"][path.name] == told
    counts = [shard.facts[name] for name in ("shard", "count", "successes", "failed", "image_bytes")]
    assert counts == [0, 5, 3, 2, sum(sizes)]
    assert [one["key"] for one in shard.facts["failures"]] == ["000000003", "000000004"]
    assert shard.facts["failures"][0] | {"key": ""} == {
        "key": "",
        "sample": sample_id("fruit", 4, 0),
        "row": 4,
        "variant": 0,
        "state": "failed",
        "code": "gpu_oom",
        "message": "no room",
    }
    json.dumps(shard.facts)
    assert sorted(path.name for path in shard.tar.parent.iterdir()) == ["00000.parquet", "00000.tar"]


@pytest.mark.parametrize("form", FORMATS)
def test_equal_samples_give_equal_bytes_in_any_order(tmp_path: Path, form: str) -> None:
    # Given
    maker = Maker(tmp_path, image_format=form)
    pictures = [maker.picture(i, columns={"a": "1"}) for i in range(6)]
    once = bytes_of(maker.shard(tmp_path / "once", pictures, columns=("a",)))
    # When the same come in another order
    random.Random(1).shuffle(pictures)
    again = bytes_of(maker.shard(tmp_path / "again", pictures, columns=("a",)))
    # Then
    assert once == again


def test_a_shard_that_is_tried_again_keeps_what_it_had(tmp_path: Path) -> None:
    # Given a shard that lacks two samples, and one that never did
    maker = Maker(tmp_path, keep=("base",), chain=LONG, image_format="webp")
    pictures = [maker.picture(i) for i in range(5)]
    whole = maker.shard(tmp_path / "whole", pictures)
    first = maker.shard(tmp_path / "out", [pictures[i] for i in (0, 2, 4)])
    # When they are made now
    with ShardWriter(tmp_path / "out", 0, maker.spec, ()) as writer:
        writer.add(pictures[1])
        writer.keep(first.tar)
        writer.add(pictures[3])
        again = writer.finish([])
    # Then nobody can tell
    assert bytes_of(again) == bytes_of(whole)
    assert again.facts == whole.facts


def test_a_sample_is_in_a_shard_once(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    with ShardWriter(tmp_path, 0, maker.spec, ()) as writer:
        writer.add(maker.picture(0))
        with pytest.raises(Conflict, match="000000000 is in this shard already"):
            writer.add(maker.picture(0))


def test_an_empty_shard_is_one_too(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    shard = maker.shard(tmp_path / "out", [], failed=[Failed(maker.sample(0), "failed", "crashed", "gone")])
    assert known(shard) == []
    assert pq.read_table(shard.parquet).num_rows == 0
    assert (shard.facts["successes"], shard.facts["failed"]) == (0, 1)


def test_what_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "made")
    folder = tmp_path / "out"
    folder.mkdir()
    with suppress(ZeroDivisionError), ShardWriter(folder, 0, maker.spec, ()) as writer:
        writer.add(maker.picture(1))
        assert len(list(folder.iterdir())) == 2
        raise ZeroDivisionError
    assert list(folder.iterdir()) == []


def test_memory_holds_one_sample(tmp_path: Path) -> None:
    import tracemalloc

    # Given pictures of some 190 KB
    maker = Maker(tmp_path)
    image = Image.frombytes("RGB", (256, 256), random.Random(1).randbytes(256 * 256 * 3))
    picture = maker.picture(0, image)
    assert len(picture.data) > 150_000
    maker.shard(tmp_path / "warm", [picture])
    # When fifty of them are written backwards
    tracemalloc.start()
    with ShardWriter(tmp_path, 0, Maker(tmp_path / "b", shard_samples=50).spec, ()) as writer:
        for index in reversed(range(50)):
            writer.add(Picture(maker.sample(index), picture.data, picture.recipes, picture.made))
        shard = writer.finish([])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Then what a few take was needed, not what all take
    assert shard.tar.stat().st_size > 50 * 150_000
    assert peak < 3_000_000


# ------------------------------------------------------------------------------------------- bad parts


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_damaged_picture_is_told(tmp_path: Path, form: str, share: float) -> None:
    # Given
    maker = Maker(tmp_path, image_format=form)
    whole = maker.picture(0)
    cut = Picture(whole.sample, whole.data[: int(len(whole.data) * share)], whole.recipes, whole.made)
    # When, then
    with ShardWriter(tmp_path, 0, maker.spec, ()) as writer:
        with pytest.raises(BadBlob, match="cannot be decoded"):
            writer.add(cut)
        # And the shard goes on without it
        writer.add(maker.picture(1))
        assert writer.finish([]).facts["successes"] == 1


def test_a_sample_without_what_others_have_beside_the_picture_is_told(tmp_path: Path) -> None:
    maker = Maker(tmp_path, chain=LONG, keep=("base", "latents"))
    whole = maker.picture(0)
    part = Picture(whole.sample, whole.data, whole.recipes, whole.made, {"stage0.png": whole.kept["stage0.png"]})
    message = "there is stage0.png beside the picture, where all have stage0.png, stage0.safetensors"
    with ShardWriter(tmp_path, 0, maker.spec, ()) as writer, pytest.raises(BadBlob, match=message):
        writer.add(part)


@pytest.mark.parametrize("form", ["webp", "jpg"])
def test_a_picture_without_recipe_cannot_be_written_in_another_form(form: Any) -> None:
    with pytest.raises(BadBlob, match="no recipe"):
        encode(to_png(drawn(0)), drawn(0), form, 90)


@pytest.mark.parametrize("cut", [0, 100, 512, 2000, 5000, -10240, -1025])
def test_a_tar_that_was_cut_is_told(tmp_path: Path, cut: int) -> None:
    maker = Maker(tmp_path)
    shard = maker.shard(tmp_path / "out", [maker.picture(i) for i in range(3)])
    with shard.tar.open("r+b") as file:
        file.truncate(cut if cut >= 0 else shard.tar.stat().st_size + cut)
    with pytest.raises(BadBlob), ShardWriter(tmp_path, 0, maker.spec, ()) as writer:
        writer.keep(shard.tar)


def test_a_tar_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadBlob, match=r"gone.tar cannot be read: No such file"), entries(tmp_path / "gone.tar"):
        pass


def test_what_a_sample_lacks_is_told(tmp_path: Path) -> None:
    # Given a sample that is only a text, and a JSON that is none
    with TarWriter(tmp_path / "odd.tar") as writer:
        writer.add("000000000", {"txt": b"x", "json": b"[1]"})
        writer.close()
    # Then
    with entries(tmp_path / "odd.tar") as found:
        entry = next(found)
        with pytest.raises(BadBlob, match="no picture"):
            entry.picture()
        with pytest.raises(BadBlob, match="no webp"):
            entry.read("webp")
        with pytest.raises(BadBlob, match="cannot be read"):
            entry.known()
    with (
        pytest.raises(BadBlob, match="no picture"),
        ShardWriter(tmp_path, 0, Maker(tmp_path / "made").spec, ()) as writer,
    ):
        writer.keep(tmp_path / "odd.tar")


# ------------------------------------------------------------------------------------------- what others read


@pytest.mark.parametrize("form", FORMATS)
def test_sd_parsers_reads_every_form(tmp_path: Path, form: str) -> None:
    # Given
    prompt = "café, 城堡 \U0001f600\nwith Steps: 3"
    maker = Maker(tmp_path, image_format=form)
    shard = maker.shard(tmp_path / "out", [maker.picture(0, prompt=prompt)])
    with entries(shard.tar) as found:
        _, data = next(found).picture()
    # When
    told = ParserManager().parse(BytesIO(data))
    # Then
    assert told.generator is Generators.AUTOMATIC1111
    (sampler,) = told.samplers
    assert [one.value for one in sampler.prompts] == [prompt.replace("Steps:", "Steps :")]
    assert [one.value for one in sampler.negative_prompts] == ["blurry"]
    assert sampler.parameters["seed"] == "1000"


@pytest.mark.parametrize("form", ["webp", "jpg"])
def test_another_form_forgets_nothing(tmp_path: Path, form: Any) -> None:
    # Given
    maker = Maker(tmp_path, image_format=form, image_quality=95)
    picture = maker.picture(0)
    shard = maker.shard(tmp_path / "out", [picture])
    with entries(shard.tar) as found:
        _, data = next(found).picture()
    # Then the recipe is there, the packet that says that a machine drew it, and nearly the pixels
    assert recipe_in(data) == {**(recipe_in(picture.data) or {}), "pixels": pixels_sha256(picture.data)}
    with Image.open(BytesIO(data)) as opened:
        assert opened.info["xmp"].decode() == PACKET
        assert opened.size == (64, 64)
        exif = opened.info["exif"]
    near = [abs(one - other) for one, other in zip(decode(data).tobytes(), decode(picture.data).tobytes(), strict=True)]
    assert sum(near) / len(near) < 8
    # And the two texts have the type that EXIF asks for: of another, A1111's programs read nothing
    types = [exif[at + 2 : at + 4] for at in (exif.find(struct.pack(">H", tag)) for tag in (0x927C, 0x9286))]
    assert types == [struct.pack(">H", 7)] * 2


def test_a_jpeg_leaves_out_a_recipe_that_it_cannot_hold() -> None:
    # Given a recipe of 100 KB, and one of a picture that nothing denoised
    long = [{"kind": "text2img", "parameters": {"prompt": "p" * 100_000}, "size": [64, 64]}]
    png = to_png(drawn(0), {"recipes": long}, label(long))
    # Then WebP holds it
    drew = pixels_sha256(png)
    assert recipe_in(encode(png, drawn(0), "webp", 90)) == {"recipes": long, "pixels": drew}
    # And JPEG is without, and says so
    data = encode(png, drawn(0), "jpg", 90)
    assert recipe_in(data) is None
    assert read_told(data) == {"too_long": True, "pixels": drew}
    assert len(data) < 20_000
    with pytest.raises(InvalidJob, match="too long for a JPEG"):
        read_recipe(data)


@pytest.mark.parametrize("form", ["webp", "jpg"])
def test_a_picture_with_flipped_bits_says_its_recipe_or_is_refused(tmp_path: Path, form: Any) -> None:
    whole = encode(Maker(tmp_path).picture(0).data, drawn(0), form, 90)
    dice, refused = random.Random(5), 0
    for _ in range(300):
        data = bytearray(whole)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        try:
            assert isinstance(read_recipe(bytes(data)), dict)
        except InvalidJob:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize("note", [b"Nikon", b"latent-farm\0{", b"latent-farm\0[]"])
def test_a_recipe_that_is_none_is_told(note: bytes) -> None:
    exif, out = Image.Exif(), BytesIO()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = note
    drawn(0).save(out, "WEBP", exif=exif)
    with pytest.raises(BadBlob):
        recipe_in(out.getvalue())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_datasets_loads_shards(tmp_path: Path, hf: Any, form: str, streaming: bool) -> None:
    # Given two shards whose first samples have no choices, and later ones some
    maker = Maker(tmp_path, image_format=form, chain=LONG, keep=("base", "latents"))
    for number in range(2):
        pictures = [maker.picture(8 * number + i, choices=("x",) if i > 6 else ()) for i in range(8)]
        maker.shard(tmp_path / "out", pictures, number, columns=("a b",))
    # When
    files = {"train": str(tmp_path / "out" / "*.tar")}
    loaded = hf.load_dataset("webdataset", data_files=files, split="train", streaming=streaming)
    rows = list(loaded)
    # Then all are there, with their types
    assert [row["__key__"].rpartition("/")[2] for row in rows] == [f"0000{n}000{i}" for n in range(2) for i in range(8)]
    assert all(row[form].size == row["stage0.png"].size == (64, 64) for row in rows)
    assert [row["txt"] for row in rows] == [f"pear no. {i}" for i in range(16)]
    assert [row["json"]["choices"] for row in rows[5:8]] == ["[]", "[]", '["x"]']
    features = loaded.features
    assert isinstance(features[form], hf.Image)
    assert isinstance(features["stage0.png"], hf.Image)
    assert features["txt"] == hf.Value("string")
    assert features["stage0.safetensors"] == hf.Value("binary")
    inside = {name: feature for name, feature in features["json"].items() if not isinstance(feature, hf.Value)}
    assert inside == {"checkpoints": hf.List(hf.Value("string")), "columns": {"a b": hf.Value("string")}}
    kinds = {name: features["json"][name].dtype for name in ("seed", "width", "luma_std", "recipe", "choices")}
    assert kinds == {"seed": "int64", "width": "int64", "luma_std": "float64", "recipe": "string", "choices": "string"}


def test_webdataset_loads_shards(tmp_path: Path) -> None:
    # Given
    maker = Maker(tmp_path)
    for number in range(2):
        maker.shard(tmp_path / "out", [maker.picture(8 * number + i) for i in range(8)], number)
    # When
    pipeline = webdataset.WebDataset(str(tmp_path / "out" / "{00000..00001}.tar"), shardshuffle=False)
    rows = list(islice(pipeline.decode("pil").to_tuple("png", "txt", "json"), 100))
    # Then
    assert [row[2]["key"] for row in rows] == [f"0000{n}000{i}" for n in range(2) for i in range(8)]
    for index, (image, text, told) in enumerate(rows):
        assert image.tobytes() == drawn(index).tobytes()
        assert text == told["prompt"] == f"pear no. {index}"


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_the_tables(tmp_path: Path, hf: Any, streaming: bool) -> None:
    # Given
    maker = Maker(tmp_path)
    pictures = [maker.picture(i, choices=("x",)[: i % 2], columns={"prompt": str(i)}) for i in range(4)]
    shard = maker.shard(tmp_path / "out", pictures, columns=("prompt",))
    # When
    loaded = hf.load_dataset("parquet", data_files={"train": str(shard.parquet)}, split="train", streaming=streaming)
    # Then
    assert [row["columns"] for row in loaded] == [{"prompt": str(i)} for i in range(4)]
    assert [row["choices"] for row in loaded] == [[], ["x"]] * 2
    assert loaded.features["choices"] == hf.List(hf.Value("string"))
