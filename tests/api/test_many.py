"""Are many jobs steered, and many pictures taken home, in one call, by those alone whose they are?"""

from __future__ import annotations

import json
import secrets
import zipfile
from io import BytesIO

import httpx2
import pytest
from PIL import Image

from farm.errors import Failure
from farm.image import to_png
from farm.job import canonical
from farm.records import Commit
from tests.api.conftest import PNG, Json, Site, locs, made, picture, problem, txt
from tests.test_cli import Hand

JOBS = "/api/v1/jobs"
QUEUE = "text2img.tiny"


def run_of(client: httpx2.Client, count: int) -> list[str]:
    return [one["id"] for one in made(client.post(JOBS, json=txt(count=count)))["jobs"]]


def states(client: httpx2.Client, jobs: list[str]) -> list[str]:
    return [client.get(f"{JOBS}/{job}").json()["state"] for job in jobs]


def steer(client: httpx2.Client, act: str, hindered: str = "", **which: object) -> Json:
    answer = client.post(f"{JOBS}/steer", json={"act": act, **which})
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    assert found.pop("hindered") == hindered
    return found


def drawn(client: httpx2.Client, hand: Hand, **given: object) -> str:
    """A job that is done."""
    job = str(made(client.post(JOBS, json=txt(**given)))["jobs"][0]["id"])
    hand.serve(hand.claim(QUEUE))
    return job


def test_a_limit_ends_a_call_with_what_was_done(site: Site) -> None:
    # Given three cancelled jobs of somebody who may have two open ones
    text = site.tokens.create("cleo", ("read", "submit"), max_open_jobs=2)[1]
    with site.anonymous(Authorization=f"Bearer {text}") as cleo:
        jobs = run_of(cleo, 2)
        steer(cleo, "cancel", jobs=jobs)
        jobs += run_of(cleo, 1)
        steer(cleo, "cancel", jobs=jobs)
        # When all are to be tried again, Then two are, and why the third is not is said
        why = "all of at most 2 jobs are open; wait until some have ended, or cancel some"
        assert steer(cleo, "retry", why, jobs=jobs) == {"count": 2, "more": False, "kept": 0}
        assert states(cleo, jobs) == ["queued", "queued", "cancelled"]
        # And where none can be, the call is refused
        problem(cleo.post(f"{JOBS}/steer", json={"act": "retry", "jobs": jobs[2:]}), 429, "quota_exceeded")


def test_named_jobs_are_steered(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    jobs = run_of(ada, 4)
    for act, after in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        # When two are steered, Then they and no others are
        assert steer(ada, act, jobs=jobs[:2]) == {"count": 2, "more": False, "kept": 0}
        assert states(ada, jobs) == [after, after, "queued", "queued"], act
    # And one whose state does not allow it stays as it is, and is not counted
    assert steer(ada, "resume", jobs=jobs) == {"count": 0, "more": False, "kept": 0}
    assert steer(ada, "delete", jobs=jobs) == {"count": 0, "more": False, "kept": 0}
    assert steer(ada, "cancel", jobs=[*jobs, jobs[0], "nobodys"]) == {"count": 4, "more": False, "kept": 0}
    assert steer(ada, "delete", jobs=jobs[:3]) == {"count": 3, "more": False, "kept": 0}
    assert [ada.get(f"{JOBS}/{job}").status_code for job in jobs] == [404, 404, 404, 200]


def test_all_in_a_state_are_steered_and_nobody_elses(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given jobs of two owners, one done, one failed, three that wait
    mine = run_of(ada, 5)
    hand.serve(hand.claim(QUEUE))
    site.farm.ledger.fail([hand.claim(QUEUE)], Failure.DETERMINISTIC, "nan_output", "")
    with site.client() as bob:
        theirs = run_of(bob, 2)
        # When, Then
        assert steer(ada, "retry", jobs="failed")["count"] == 1
        assert steer(ada, "pause", jobs="open")["count"] == 4
        assert states(bob, theirs) == ["queued", "queued"]
        assert steer(ada, "cancel", jobs="open")["count"] == 4
        assert steer(ada, "cancel", jobs=theirs) == {"count": 0, "more": False, "kept": 0}
        assert steer(ada, "delete", jobs="ended")["count"] == 5
        assert ada.get(JOBS).json()["jobs"] == []
        assert states(bob, theirs) == ["queued", "queued"]
        assert steer(bob, "cancel", jobs="open")["count"] == 2
    assert len(mine) == 5


@pytest.mark.parametrize(
    "body",
    [
        {"act": "cancel"},
        {"act": "cancel", "jobs": "done"},
        {"act": "cancel", "jobs": []},
        {"act": "eat", "jobs": "open"},
    ],
)
def test_either_names_or_a_state(ada: httpx2.Client, body: Json) -> None:
    problem(ada.post(f"{JOBS}/steer", json=body), 422, "invalid_field")


def test_pictures_come_as_one_zip(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given two that are done, and one that waits
    hand.colour = "navy"
    first, second = drawn(ada, hand), drawn(ada, hand)
    waits = run_of(ada, 1)[0]
    # When
    answer = ada.get("/api/v1/archive", params={"job": [first, second, waits, first]})
    # Then each is in it once, as it is in the store
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(BytesIO(answer.content)) as found:
        assert found.testzip() is None
        names = found.namelist()
        assert [name.rpartition(".")[0][-36:] for name in names] == [first, second]
        # And it is called by what it shows
        assert names[0].startswith("a-pear-")
        result = site.farm.job(first)
        assert found.read(names[0]) == result.read(result.results[0])
    # And none is told to anybody else, and none is not a zip of nothing
    with site.client() as bob:
        problem(bob.get("/api/v1/archive", params={"job": [first]}), 404, "not_found")
    problem(ada.get("/api/v1/archive", params={"job": [first, "nobodys"]}), 404, "not_found")
    problem(ada.get("/api/v1/archive", params={"job": [waits]}), 404, "not_found")
    problem(ada.get("/api/v1/archive", params={"job": ["x"] * 401}), 422, "invalid_field")


def test_stages_come_as_a_film(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a chain of two stages, of which the first one's picture was kept
    job = str(made(ada.post(JOBS, json=txt(chain="x2", keep="image")))["jobs"][0]["id"])
    claim = hand.claim(QUEUE)
    data = to_png(Image.new("RGB", (64, 64), "red"))
    kept = {"keep": "image", "blob": hand.store.put_blob(data, "image/png"), "bytes": len(data), "size": [64, 64]}
    output = hand.store.put_blob(b"latents", "application/octet-stream")
    told = {"blob": output, "bytes": 7, "medium": "latents", "size": [64, 64], "kept": kept}
    site.farm.ledger.commit([Commit(claim, canonical(told), claim.finishing)])
    problem(ada.get(f"{JOBS}/{job}/stages.gif"), 404, "not_found")
    hand.colour = "blue"
    hand.serve(hand.claim("upscale_latent.tiny-x2"))
    # When
    answer = ada.get(f"{JOBS}/{job}/stages.gif")
    # Then both are in it, in their order, as large as the last one
    assert answer.headers["content-type"] == "image/gif"
    with Image.open(BytesIO(answer.content), formats=["GIF"]) as film:
        assert (film.n_frames, film.size) == (2, (128, 128))  # type: ignore[attr-defined]
        colours = []
        for frame in range(2):
            film.seek(frame)
            colours.append(film.convert("RGB").getpixel((9, 9)))
    assert colours[0][0] > 200 > 50 > colours[0][2]  # type: ignore[index, operator]
    assert colours[1][2] > 200 > 50 > colours[1][0]  # type: ignore[index, operator]


def test_a_result_is_what_another_job_begins_with(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    job = drawn(ada, hand)
    # When it is to be an input
    answer = ada.post(f"{JOBS}/{job}/artifacts/0/use")
    # Then it is as if it had been uploaded
    assert answer.status_code == 201
    found = answer.json()
    assert (found["width"], found["height"]) == (64, 64)
    made(ada.post(JOBS, json=txt(chain="img", image=found["image"])))
    with site.client() as bob:
        problem(bob.post(f"{JOBS}/{job}/artifacts/0/use"), 404, "not_found")
        refused = problem(bob.post(JOBS, json=txt(chain="img", image=found["image"])), 422, "bad_image")
        assert locs(refused) == {("image", "bad_image")}
    problem(ada.post(f"{JOBS}/{job}/artifacts/7/use"), 404, "not_found")


def test_a_picture_says_how_it_was_made(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a result of the farm's
    job = drawn(ada, hand, prompt="a plum", seed=77, parameters={"0.num_inference_steps": 3})
    result = site.farm.job(job)
    data = result.read(result.results[0])
    # When
    found = ada.post("/api/v1/pictures/read", content=data, headers=PNG).json()
    # Then it can be drawn again
    assert (found["source"], found["chain"]["prompt"], found["chain"]["seed"]) == ("latent-farm", "a plum", 77)
    assert found["chain"]["stages"][0]["num_inference_steps"] == 3
    again = made(ada.post(JOBS, json={"chain": found["chain"]}))["jobs"][0]["id"]
    recipes = [json.loads(site.farm.job(one).record.spec)["recipes"] for one in (job, again)]
    assert recipes[0] == recipes[1]
    # And one that says nothing is refused
    problem(ada.post("/api/v1/pictures/read", content=picture(), headers=PNG), 422, "bad_file")
    problem(ada.post("/api/v1/pictures/read", content=b"no", headers=PNG), 422, "bad_file")
    problem(ada.post("/api/v1/pictures/read", content=b"no"), 415, "bad_media_type")


def test_stages_are_counted_by_the_minute(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    def counted() -> int:
        found = ada.get("/api/v1/throughput", params={"minutes": 5}).json()
        assert len(found["minutes"]) == 5
        return sum(found["queues"].get(QUEUE, []))

    before = counted()
    drawn(ada, hand)
    drawn(ada, hand)
    assert counted() == before + 2
    problem(ada.get("/api/v1/throughput", params={"minutes": 1441}), 422, "invalid_field")


def test_a_workers_pictures_are_counted_beside_its_stages(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a chain of two stages, and a worker that nobody has heard of
    name, chain = f"w{secrets.token_hex(4)}", {"stages": [{"kind": "text2img"}, {"kind": "upscale"}]}
    made(ada.post(JOBS, json=txt(chain=chain)))
    # When it draws the first, Then it has done a stage, and finished no picture
    counted = []
    for queue in (QUEUE, "upscale.tiny-x4"):
        (claim,), _ = hand.ledger.claim([queue], name, "boot")
        hand.serve(claim)
        hand.ledger.register(name, "boot", [queue], "idle", {})
        with site.client("", "admin") as admin:
            found = {one["name"]: one for one in admin.get("/api/v1/workers").json()}
        counted.append((round(found[name]["per_minute"]), round(found[name]["images_per_minute"])))
    # And with the last stage it has finished one
    assert counted == [(1, 0), (2, 1)]
    hand.ledger.unregister(name, "boot")
