"""Do files of rows become datasets over HTTP: checked, for their owner alone, and nothing left of what was refused?"""

from __future__ import annotations

import gzip
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from farm.api import dataset_asks
from farm.client import Farm
from farm.dataset.asking import Asked, ask, carry_out
from farm.dataset.files import HEAD, drop, uploads
from farm.dataset.folder import Folder
from farm.errors import CODES, FarmError, InvalidJob
from tests.api.conftest import Json, Site, locs, open_site, picture, problem
from tests.api.rows import CSV, DATASETS, FRUIT, asked, planned, stored
from tests.e2e.rig import until

FILES = f"{DATASETS}/files"


@pytest.fixture(autouse=True)
def own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for temporary files that nobody else writes to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def previewed(client: httpx2.Client, file: str, **given: Any) -> Json:
    """A preview that succeeded."""
    answer = client.post(f"{DATASETS}/preview", json={"file": file, **given})
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def keys(site: Site, prefix: str) -> list[str]:
    """The keys in the store that begin so."""
    found = site.farm.store.client.list_objects_v2(Bucket=site.settings.bucket, Prefix=prefix)
    return [one["Key"] for one in found.get("Contents", [])]


def temporary() -> set[Path]:
    """What uploads have on this machine's disk."""
    return set(Path(tempfile.gettempdir()).glob("upload-*"))


# ------------------------------------------------------------------------------------------------------------- files


def test_a_file_is_told_by_its_first_rows(ada: httpx2.Client) -> None:
    # Given more rows than are looked at, of which two are wrong
    data = "prompt,seed\na pear,1\na plum\n" + "".join(f"row {row},{row}\n" for row in range(3, 100))
    # When
    found = stored(ada, data + '"x" y,2\n', "C:\\mine\\fruit & more.csv")
    # Then
    assert (found["name"], found["format"], found["columns"]) == ("fruit_more.csv", "csv", ["prompt", "seed"])
    assert found["size_bytes"] == len(data) + len('"x" y,2\n')
    assert [row["row"] for row in found["rows"]] == [1, *range(3, 21)]
    assert found["rows"][0]["values"] == {"prompt": "a pear", "seed": "1"}
    assert [(one["row"], one["code"]) for one in found["errors"]] == [(2, "bad_row")]
    # And the same bytes are the same file
    assert stored(ada, data + '"x" y,2\n', "fruit_more.csv") == found


def parquet() -> bytes:
    out = BytesIO()
    pq.write_table(pa.table({"prompt": ["a pear", "a plum"], "score": [0.5, 1.0]}), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "columns"),
    [
        ("x.tsv", b"prompt\tlabel\na\tb\n", ["prompt", "label"]),
        ("x.txt", b"a pear\n# not this\na plum\n", ["prompt"]),
        ("x.json", b'[{"prompt": "a", "n": 1}]', ["prompt", "n"]),
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "b", "n": {"m": 1}}\n', ["prompt", "n"]),
        ("x.csv.gz", gzip.compress(FRUIT.encode(), mtime=0), ["prompt", "label"]),
        ("x.parquet", parquet(), ["prompt", "score"]),
    ],
)
def test_every_format_gets_in(ada: httpx2.Client, name: str, data: bytes, columns: list[str]) -> None:
    found = stored(ada, data, name)
    assert (found["columns"], found["errors"]) == (columns, [])
    assert len(previewed(ada, found["id"])["first"]) == len(found["rows"])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.csv", b""), ("x.csv", b"prompt,prompt\na,b\n"), ("x.csv", b"\"never closed\n"), ("x.csv", b"PK\x03\x04zip"),
        ("x.json", b"{}"), ("x.parquet", b"PAR1 and no more"), ("x.parquet", parquet()[:-20]), ("x.csv.gz", b"no gzip"),
        ("x.zip", b"PK"), ("x", FRUIT.encode()), ("x.exe", FRUIT.encode()), ("x.csv", bytes(1000)),
    ],
)  # fmt: skip
def test_what_is_no_file_of_rows_is_refused_whole(site: Site, name: str, data: bytes) -> None:
    with site.client("bad-files") as client:
        told = problem(client.post(FILES, params={"name": name}, content=data, headers=CSV), 422, "bad_file")
        assert tempfile.gettempdir() not in str(told)
    # And nothing of it is left
    assert keys(site, "datasets-files/bad-files/") == []
    assert temporary() == set()


def test_a_file_that_takes_too_much_memory_ends_its_reader_alone(ada: httpx2.Client) -> None:
    # Given a small file, whose first rows are some 20 GB
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2048, pa.int32()), pa.array(["x" * (10 << 20)]))
    out = BytesIO()
    pq.write_table(pa.table({"prompt": text}), out, compression="zstd")
    # When, Then
    answer = ada.post(FILES, params={"name": "bomb.parquet"}, content=out.getvalue(), headers=CSV)
    assert "memory" in problem(answer, 422, "bad_file")["detail"]
    assert ada.get(DATASETS).status_code == 200


def test_a_refusal_tells_what_helps(ada: httpx2.Client) -> None:
    answer = ada.post(FILES, params={"name": "x.csv"}, content=b"prompt,prompt\na,b\n", headers=CSV)
    assert problem(answer, 422, "bad_file")["hint"] == "rename one of them"
    # And where nothing more can be said, nothing is
    assert "hint" not in problem(ada.get(f"{DATASETS}/none"), 404, "not_found")


def test_a_form_is_not_taken(ada: httpx2.Client) -> None:
    answer = ada.post(FILES, params={"name": "x.csv"}, files={"file": ("x.csv", b"prompt\na\n")})
    assert "raw file" in problem(answer, 415, "bad_media_type")["detail"]


@pytest.fixture
def small(site: Site) -> Iterator[Site]:
    """The same farm, that takes files of 100 kB."""
    with open_site(site.settings.model_copy(update={"max_dataset_bytes": 100_000})) as found:
        yield found


def test_a_file_is_counted_as_it_comes(small: Site) -> None:
    def parts() -> Iterator[bytes]:
        yield b"prompt\n"
        for _ in range(200):
            yield b"a pear\n" * 100

    with small.client("too-large") as client:
        # Without a length, and with one
        answer = client.post(FILES, params={"name": "x.csv"}, content=parts(), headers=CSV)
        problem(answer, 413, "body_too_large")
        problem(
            client.post(FILES, params={"name": "x.csv"}, content=bytes(100_001), headers=CSV), 413, "body_too_large"
        )
        # One that is larger than another body may be is taken here alone
        problem(client.post(DATASETS, content=bytes(1 << 21), headers=CSV), 413, "body_too_large")
    assert temporary() == set()
    assert keys(small, "datasets-files/too-large/") == []


def test_a_large_file_is_never_whole_in_memory(site: Site, ada: httpx2.Client) -> None:
    # Given a file of 256 MiB, sent as it is made
    line = b"a pear on a plate of many words, number 000000000000000000000000\n"
    process, held, over = psutil.Process(), [0], threading.Event()

    def parts() -> Iterator[bytes]:
        yield b"prompt\n"
        for _ in range((256 << 20) // (len(line) * 1000)):
            yield line * 1000

    def watch() -> None:
        while not over.wait(0.02):
            held[0] = max(held[0], process.memory_info().rss)

    before, watching = process.memory_info().rss, threading.Thread(target=watch)
    watching.start()
    # When
    try:
        answer = ada.post(FILES, params={"name": "large.csv"}, content=parts(), headers=CSV, timeout=120)
    finally:
        over.set()
        watching.join()
    # Then all of it is stored, and little of it was held
    assert answer.status_code == 201, answer.text
    size = answer.json()["size_bytes"]
    assert size > 250 << 20
    (key,) = (one for one in keys(site, "datasets-files/") if one.endswith("/large.csv"))
    assert site.farm.store.about(site.settings.bucket, key)[0] == size
    assert held[0] - before < 64 << 20


def test_an_upload_that_breaks_off_leaves_nothing(site: Site) -> None:
    # Given a caller who says that more comes
    place, token = urlsplit(site.url), site.token("gone")
    head = f"POST {FILES}?name=x.csv HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {token}\r\n"
    head += "Content-Type: text/csv\r\nContent-Length: 5000000\r\n\r\nprompt\n"
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(head.encode() + b"a pear\n" * 300_000)
        until(lambda: temporary(), 10, "the upload to begin")
    # When it is gone, Then so is what came of it
    until(lambda: not temporary(), 10, f"nothing to be left: {temporary()}")
    assert keys(site, "datasets-files/gone/") == []


def test_one_owner_uploads_so_many_files_at_once(site: Site) -> None:
    place, token = urlsplit(site.url), site.token("many")
    head = f"POST {FILES}?name=x.csv HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {token}\r\n"
    head += "Content-Type: text/csv\r\nContent-Length: 5000\r\n\r\nprompt\n"
    opened = [socket.create_connection((place.hostname, place.port)) for _ in range(2)]
    try:
        for one in opened:
            one.sendall(head.encode())
        until(lambda: len(temporary()) == 2, 10, "both to begin")
        with site.anonymous(Authorization=f"Bearer {token}") as client, site.client() as other:
            problem(client.post(FILES, params={"name": "x.csv"}, content=FRUIT, headers=CSV), 503, "busy")
            stored(other)
    finally:
        for one in opened:
            one.close()
    until(lambda: not temporary(), 10, "nothing to be left")


# ---------------------------------------------------------------------------------------------------------- previews


def test_a_preview_tells_what_rows_become(ada: httpx2.Client) -> None:
    # Given a table whose columns are called otherwise
    file = stored(ada, "caption,steps,mood,notes\na {red|green} pear,3,calm,x\na plum,none,wild,y\n,2,,\n")["id"]
    # When
    found = previewed(
        ada, file, chain="txt", columns={"prompt": "caption"}, left_out=["notes"], sweep=[{"seed": [1, 2]}],
        templates="all", negative_prompt="a blur",
    )  # fmt: skip
    # Then
    gives = {one["name"]: one["gives"] for one in found["columns"]}
    assert gives == {"caption": "prompt", "steps": "steps", "mood": "", "notes": None}
    assert {"prompt", "seed", "image", "guidance_scale", "0.guidance_scale"} <= set(found["known"])
    assert found["counts"] == [{"row": 1, "samples": 4}, {"row": 3, "samples": 2}]
    told = [(one["prompt"], one["seed"], one["changes"]) for one in found["first"][:3]]
    assert told == [("a red pear", 1, {"steps": 3}), ("a red pear", 2, {"steps": 3}), ("a green pear", 1, {"steps": 3})]
    assert found["first"][0]["columns"] == {"mood": "calm"}
    assert found["first"][0]["negative_prompt"] == "a blur"
    assert [(one["row"], one["column"], one["code"]) for one in found["errors"]] == [(2, "steps", "invalid_field")]
    assert (found["sizes"], found["stages"][0]["kind"], found["cost_s"]) == ([[64, 64]], "text2img", None)
    # And a column is what is said, whatever its name
    found = previewed(ada, file, automatic=False, columns={"prompt": "mood"})
    assert {one["name"]: one["gives"] for one in found["columns"]}["steps"] == ""
    assert found["errors"] == []


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"columns": {"prompt": "nope"}}, ("columns.prompt", "unknown_column")),
        ({"columns": {"nope": "label"}}, ("columns.nope", "invalid_field")),
        ({"left_out": ["nope"]}, ("left_out", "unknown_column")),
        ({"left_out": ["label"], "columns": {"prompt": "label"}}, ("left_out", "invalid_field")),
        ({"sweep": [{"nope": [1]}]}, ("sweep.nope", "unknown_field")),
        ({"sweep": [{"seed": [1, 2], "prompt": ["a"]}]}, ("sweep.0", "invalid_field")),
        ({"sweep": [{"steps": [2, 0]}]}, ("sweep.steps", "invalid_field")),
        ({"sweep": [{"checkpoint": ["nope"]}]}, ("sweep.checkpoint", "unknown_checkpoint")),
        ({"parameters": {"steps": 0}}, ("stages.0.num_inference_steps", "invalid_field")),
        ({"parameters": {"checkpoint": "nope"}}, ("stages.0.checkpoint", "unknown_checkpoint")),
        ({"chain": "nope"}, ("", "unknown_preset")),
        ({"chain": {"stages": [{"kind": "nope"}]}}, ("stages.0.kind", "unknown_kind")),
        ({"chain": {"stages": [{"kind": "inpaint", "mask": "/etc/passwd"}]}}, ("stages.0.mask", "bad_image")),
        ({"parameters": {"nope": 1}}, ("nope", "unknown_field")),
        ({"shard_samples": 10_001}, ("shard_samples", "invalid_field")),
        ({"image_format": "gif"}, ("image_format", "invalid_field")),
        ({"file": "0" * 64 + "/rows.csv"}, ("file", "bad_file")),
        ({"file": "../../x"}, ("file", "invalid_field")),
    ],
)
def test_what_is_asked_wrongly_is_told_at_once(ada: httpx2.Client, given: Json, wrong: tuple[str, str]) -> None:
    body = {"file": stored(ada)["id"], **given}
    for path, extra in ((f"{DATASETS}/preview", {}), (DATASETS, {"name": "wrong"})):
        told = problem(ada.post(path, json={**body, **extra}), 422, wrong[1])
        assert not wrong[0] or wrong in locs(told)
    assert ada.get(f"{DATASETS}/wrong").status_code == 404


def test_rows_and_sweeps_name_ones_own_images_alone(site: Site, ada: httpx2.Client, tmp_path: Path) -> None:
    # Given an image of ada's, one of bob's, and one that lies on the farm's machine
    png = {"Content-Type": "image/png"}
    mine = ada.post("/api/v1/uploads", content=picture("white"), headers=png).json()["image"]
    with site.client() as bob:
        theirs = bob.post("/api/v1/uploads", content=picture("blue"), headers=png).json()["image"]
    (tmp_path / "here.png").write_bytes(picture("green"))
    places = [theirs, str(tmp_path / "here.png"), "file:///etc/passwd", f"s3://{site.settings.bucket}/x", "here.png"]
    file = stored(ada, "prompt,image\n" + "".join(f"a,{one}\n" for one in [mine, *places]))["id"]
    # When
    found = previewed(ada, file, chain="img")
    # Then
    assert [one["row"] for one in found["counts"]] == [1]
    assert [(one["row"], one["column"], one["code"]) for one in found["errors"]] == [
        (row, "image", "bad_image") for row in range(2, 7)
    ]
    # And so with images that stages name, in a column or in an axis
    chain = {"stages": [{"kind": "inpaint", "mask": mine}]}
    cells = "".join(f"a,{mine},{one}\n" for one in [mine, *places])
    masks = stored(ada, f"prompt,image,mask\n{cells}")["id"]
    told = previewed(ada, masks, chain=chain)
    assert [one["row"] for one in told["errors"]] == list(range(2, 7)), told["errors"]
    for place in places:
        body = {"file": file, "chain": chain, "sweep": [{"mask": [mine, place]}]}
        assert locs(problem(ada.post(f"{DATASETS}/preview", json=body), 422, "bad_image")) == {
            ("sweep.mask", "bad_image")
        }
    # When it is planned nevertheless, Then it is refused by whoever plans it, too
    asked(ada, "own-images", (f"prompt,image,mask\n{cells}"), chain=chain)
    carry_out(site.farm, "own-images", lambda: False)
    refused = ada.get(f"{DATASETS}/own-images").json()["refused"]
    assert (refused["count"], [one["row"] for one in refused["rows"]]) == (5, list(range(2, 7)))


# ------------------------------------------------------------------------------------------------------------- plans


def test_a_dataset_is_asked_for_planned_and_steered(site: Site, ada: httpx2.Client) -> None:
    # Given
    told = asked(ada, "fruit", sweep=[{"seed": [1, 2]}])
    assert (told["state"], told["samples"]) == ("planning", 0)
    # The same once more is the same
    assert asked(ada, "fruit", sweep=[{"seed": [1, 2]}])["state"] == "planning"
    # What is not planned cannot be steered, and has no shards
    problem(ada.post(f"{DATASETS}/fruit/start"), 409, "conflict")
    assert ada.get(f"{DATASETS}/fruit/shards").json()["shards"] == []
    for what in ("card", "plan"):
        assert "planned" in problem(ada.get(f"{DATASETS}/fruit/{what}"), 409, "conflict")["detail"]
    # When
    carry_out(site.farm, "fruit", lambda: False)
    # Then
    found = ada.get(f"{DATASETS}/fruit").json()
    assert (found["state"], found["samples"], found["shards"], found["rows"]) == ("planned", 6, 3, 3)
    plan = found["plan"]
    assert (plan["source"], plan["columns"], plan["sizes"]) == ("rows.csv", ["label"], [[64, 64]])
    assert [one["prompt"] for one in plan["first"]] == ["a pear", "a pear"]
    assert plan["size_bytes_most"] == 6 * 64 * 64 * 3
    load = {one["loader"]: one["text"] for one in found["load"]}
    assert load.keys() >= {"datasets", "webdataset"}
    assert site.farm.store.endpoint == site.settings.s3_endpoint
    assert all(site.farm.store.endpoint in load[one] for one in ("bucket", "sync"))
    assert "/api/v1/datasets/fruit/shards/[00000-00002]/{tar,parquet}" in load["fetch"]
    assert ada.get(f"{DATASETS}/fruit/shards").json() == {"shards": [], "damaged": [], "next": None}
    assert ada.get(f"{DATASETS}/fruit/failures").json() == {"failures": [], "next": None}
    problem(ada.get(f"{DATASETS}/fruit/shards/0/tar"), 404, "not_found")
    assert "# fruit" in ada.get(f"{DATASETS}/fruit/card").text
    problem(ada.get(f"{DATASETS}/fruit/shards/0/sheet"), 404, "not_found")
    # And the same once more is still the same, another one is none
    assert asked(ada, "fruit", sweep=[{"seed": [1, 2]}])["state"] == "planned"
    other = {"name": "fruit", "file": stored(ada)["id"], "shard_samples": 3}
    problem(ada.post(DATASETS, json=other), 409, "conflict")
    # When it is steered
    problem(ada.post(f"{DATASETS}/fruit/pause"), 409, "conflict")
    problem(ada.post(f"{DATASETS}/fruit/retry"), 409, "conflict")
    assert ada.patch(f"{DATASETS}/fruit", json={"priority": 90}).json()["priority"] == 90
    assert ada.post(f"{DATASETS}/fruit/start").json()["state"] == "running"
    problem(ada.delete(f"{DATASETS}/fruit"), 409, "conflict")
    assert ada.post(f"{DATASETS}/fruit/pause").json()["state"] == "paused"
    assert ada.post(f"{DATASETS}/fruit/resume").json() == {
        **ada.get(DATASETS).json()["datasets"][-1], "state": "running", "priority": 90,
    }  # fmt: skip
    ada.post(f"{DATASETS}/fruit/pause")
    # When it is deleted, Then nothing of it is left but its file
    assert ada.delete(f"{DATASETS}/fruit").status_code == 204
    problem(ada.get(f"{DATASETS}/fruit"), 404, "not_found")
    assert Folder(site.farm.store, "fruit").names("") == []


def test_a_dataset_is_told_of_when_its_checkpoint_is_gone(site: Site, ada: httpx2.Client) -> None:
    # Given a dataset that was planned
    before = planned(site, ada, "bereft")
    catalog = site.farm.catalog
    lock = catalog.lock_path(catalog.checkpoints[catalog.defaults["text2img"]])
    away = lock.rename(lock.with_name("away"))
    try:
        # When what it was planned with is not here any more
        found = ada.get(f"{DATASETS}/bereft")
    finally:
        away.rename(lock)
    # Then all but what it would take is told
    assert (found.status_code, found.json()["plan"]["cost_s"]) == (200, None)
    assert found.json()["plan"]["first"] == before["plan"]["first"]


def test_why_a_dataset_does_not_go_on_is_told(site: Site, ada: httpx2.Client) -> None:
    # Given one that runs
    planned(site, ada, "stuck")
    assert ada.post(f"{DATASETS}/stuck/start").json()["trouble"] is None
    folder = Folder(site.farm.store, "stuck")
    # When its feeder meets something, Then that is told
    folder.tell_trouble(InvalidJob("the checkpoint x is not here", code="not_pulled"))
    trouble = ada.get(f"{DATASETS}/stuck").json()["trouble"]
    assert (trouble["code"], trouble["message"]) == ("not_pulled", "the checkpoint x is not here")
    # And of what nobody foresaw no more than that
    folder.tell_trouble(FarmError("OSError: /home/ada/secret on host db1"))
    (found,) = [one for one in ada.get(DATASETS).json()["datasets"] if one["name"] == "stuck"]
    assert found["trouble"] == {"code": "internal", "message": CODES["internal"], "errors": []}
    # And of one that is not to go on nothing
    assert ada.post(f"{DATASETS}/stuck/pause").json()["trouble"] is None


def test_wrong_rows_are_told_and_may_be_left_out(site: Site, ada: httpx2.Client) -> None:
    # Given one good row and two that are not
    data = "prompt,steps\na pear,2\na plum,-1\na fig\n"
    # When
    found = planned(site, ada, "wrong-rows", data)
    # Then
    refused = found["refused"]
    assert (found["state"], found["plan"], refused["code"], refused["count"]) == ("refused", None, "bad_rows", 2)
    assert [(one["row"], one["column"], one["code"]) for one in refused["rows"]] == [
        (2, "steps", "invalid_field"), (3, "", "bad_row"),
    ]  # fmt: skip
    # When it is asked for again under the same name, Then it is planned without them
    found = planned(site, ada, "wrong-rows", data, partial=True)
    assert (found["state"], found["rows"], found["rejected"], found["refused"]) == ("planned", 1, 2, None)
    assert [one["row"] for one in found["plan"]["rejects"]] == [2, 3]


def test_what_was_refused_is_its_owners_to_ask_for_again(site: Site, ada: httpx2.Client) -> None:
    assert planned(site, ada, "mine", "prompt,steps\na,-1\n")["state"] == "refused"
    with site.client() as bob:
        problem(bob.post(DATASETS, json={"name": "mine", "file": stored(bob)["id"]}), 409, "conflict")
    assert ada.get(f"{DATASETS}/mine").json()["state"] == "refused"


def test_a_file_that_goes_while_it_is_asked_for_is_asked_for_again(
    site: Site, ada: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an old file that is deleted when the wish for a dataset of it was checked
    rows = "prompt\nlong ago\n"
    body, store = {"name": "too-late", "file": stored(ada, rows)["id"]}, site.farm.store

    def slower(farm: Farm, asked: Asked) -> bool:
        drop(store, [asked.file + HEAD])
        return ask(farm, asked)

    monkeypatch.setattr(dataset_asks, "ask", slower)
    # When, Then that is told, and no wish is left that cannot be planned
    told = problem(ada.post(DATASETS, json=body), 422, "bad_file")
    assert locs(told) == {("file", "bad_file")}
    problem(ada.get(f"{DATASETS}/too-late"), 404, "not_found")
    # And once it is uploaded again, it is planned
    monkeypatch.undo()
    assert planned(site, ada, "too-late", rows)["state"] == "planned"


def test_a_file_that_is_uploaded_again_is_there_for_as_long(site: Site, ada: httpx2.Client) -> None:
    rows = "prompt\nagain and again\n"
    assert stored(ada, rows) == stored(ada, rows)
    (before,) = [one for one in uploads(site.farm.store) if stored(ada, rows)["id"] in one.key]
    until(lambda: (stored(ada, rows), max(one.at for one in uploads(site.farm.store)) > before.at)[1], 20)
    # Also where of the file nothing but its first rows is left
    drop(site.farm.store, [before.key])
    stored(ada, rows)
    assert before.key in [one.key for one in uploads(site.farm.store) if one.headed]


def test_somebody_elses_file_is_none(site: Site, ada: httpx2.Client) -> None:
    file = stored(ada, "prompt\nmy secret\n")["id"]
    with site.client() as bob:
        of_theirs = problem(bob.post(f"{DATASETS}/preview", json={"file": file}), 422, "bad_file")
        of_none = problem(bob.post(f"{DATASETS}/preview", json={"file": file.replace(file[0], "0")}), 422, "bad_file")
        assert {**of_theirs, "request_id": ""} == {**of_none, "request_id": ""}
        # The same bytes of one's own are told of as new
        assert stored(bob, "prompt\nmy secret\n")["id"] == file


def test_a_deleted_dataset_is_not_planned_behind_its_owners_back(site: Site, ada: httpx2.Client) -> None:
    asked(ada, "shortlived")
    assert ada.delete(f"{DATASETS}/shortlived").status_code == 204
    carry_out(site.farm, "shortlived", lambda: False)
    problem(ada.get(f"{DATASETS}/shortlived"), 404, "not_found")
    assert Folder(site.farm.store, "shortlived").names("") == []


def test_lists_come_in_pages_and_have_ones_own(site: Site) -> None:
    with site.client("cleo") as cleo, site.client() as bob:
        for number in range(12):
            asked(bob if number % 3 else cleo, f"page-{number:02d}")
        names, cursor = list[str](), None
        while True:
            page = cleo.get(DATASETS, params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
            names += [one["name"] for one in page["datasets"]]
            if (cursor := page["next"]) is None:
                break
        assert names == ["page-00", "page-03", "page-06", "page-09"]
        assert {one["owner"] for one in cleo.get(DATASETS).json()["datasets"]} == {"cleo"}
    with site.client("root", "admin") as root:
        assert len({one["owner"] for one in root.get(DATASETS).json()["datasets"]}) > 1


def test_who_may_only_read_changes_nothing(site: Site, ada: httpx2.Client) -> None:
    asked(ada, "readable")
    with site.client("root", "read") as reader:
        assert reader.get(DATASETS).status_code == 200
        problem(reader.post(FILES, params={"name": "x.csv"}, content=FRUIT, headers=CSV), 403, "forbidden")
        problem(reader.post(DATASETS, json={"name": "x1", "file": "0" * 64 + "/x.csv"}), 403, "forbidden")
        problem(reader.delete(f"{DATASETS}/readable"), 403, "forbidden")


def test_what_strangers_wrote_is_told_as_it_is(site: Site, ada: httpx2.Client) -> None:
    # Given names and cells that are HTML, and long ones
    data = 'prompt,"<script>x</script>",=cmd\n"<img src=x>",' + "y" * 5000 + ",+1\n"
    found = planned(site, ada, "odd-words", data)
    # Then they are JSON, and short
    first = found["plan"]["first"][0]
    assert first["prompt"] == "<img src=x>"
    assert first["columns"]["=cmd"] == "+1"
    assert len(first["columns"]["<script>x</script>"]) == 300
    assert json.dumps(found)
