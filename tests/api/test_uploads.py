"""Do images get in, as pixels alone, and only for those who sent them?"""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import httpx2
import pytest
from PIL import Image, PngImagePlugin

from tests.api.conftest import PNG, Site, locs, made, picture, problem, txt

UPLOADS, JOBS = "/api/v1/uploads", "/api/v1/jobs"


def stored(client: httpx2.Client, data: bytes) -> dict[str, Any]:
    """What an upload that succeeded answers."""
    answer = client.post(UPLOADS, content=data, headers=PNG)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_upload_is_its_pixels_alone(site: Site, ada: httpx2.Client, kind: str) -> None:
    # Given a file with something behind its end
    data = picture(kind=kind) + b"<script>alert(1)</script>"
    # When
    found = stored(ada, data)
    # Then
    kept = site.farm.store.get_blob(found["image"].removeprefix("sha256:"), 1 << 20)
    assert len(kept) == found["size_bytes"]
    assert b"script" not in kept
    opened = Image.open(BytesIO(kept))
    assert (opened.format, opened.size, opened.mode) == ("PNG", (64, 64), "RGB")
    assert (found["width"], found["height"]) == (64, 64)
    # And the same pixels have the same name
    if kind != "PNG":
        return
    text = PngImagePlugin.PngInfo()
    text.add_text("place", "home")
    out = BytesIO()
    Image.new("RGB", (64, 64), "teal").save(out, "PNG", pnginfo=text)
    assert stored(ada, out.getvalue()) == found


def test_a_chain_begins_with_an_upload(site: Site, ada: httpx2.Client) -> None:
    # Given
    image = stored(ada, picture("red", (100, 80)))["image"]
    # When
    found = made(ada.post(JOBS, json=txt(chain="img", image=image, sweep=[{"strength": [0.3, 0.6]}])))
    # Then all variants begin with the same picture, fitted
    records = [site.farm.job(job["id"]) for job in found["jobs"]]
    inputs = [record.input_images()["input.png"] for record in records]
    assert inputs[0] == inputs[1]
    assert Image.open(BytesIO(inputs[0])).size == (96, 80)


def test_a_stage_takes_an_upload(site: Site, ada: httpx2.Client) -> None:
    # Given
    image, mask = (stored(ada, picture(colour))["image"] for colour in ("blue", "white"))
    # When
    stages = [{"kind": "inpaint", "mask": mask}]
    ask = {"chain": {"stages": stages}, "image": image}
    assert ada.post(f"{JOBS}/dry-run", json=ask).status_code == 200
    found = made(ada.post(JOBS, json=ask))
    # Then
    assert len(site.farm.job(found["jobs"][0]["id"]).input_images()) == 2


def test_an_axis_may_be_of_uploads(site: Site, ada: httpx2.Client) -> None:
    # Given two masks, and one of somebody else's
    image, *masks = (stored(ada, picture(colour))["image"] for colour in ("navy", "white", "silver"))
    ask: dict[str, Any] = {"chain": {"stages": [{"kind": "inpaint", "mask": masks[0]}]}, "image": image, "seed": 7}
    # When
    found = made(ada.post(JOBS, json={**ask, "sweep": [{"mask": masks}, {"strength": [0.3, 0.6]}]}))
    # Then each variant has its own
    given = [site.farm.job(job["id"]).input_images() for job in found["jobs"]]
    assert [len(one) for one in given] == [2] * 4
    assert given[0] == given[1] != given[2] == given[3]
    # And what is not one's own is refused, with its variant
    with site.client() as bob:
        theirs = stored(bob, picture("gold"))["image"]
    told = problem(ada.post(JOBS, json={**ask, "sweep": [{"mask": [masks[0], theirs]}]}), 422, "bad_image")
    assert "(variant 1)" in told["detail"]


def test_somebody_elses_upload_is_none(site: Site, ada: httpx2.Client) -> None:
    # Given
    image = stored(ada, picture("pink"))["image"]
    with site.client() as bob:
        # When, Then: as if it were not stored
        none = "sha256:" + "0" * 64
        for ask in (
            txt(chain="img", image=image),
            {"chain": {"stages": [{"kind": "inpaint", "mask": image}]}},
            {"chain": {"stages": [{"kind": "depth2img", "depth": image}]}},
            {"chain": {"stages": [{"kind": "text2img", "controls": [{"name": "tiny-canny", "image": image}]}]}},
        ):
            told = problem(bob.post(JOBS, json=ask), 422, "bad_image")
            assert "upload it" in told["detail"]
            of_none = bob.post(JOBS, json=json.loads(json.dumps(ask).replace(image, none)))
            assert {**of_none.json(), "request_id": ""} == {**told, "request_id": ""}


@pytest.mark.parametrize(
    ("data", "kind", "status", "code"),
    [
        (b"", "image/png", 422, "bad_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", 422, "bad_image"),
        (picture()[:60], "image/png", 422, "bad_image"),
        (picture(), "image/svg+xml", 415, "bad_media_type"),
        (picture(), "text/html", 415, "bad_media_type"),
        (picture(), "multipart/form-data; boundary=x", 415, "bad_media_type"),
        (picture(size=(8200, 1)), "image/png", 413, "body_too_large"),
    ],
)
def test_what_is_no_image_is_refused(ada: httpx2.Client, data: bytes, kind: str, status: int, code: str) -> None:
    answer = ada.post(UPLOADS, content=data, headers={"Content-Type": kind})
    found = problem(answer, status, code)
    assert status != 422 or locs(found) == {("image", "bad_image")}


def test_an_upload_is_counted_as_it_comes(site: Site, ada: httpx2.Client) -> None:
    # Given a body without a length, larger than an image may be
    limit = site.settings.max_upload_bytes

    def parts() -> Any:
        for _ in range(limit // (1 << 20) + 2):
            yield bytes(1 << 20)

    # When, Then
    problem(ada.post(UPLOADS, content=parts(), headers=PNG), 413, "body_too_large")
    # And of one with a length, the length is enough
    problem(ada.post(UPLOADS, content=bytes(limit + 1), headers=PNG), 413, "body_too_large")
