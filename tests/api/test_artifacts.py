"""Are a job's pictures there over HTTP: the running stage's, the kept ones, the result, and all of them small?"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import secrets
import threading
from io import BytesIO
from typing import Any

import httpx2
import pytest
from PIL import Image

from farm.api import desk, uploads
from farm.api.desk import DECODERS
from farm.image import to_png
from farm.job import canonical, make_job
from farm.records import Beat, Commit
from farm.store import Store
from tests.api.conftest import PNG, Json, Site, made, picture, problem, txt
from tests.api.listener import Listener
from tests.e2e.rig import until
from tests.test_cli import Hand

JOBS = "/api/v1/jobs"


def submit(client: httpx2.Client, **given: object) -> str:
    """The address of a new job."""
    return str(made(client.post(JOBS, json=txt(**given)))["jobs"][0]["url"])


def webp(colour: str) -> bytes:
    return picture(colour, (256, 256), "WEBP")


# ------------------------------------------------------------------------------------------- the running stage


def test_a_running_stage_is_seen(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a job, and a listener
    url = submit(ada)
    problem(ada.get(f"{url}/preview"), 404, "not_found")
    job = url.rpartition("/")[2]
    with Listener(ada, f"{url}/events") as ear:
        claim = hand.claim("text2img.tiny")
        # Then whoever runs it learns that somebody looks
        until(lambda: site.farm.ledger.beat([claim], "step", 1, 9) == [Beat.WATCHED], 30, "the listener to be known")
        told = []
        for colour in ("red", "blue"):
            # When the stage shows a picture, though it makes no step
            site.farm.ledger.show([(claim, base64.b64encode(webp(colour)).decode())])
            until(lambda: ear.heard[-1].data["preview"] not in [None, *told], 30, "a picture")
            told.append(ear.heard[-1].data["preview"])
            # Then its address is told, and gives it
            answer = ada.get(told[-1])
            assert (answer.status_code, answer.content) == (200, webp(colour))
            assert answer.headers["content-type"] == "image/webp"
            # And asked again nothing is sent, until there is another
            again = ada.get(f"{url}/preview", headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert "no-cache" in again.headers["cache-control"]
        assert told[0] != told[1]
        assert site.farm.job(job).preview.getpixel((9, 9))[2] > 200  # type: ignore[union-attr, index]
        # And it is nobody else's
        with site.client() as bob:
            problem(bob.get(told[-1]), 404, "not_found")
        hand.serve(claim)
        assert ear.over.wait(30)
    assert ear.heard[-1].data["preview"] is None
    problem(ada.get(f"{url}/preview"), 404, "not_found")
    assert site.farm.job(job).preview is None


# ------------------------------------------------------------------------------------------- what is kept


def keep(site: Site, hand: Hand, how: str) -> tuple[str, bytes]:
    """Serves the first stage of a chain, keeping a picture of it; its hash and bytes."""
    claim = hand.claim("text2img.tiny")
    assert json.loads(claim.payload)["keep"] == how
    data = to_png(Image.new("RGB", (64, 64), "olive")) if how == "image" else webp("olive")
    store, output = hand.store, hand.store.put_blob(b"latents", "application/octet-stream")
    sha256 = store.put_blob(data, "image/png" if how == "image" else "image/webp")
    size = [64, 64] if how == "image" else [256, 256]
    kept = {"keep": how, "blob": sha256, "bytes": len(data), "size": size}
    told = {"blob": output, "bytes": 7, "medium": "latents", "size": [64, 64], "kept": kept}
    site.farm.ledger.commit([Commit(claim, canonical(told), claim.finishing)])
    return sha256, data


@pytest.mark.parametrize("how", ["image", "preview"])
def test_what_is_kept_is_listed_before_the_result(site: Site, hand: Hand, ada: httpx2.Client, how: str) -> None:
    # Given a chain of two stages, the first of them done
    url = submit(ada, chain="x2", keep=how)
    assert ada.get(f"{url}/artifacts").json() == []
    sha256, data = keep(site, hand, how)
    # When
    (found,) = ada.get(f"{url}/artifacts").json()
    # Then
    assert (found["index"], found["kind"], found["stage"], found["medium"]) == (1, "intermediate", 0, how)
    assert (found["sha256"], found["size_bytes"]) == (sha256, len(data))
    assert found["width"] == found["height"] == (64 if how == "image" else 256)
    leads = ada.get(found["url"])
    assert leads.status_code == 307
    answer = httpx2.get(leads.headers["location"], trust_env=False)
    assert answer.content == data
    suffix = "png" if how == "image" else "webp"
    assert answer.headers["content-disposition"].endswith(f"-stage-0.{suffix}")
    # And the result comes first, once it is there
    problem(ada.get(f"{url}/artifacts/0"), 404, "not_found")
    hand.serve(hand.claim("upscale_latent.tiny-x2"))
    result, same = ada.get(f"{url}/artifacts").json()
    assert same == found
    assert (result["index"], result["kind"], result["stage"], result["medium"]) == (0, "result", 1, "image")
    for index in (0, 1):
        with site.client() as bob:
            problem(bob.get(f"{url}/artifacts/{index}"), 404, "not_found")
            problem(bob.get(f"{url}/artifacts/{index}/thumbnail"), 404, "not_found")


def test_a_sample_of_a_dataset_is_led_to_though_no_readable_copy_of_it_is_written(site: Site, hand: Hand) -> None:
    # Given a done job whose submitter takes its picture from the store
    farm = site.farm
    one = make_job(farm.chain("txt", prompt="a quince"), farm.catalog, farm.settings)
    farm.submit([dataclasses.replace(one, collected=True)])
    hand.serve(hand.claim("text2img.tiny"))
    assert farm.ledger.job(one.id).state == "done"
    with site.client("root", "admin", "read") as root:
        # When its picture is asked for
        (found,) = root.get(f"{JOBS}/{one.id}/artifacts").json()
        answer = httpx2.get(root.get(found["url"]).headers["location"], trust_env=False)
    # Then it is there, under a name to save it by
    assert hashlib.sha256(answer.content).hexdigest() == found["sha256"]
    assert answer.headers["content-disposition"].endswith(f"{one.id}-0.png")
    # And for Python, too
    (result,) = farm.job(one.id).results
    assert result.key == farm.store.blob_key(found["sha256"])


def test_python_has_what_was_kept(site: Site, hand: Hand, ada: httpx2.Client, tmp_path: object) -> None:
    url = submit(ada, chain="x2", keep="image")
    sha256, data = keep(site, hand, "image")
    handle = site.farm.job(url.rpartition("/")[2])
    (found,) = handle.intermediates
    assert (found.stage, found.keep, found.sha256, found.size) == (0, "image", sha256, (64, 64))
    assert handle.read(found) == data
    hand.serve(hand.claim("upscale_latent.tiny-x2"))


# ------------------------------------------------------------------------------------------- thumbnails


def done(site: Site, hand: Hand, client: httpx2.Client) -> tuple[str, Json]:
    """The address of a job that is done, and its result."""
    url = submit(client)
    hand.serve(hand.claim("text2img.tiny"))
    (found,) = client.get(f"{url}/artifacts").json()
    return url, found


def test_a_thumbnail_is_made_once(site: Site, hand: Hand, ada: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    url, found = done(site, Hand(site.settings, site.farm.store, f"#{secrets.token_hex(3)}"), ada)
    written: list[str] = []
    write = Store.put_thumbnail

    def counted(store: Store, sha256: str, side: int, data: bytes) -> None:
        written.append(f"{sha256}-{side}")
        write(store, sha256, side, data)

    monkeypatch.setattr(Store, "put_thumbnail", counted)
    # When
    answer = ada.get(found["thumbnail"], params={"side": 64})
    again = ada.get(found["thumbnail"], params={"side": 64})
    # Then
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(BytesIO(answer.content), formats=["WEBP"]).size == (64, 64)
    assert again.content == answer.content == site.farm.store.thumbnail(found["sha256"], 64)
    assert written == [f"{found['sha256']}-64"]
    # And a browser may keep it for ever, and nobody in between
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    kept = ada.get(found["thumbnail"], params={"side": 64}, headers={"If-None-Match": answer.headers["etag"]})
    assert (kept.status_code, kept.content) == (304, b"")
    other = ada.get(found["thumbnail"], headers={"If-None-Match": answer.headers["etag"]})
    assert other.status_code == 200
    # And it is never larger than the picture
    assert Image.open(BytesIO(other.content)).size == (64, 64)
    problem(ada.get(f"{url}/artifacts/1/thumbnail"), 404, "not_found")


@pytest.mark.parametrize("side", [0, 63, 65, 513, 576, 100000, "x", "64.5"])
def test_a_side_is_one_of_few(site: Site, hand: Hand, ada: httpx2.Client, side: object) -> None:
    _, found = done(site, hand, ada)
    problem(ada.get(found["thumbnail"], params={"side": side}), 422, "invalid_field")


def test_a_picture_that_is_gone_has_no_thumbnail(site: Site, ada: httpx2.Client) -> None:
    # Given a result whose bytes are lost
    _, found = done(site, Hand(site.settings, site.farm.store, f"#{secrets.token_hex(3)}"), ada)
    store = site.farm.store
    store.client.delete_object(Bucket=store.bucket, Key=store.blob_key(found["sha256"]))
    # When, Then
    problem(ada.get(found["thumbnail"]), 500, "bad_blob")


def test_a_page_of_thumbnails_and_submits_do_not_wait_for_each_other(
    site: Site, hand: Hand, ada: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given as many uploads that are being decoded as there may be
    _, found = done(site, hand, ada)
    busy, go_on = threading.Semaphore(0), threading.Event()
    read = uploads.read_input

    def slowly(*given: Any) -> Any:
        busy.release()
        go_on.wait(60)
        return read(*given)

    monkeypatch.setattr(uploads, "read_input", slowly)
    senders = [
        threading.Thread(target=ada.post, args=("/api/v1/uploads",), kwargs={"content": picture(), "headers": PNG})
        for _ in range(DECODERS)
    ]
    for sender in senders:
        sender.start()
        assert busy.acquire(timeout=30)
    # When, Then
    assert ada.get(found["thumbnail"]).status_code == 200
    # And one more waits, but not for ever
    monkeypatch.setattr(desk, "DECODER_S", 0.1)
    answer = ada.post("/api/v1/uploads", content=picture(), headers=PNG)
    assert int(answer.headers["retry-after"]) == problem(answer, 503, "busy")["retry_after"]
    go_on.set()
    for sender in senders:
        sender.join()
