"""Do an export and a verification through the API, or of a folder that was fetched, say what they say on the spot?"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from farm.dataset.asking import carry_out
from farm.dataset.choosing import ExportSpec
from farm.dataset.collecting import exported, verified
from farm.dataset.desk import Datasets
from farm.dataset.fetched import Fetched
from farm.dataset.folder import Folder
from farm.errors import CODES, BadBlob, Conflict, NotFound, Unavailable
from farm.remote import RemoteFarm
from farm.remote.datasets import RemoteDatasets
from farm.remote.shelves import RemoteShards
from farm.remote.wire import Call
from tests.api.conftest import Site, problem
from tests.api.rows import DATASETS, asked, planned
from tests.api.shards import CHAIN, ended, publish, score
from tests.conftest import free_port
from tests.test_cli import Ran, run  # noqa: F401 — a fixture

Run = Callable[..., Ran]
ROWS = "prompt,label\n" + "".join(f"a {one},{one}\n" for one in ("pear", "plum", "fig", "lime", "kiwi"))
FORMATS = ("webdataset", "parquet", "imagefolder")


@pytest.fixture
def folder(site: Site, tmp_path: Path) -> Iterator[Folder]:
    """Ada's dataset of ten samples in three shards, each of which lacks its last one; the first two are scored."""
    with site.client("ada") as ada:
        planned(site, ada, "afar", ROWS, chain=CHAIN, sweep=[{"seed": [1, 2]}], shard_samples=4, keep=["base"])
        for number in range(3):
            publish(site, "afar", number, tmp_path)
        found = Folder(site.farm.store, "afar")
        score(found, 0)
        score(found, 1, tar="0" * 64)
        ended(found)
        yield found
        ada.delete(f"{DATASETS}/afar").raise_for_status()


@pytest.fixture
def there(site: Site) -> Iterator[RemoteDatasets]:
    """Ada's datasets, through the API."""
    with RemoteFarm(site.url, site.token("ada", "read", "submit"), site.settings) as farm:
        yield RemoteDatasets(farm)


@pytest.fixture
def afar(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    """Ada's command line, which reaches nothing of the farm but its API."""
    monkeypatch.setenv("FARM_URL", site.url)
    monkeypatch.setenv("FARM_TOKEN", site.token("ada", "read", "submit"))
    monkeypatch.setenv("FARM_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    return run


def files_of(path: Path) -> dict[str, bytes]:
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


def damage(folder: Folder, path: str) -> None:
    """Turns one bit of an object in its middle."""
    data = bytearray(folder.read(path) or b"")
    data[len(data) // 2] ^= 4
    folder.write(path, bytes(data))


# ----------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_from_afar_has_the_same_bytes(
    site: Site, folder: Folder, there: RemoteDatasets, tmp_path: Path, form: Any
) -> None:
    # Given wishes of all kinds
    spec = ExportSpec(
        format=form, where=("columns.label!=lime",), dedupe="exact", limit=4, validation=0.5, file_samples=2
    )
    # When
    here = Datasets(site.farm).export("afar", str(tmp_path / "here"), spec)
    found = there.export("afar", str(tmp_path / "there"), spec)
    list(there.fetch("afar", tmp_path / "fetched"))
    third = exported(Fetched(tmp_path / "fetched"), str(tmp_path / "third"), spec, site.farm.store)
    # Then
    assert here == found == third
    wanted = files_of(tmp_path / "here")
    assert sum(here.counts.values()) == 4
    assert {"README.md", "rejects.parquet", "contact-sheet.webp", "export.json"} < wanted.keys()
    assert files_of(tmp_path / "there") == files_of(tmp_path / "third") == wanted


def test_an_export_from_afar_knows_scores_but_not_those_of_an_earlier_tar(
    site: Site, folder: Folder, there: RemoteDatasets, tmp_path: Path
) -> None:
    spec = ExportSpec(where=("clip_score>=0.2",))
    here = Datasets(site.farm).export("afar", str(tmp_path / "here"), spec)
    found = there.export("afar", str(tmp_path / "there"), spec)
    list(there.fetch("afar", tmp_path / "fetched"))
    third = exported(Fetched(tmp_path / "fetched"), str(tmp_path / "third"), spec, site.farm.store)
    assert here == found == third
    assert here.counts == {"train": 2}  # of the three that the first shard has


def test_no_more_than_one_shard_is_on_the_disk(
    folder: Folder, there: RemoteDatasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    seen, real = list[list[str]](), RemoteShards.bring

    def bring(*given: Any) -> bool:
        found = real(*given)
        names = [path.name for path in (tmp_path / "temporary").rglob("*")]
        seen.append([name for name in names if re.fullmatch(r"\d{5}\.(tar|parquet)", name)])
        return found

    monkeypatch.setattr(RemoteShards, "bring", bring)
    # When
    there.export("afar", str(tmp_path / "out"), ExportSpec())
    there.verify("afar")
    # Then
    assert all(len({name[:5] for name in names}) <= 1 for names in seen)
    assert any(names == ["00002.tar"] for names in seen)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_connection_that_breaks_is_made_again(
    folder: Folder, there: RemoteDatasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that breaks off in the midst of every file, once, and then gives other bytes
    tried, real = dict[str, int](), RemoteFarm.save_to

    def save_to(self: RemoteFarm, path: Path, call: Call) -> str:
        found = real(self, path, call)
        place = call.path.partition("?")[0]
        tried[place] = tried.get(place, 0) + 1
        if tried[place] == 1:
            path.write_bytes(path.read_bytes()[:100])
            raise Unavailable("the farm's store does not answer")
        return "0" * 64 if tried[place] == 2 else found

    monkeypatch.setattr(RemoteFarm, "save_to", save_to)
    # Then all of it comes nevertheless
    assert there.export("afar", str(tmp_path / "out"), ExportSpec()).counts == {"train": 7}
    assert max(tried.values()) >= 3


def test_an_export_takes_nothing_that_is_damaged(
    site: Site, folder: Folder, there: RemoteDatasets, tmp_path: Path
) -> None:
    damage(folder, "shards/00001.tar")
    with pytest.raises(BadBlob, match=r"00001\.tar is not the file that was written") as caught:
        there.export("afar", str(tmp_path / "out"), ExportSpec())
    assert "farm dataset verify" in caught.value.hint
    with pytest.raises(BadBlob, match=r"00001\.tar is not the file that was written"):
        Datasets(site.farm).export("afar", str(tmp_path / "out"), ExportSpec())
    folder.delete(["shards/00001.tar"])
    with pytest.raises(BadBlob, match=r"00001\.tar is missing"):
        there.export("afar", str(tmp_path / "out"), ExportSpec())
    with pytest.raises(BadBlob, match=r"00001\.tar is missing"):
        list(there.fetch("afar", tmp_path / "fetched"))


def test_an_export_goes_to_the_bucket_of_who_exports(
    site: Site, folder: Folder, there: RemoteDatasets, tmp_path: Path
) -> None:
    bucket = site.settings.bucket
    there.export("afar", f"s3://{bucket}/mine", ExportSpec())
    Datasets(site.farm).export("afar", str(tmp_path / "here"), ExportSpec())
    listed = site.farm.store.client.list_objects_v2(Bucket=bucket, Prefix="mine/")["Contents"]
    found = {
        one["Key"][len("mine/") :]: site.farm.store.client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
        for one in listed
    }
    assert found == files_of(tmp_path / "here")


# ----------------------------------------------------------------------------------------------------------- verify


def test_a_verification_from_afar_finds_what_one_on_the_spot_finds(
    site: Site, folder: Folder, there: RemoteDatasets, tmp_path: Path
) -> None:
    here = Datasets(site.farm)
    list(there.fetch("afar", tmp_path / "fetched"))
    # Given a sound dataset
    found = there.verify("afar")
    assert (found.problems, found.shards, found.samples, found.failed) == ((), 3, 7, 3)
    assert found == here.verify("afar") == verified(Fetched(tmp_path / "fetched"), whole=True)
    # When samples are other ones than were planned, a byte is another, and files and shards are gone
    publish(site, "afar", 0, tmp_path, lambda sample: replace(sample, prompt="a nut"))
    damage(folder, "shards/00001.tar")
    folder.delete(["shards/00002_stats.json"])
    found = there.verify("afar")
    # Then
    assert found == here.verify("afar")
    assert {(one.shard, one.what) for one in found.problems} > {
        (0, "its prompt is not the one that was planned"),
        (1, "00001.tar is not the file that was written: its length or hash differs"),
        (2, "it was written and is not there any more"),
    }
    # And where nothing of a shard can be read
    folder.delete(["shards/00001.parquet", folder.plan().path_of(0)])
    publish(site, "afar", 2, tmp_path)
    for wrong in (b"{", b"[]", b"{}"):
        folder.write("shards/00002_stats.json", wrong)
        found = there.verify("afar")
        assert found == here.verify("afar")
        assert [one.shard for one in found.problems] == [0, 1, 2]
    # And then nothing of what is elsewhere is changed
    assert verified(Fetched(tmp_path / "fetched"), whole=True).problems == ()


def test_damage_is_mended_from_afar(site: Site, folder: Folder, there: RemoteDatasets, afar: Run) -> None:
    damage(folder, "shards/00001.tar")
    # When
    told = afar("dataset", "verify", "afar", "--json")
    # Then
    assert (told.status, told.code) == (1, "bad_blob")
    assert told.envelope["data"] == json.loads(json.dumps(asdict(Datasets(site.farm).verify("afar"))))
    assert "--repair" in told.envelope["error"]["hint"]
    found = afar("dataset", "verify", "afar", "--repair")
    assert "1 shards are taken away; `farm dataset run afar` makes them again" in found.out
    assert folder.numbers() == [0, 2]
    assert there.mend("afar", there.verify("afar")) == []


def test_what_was_written_again_since_it_was_judged_stays(
    site: Site, folder: Folder, there: RemoteDatasets, tmp_path: Path
) -> None:
    # Given two damaged shards, of which one is written again after they were looked at
    for number in (0, 1):
        damage(folder, f"shards/{number:05d}.tar")
    report = there.verify("afar")
    publish(site, "afar", 1, tmp_path, lambda sample: replace(sample, negative_prompt="another"))
    # When, Then
    assert there.mend("afar", report) == [0]
    assert folder.numbers() == [1, 2]


def test_what_could_not_be_made_again_is_not_taken_for_lost(site: Site, folder: Folder, there: RemoteDatasets) -> None:
    # Given shards that are sound, of which one's plan is gone and one's cannot be read
    folder.delete([folder.plan().path_of(0)])
    folder.write(folder.plan().path_of(1), b"no samples")
    # When
    for desk in (there, Datasets(site.farm)):
        found = desk.verify("afar")
        assert {one.shard for one in found.problems} == {0, 1}
        # Then
        assert desk.mend("afar", found) == []
    assert list(folder.numbers()) == [0, 1, 2]


def test_who_answers_in_the_stores_place_has_lost_no_file(site: Site, there: RemoteDatasets, tmp_path: Path) -> None:
    with RemoteFarm(site.url, site.token("ada")) as farm, pytest.raises(Unavailable, match="leads to no store"):
        farm.save_to(tmp_path / "file", Call("GET", f"{site.url}/nothing", known=False))


def test_a_folder_of_two_generations_is_no_dataset(
    site: Site, folder: Folder, there: RemoteDatasets, tmp_path: Path
) -> None:
    # Given a folder that was fetched, of which a shard was made anew since
    list(there.fetch("afar", tmp_path / "fetched"))
    publish(site, "afar", 0, tmp_path, lambda sample: replace(sample, prompt="a nut"))
    # When fetching it again ends after the first file
    once_more = there.fetch("afar", tmp_path / "fetched")
    assert next(once_more)[0] == "00000.tar"
    once_more.close()
    # Then that shard is none, until all of it is there
    assert Fetched(tmp_path / "fetched").numbers() == [1, 2]
    list(there.fetch("afar", tmp_path / "fetched"))
    assert Fetched(tmp_path / "fetched").numbers() == [0, 1, 2]
    # And bytes that changed on the disk are exported by nobody
    path = tmp_path / "fetched" / "00002.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(BadBlob, match=r"00002\.tar is not the file that was written"):
        exported(Fetched(tmp_path / "fetched"), str(tmp_path / "out"), ExportSpec(), site.farm.store)


def test_a_folder_is_verified_without_its_farm(
    folder: Folder, afar: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "fetched"
    assert not afar("dataset", "fetch", "afar", "-o", out).status
    # Given no farm at all
    monkeypatch.delenv("FARM_URL")
    # When, Then
    sound = afar("dataset", "verify", "--from", out)
    assert sound.status == 0, sound.out
    assert "7 samples in 3 shards, 3 failed" in sound.out
    data = bytearray((out / "00001.tar").read_bytes())
    data[len(data) // 2] ^= 4
    (out / "00001.tar").write_bytes(data)
    (out / "00002.tar").unlink()
    wrong = afar("dataset", "verify", "--from", out, "--json")
    assert {one["what"] for one in wrong.envelope["data"]["problems"]} >= {
        "00001.tar is not the file that was written: its length or hash differs", "00002.tar is missing",
    }  # fmt: skip
    assert f"farm dataset fetch afar -o {out}" in wrong.envelope["error"]["hint"]
    assert afar("dataset", "verify", "--from", out, "--repair", "--json").code == "usage"


def test_a_card_says_what_is_made_or_what_is_to_be(site: Site, folder: Folder, there: RemoteDatasets) -> None:
    # Given a dataset that is made, Then its card is that of an export
    assert there.card("afar") == Datasets(site.farm).card("afar")
    assert "7 pictures" in there.card("afar")
    # Given one that is asked for, Then it has none yet, and that is said
    with site.client("ada") as ada:
        asked(ada, "later", ROWS, chain=CHAIN, sweep=[{"seed": [1, 2]}])
        for desk in (Datasets(site.farm), there):
            with pytest.raises(Conflict, match="plan") as caught:
                desk.card("later")
            assert "farm dataset status later" in caught.value.hint
        # Given one of which nothing is made
        carry_out(site.farm, "later", lambda: False)
        told = there.card("later")
        ada.delete(f"{DATASETS}/later").raise_for_status()
    # Then it says what it is to be, and no figure or line that could not be true
    for text in ("# later", "10 pictures of 64x64", "in 5 shards", "farm dataset run later", '"kind": "img2img"',
                 "rows.csv, 5 rows", "varied along seed"):  # fmt: skip
        assert text in told
    assert "| tiny |" in told
    for text in ("load_dataset", "contact-sheet", " MB", "could not be made", "size_categories"):
        assert text not in told


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_line_exports_from_afar_and_from_a_folder(
    site: Site, folder: Folder, afar: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ExportSpec(where=("clip_score>=0.1",), blank_below=1.0)
    Datasets(site.farm).export("afar", str(tmp_path / "here"), spec)
    words = ("--where", "clip_score>=0.1", "--blank-below", "1", "-o")
    # When
    told = afar("dataset", "export", "afar", *words, tmp_path / "there")
    assert (told.status, told.out) == (0, f"{tmp_path / 'there'}: 3 train; left out: 4 clip_score>=0.1\n"), told.err
    # And, of a folder, with no farm
    assert not afar("dataset", "fetch", "afar", "-o", tmp_path / "fetched").status
    monkeypatch.delenv("FARM_URL")
    again = afar("dataset", "export", "--from", tmp_path / "fetched", *words, tmp_path / "third")
    # Then
    assert again.status == 0, again.err
    assert files_of(tmp_path / "there") == files_of(tmp_path / "third") == files_of(tmp_path / "here")
    # And an export is not written over what it is made of
    assert afar("dataset", "export", "--from", tmp_path / "fetched", "-o", tmp_path / "fetched").status == 1


def test_what_is_fetched_is_for_loaders_and_the_rest_is_hidden(
    folder: Folder, there: RemoteDatasets, tmp_path: Path
) -> None:
    import pyarrow.dataset

    out = tmp_path / "fetched"
    # When it is fetched, scored, and fetched again
    list(there.fetch("afar", out))
    score(folder, 2)
    assert [size for _, size in there.fetch("afar", out)] == [0] * 6
    # Then only shards are seen
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        f"{number:05d}.{end}" for number in range(3) for end in ("parquet", "tar")
    ]
    table = pyarrow.dataset.dataset(out, format="parquet", exclude_invalid_files=True).to_table()
    assert (table.num_rows, "clip_score" in table.column_names) == (7, False)
    assert Fetched(out).scores(2) == folder.scores(2)
    assert Fetched(out).plan() == folder.plan()
    # And what the farm would not tell a caller is not in it
    assert "s3-host-7" not in (out / ".dataset" / "00000_stats.json").read_text()


def test_a_damaged_shard_keeps_no_other_from_being_fetched(
    folder: Folder, there: RemoteDatasets, tmp_path: Path
) -> None:
    folder.write("shards/00000_stats.json", b"{")
    with pytest.raises(BadBlob, match="shards 0 are damaged") as caught:
        list(there.fetch("afar", tmp_path / "fetched"))
    assert "verify afar --repair" in caught.value.hint
    assert Fetched(tmp_path / "fetched").numbers() == [1, 2]


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["export", "-o", "out"], "usage", "--from reads"),
        (["export", "afar", "--from", "x", "-o", "out"], "usage", "--from reads"),
        (["export", "--from", "x", "-o", "out"], "not_found", "farm dataset fetch"),
        (["verify"], "usage", "--from reads"),
        (["verify", "--from", "x"], "not_found", "farm dataset fetch"),
        (["export", "none", "-o", "out"], "not_found", ""),
        (["verify", "none"], "not_found", ""),
        (["export", "afar", "-o", "s3://x"], "invalid_field", ""),
        (["export", "afar", "-o", "out", "--where", "nope>1"], "invalid_field", ""),
        (["score", "afar", "--clip", "x"], "usage", "farm dataset score --from FOLDER"),
        (["score", "--clip", "x"], "usage", "--from reads"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else None,
)  # fmt: skip
def test_what_cannot_be_meant_is_said(
    folder: Folder, afar: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = afar("dataset", *words, "--json")
    assert found.code == code
    assert hint in found.envelope["error"]["hint"]
    assert not (tmp_path / "out").exists()


def test_an_export_waits_for_all_shards_or_is_told_not_to(
    site: Site, folder: Folder, there: RemoteDatasets, tmp_path: Path
) -> None:
    folder.delete(["shards/00001_stats.json"])
    for desk in (Datasets(site.farm), there):
        with pytest.raises(Conflict, match="2 of 3 shards of afar are there") as caught:
            desk.export("afar", str(tmp_path / "out"), ExportSpec())
        assert "farm dataset run afar" in caught.value.hint
        assert desk.export("afar", str(tmp_path / "out"), ExportSpec(), partial=True).counts == {"train": 4}


# ----------------------------------------------------------------------------------------------------------- the API


def test_the_files_of_a_shard_are_given_out(site: Site, folder: Folder) -> None:
    at = f"{DATASETS}/afar/shards/0"
    with site.client("ada", "read") as ada, httpx2.Client(trust_env=False) as nobody:
        paths = {"scores": "shards/00000_scores.parquet", "samples": folder.plan().path_of(0)}
        for end, path in paths.items():
            leads = ada.get(f"{at}/{end}")
            assert leads.status_code == 307
            assert nobody.get(leads.headers["location"]).content == folder.read(path)
        # What nobody foresaw is told as that alone
        told = ada.get(f"{at}/stats").json()
        (failure,) = told.pop("failures")
        stats = folder.stats(0)
        (written,) = stats.pop("failures")
        assert (told, failure) == (stats, {**written, "message": CODES["internal"]})
        assert ada.get(f"{DATASETS}/afar/plan").json() == json.loads(folder.plan().model_dump_json())
        # And what is not there is not found
        problem(ada.get(f"{DATASETS}/afar/shards/2/scores"), 404, "not_found")
        for end in ("stats", "scores", "samples"):
            problem(ada.get(f"{DATASETS}/afar/shards/3/{end}"), 404, "not_found")
        # Who may only read takes nothing for lost
        problem(ada.delete(at), 403, "forbidden")
    assert folder.numbers() == [0, 1, 2]


def test_a_shard_that_cannot_be_read_is_named_and_hides_no_other(site: Site, folder: Folder) -> None:
    for wrong in (b"{", b"[]", b'{"shard": 1}', b'{"failures": [1], "files": 2}'):
        folder.write("shards/00001_stats.json", wrong)
        with site.client("ada") as ada:
            found = ada.get(f"{DATASETS}/afar/shards").json()
            assert ([one["shard"] for one in found["shards"]], found["damaged"]) == ([0, 2], [1])
            assert ada.get(f"{DATASETS}/afar/shards/1/stats").status_code in (200, 500)
    # And taken for lost, it is to be made again
    with site.client("ada") as ada:
        assert ada.delete(f"{DATASETS}/afar/shards/1").status_code == 204
        problem(ada.delete(f"{DATASETS}/afar/shards/1"), 404, "not_found")
        assert ada.get(f"{DATASETS}/afar/shards").json()["damaged"] == []
        assert ada.post(f"{DATASETS}/afar/start").json()["state"] == "running"
        ada.post(f"{DATASETS}/afar/pause")


def test_a_dataset_of_somebody_else_is_none(site: Site, folder: Folder, tmp_path: Path) -> None:
    with RemoteFarm(site.url, site.token("bob", "read", "submit"), site.settings) as farm:
        bobs = RemoteDatasets(farm)
        for call in (
            lambda: bobs.export("afar", str(tmp_path / "out"), ExportSpec()), lambda: bobs.verify("afar"),
            lambda: list(bobs.fetch("afar", tmp_path / "out")), lambda: bobs.card("afar"),
        ):  # fmt: skip
            with pytest.raises(NotFound, match="no such dataset"):
                call()
    assert not (tmp_path / "out").exists()
