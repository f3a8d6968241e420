"""Are jobs tagged over HTTP by those alone whose they are, and is what has a tag found, counted, told and kept?"""

from __future__ import annotations

import json
import secrets
from typing import Any

import httpx2
import pytest

from farm.remote import RemoteFarm
from farm.tags import MOST
from tests.api.conftest import Json, Site, locs, made, problem, txt
from tests.test_cli import Hand

JOBS, TAGS = "/api/v1/jobs", "/api/v1/tags"
QUEUE = "text2img.tiny"


def submitted(client: httpx2.Client, **given: Any) -> str:
    """The id of a new job."""
    return str(made(client.post(JOBS, json=txt(**given)))["jobs"][0]["id"])


def tag(client: httpx2.Client, job: str, **change: list[str]) -> list[str]:
    """The job's tags after a change."""
    answer = client.patch(f"{JOBS}/{job}/tags", json=change)
    assert answer.status_code == 200, answer.text
    found: list[str] = answer.json()["tags"]
    return found


def listed(client: httpx2.Client, **asked: Any) -> list[str]:
    """The ids of a list, of all its pages."""
    found: list[str] = []
    cursor = None
    while True:
        page = client.get(JOBS, params={**asked, **({"cursor": cursor} if cursor else {})}).json()
        found += [job["id"] for job in page["jobs"]]
        if not (cursor := page["next"]):
            return found


def counted(client: httpx2.Client, **asked: str) -> dict[str, int]:
    return {one["tag"]: one["count"] for one in client.get(TAGS, params=asked).json()}


def test_tags_come_with_a_submit_and_change_in_any_state(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a run with tags
    found = made(ada.post(JOBS, json=txt(count=2, tags=["Fruit", "draft"])))
    first, second = (one["id"] for one in found["jobs"])
    assert ada.get(f"{JOBS}/{first}").json()["tags"] == ["Fruit", "draft"]
    # When one is drawn and tagged otherwise
    hand.serve(hand.claim(QUEUE))
    assert tag(ada, first, add=["starred"], remove=["draft"]) == ["Fruit", "starred"]
    # Then it is found by its tags
    assert listed(ada, tag="starred") == listed(ada, tag="starred", state="done") == [first]
    assert listed(ada, tag="Fruit", limit=1) == [second, first]
    assert listed(ada, tag="Fruit", run=found["run"], state="queued") == [second]
    assert listed(ada, tag="fruit") == []
    assert counted(ada) == {"Fruit": 2, "starred": 1, "draft": 1}
    # And its picture says nothing of them
    spec = ada.get(f"{JOBS}/{first}/spec").text
    assert "Fruit" not in spec + ada.get(f"{JOBS}/{first}").json()["chain"].__str__()
    assert b"Fruit" not in site.farm.job(first).pngs()[0]


def test_tags_are_no_part_of_the_recipe(site: Site, ada: httpx2.Client) -> None:
    # Given the same picture, asked for with tags and without
    ask = txt()
    one, other = (made(ada.post(JOBS, json=body))["jobs"][0]["id"] for body in (ask, {**ask, "tags": ["x"]}))
    # Then they share all that they run
    records = [site.farm.job(job).record for job in (one, other)]
    assert records[0].spec == records[1].spec
    assert records[0].stages[0].exec == records[1].stages[0].exec
    # And under one idempotency key the same tags are the same request, others are not
    key = {"Idempotency-Key": secrets.token_hex(8)}
    body = txt(tags=["x"])
    job = made(ada.post(JOBS, json=body, headers=key))["jobs"][0]["id"]
    assert ada.post(JOBS, json=body, headers=key).json()["jobs"][0]["id"] == job
    problem(ada.post(JOBS, json={**body, "tags": ["y"]}, headers=key), 409, "idempotency_conflict")
    assert tag(ada, job, add=["z"]) == ["x", "z"]


def test_many_are_tagged_at_once(site: Site, ada: httpx2.Client) -> None:
    # Given five jobs, one of somebody else's, and one that is full
    jobs = [one["id"] for one in made(ada.post(JOBS, json=txt(count=4)))["jobs"]]
    full = submitted(ada, tags=[f"t{i}" for i in range(MOST)])
    with site.client() as bob:
        theirs = submitted(bob)
        # When
        body = {"jobs": [*jobs, jobs[0], full, theirs, "nobodys"], "add": ["x"], "remove": ["y"]}
        assert ada.post(f"{JOBS}/tags", json=body).json() == {"count": 4}
        # Then
        assert listed(ada, tag="x") == jobs[::-1]
        assert bob.get(f"{JOBS}/{theirs}").json()["tags"] == []
        assert counted(bob) == {}
        # And what is undone leaves nothing
        assert ada.post(f"{JOBS}/tags", json={"jobs": jobs, "remove": ["x"]}).json() == {"count": 4}
    assert "x" not in counted(ada)
    refused = problem(ada.patch(f"{JOBS}/{full}/tags", json={"add": ["x"]}), 422, "invalid_field")
    assert locs(refused) == {("add", "invalid_field")}
    assert "16" in refused["detail"]


def test_only_the_owner_and_an_admin_tag(site: Site, ada: httpx2.Client) -> None:
    job = submitted(ada, tags=["mine"])
    with site.client() as bob, site.client("root", "read", "submit", "admin") as root:
        problem(bob.patch(f"{JOBS}/{job}/tags", json={"add": ["x"]}), 404, "not_found")
        assert tag(root, job, add=["seen"]) == ["mine", "seen"]
        assert listed(root, tag="mine") == [job]
        owner = root.get(f"{JOBS}/{job}").json()["owner"]
        assert counted(root, owner=owner) == counted(ada) == {"mine": 1, "seen": 1}
        problem(bob.get(TAGS, params={"owner": owner}), 403, "forbidden")
        assert listed(bob, tag="mine") == []
        with site.client(owner, "read") as reader:
            assert listed(reader, tag="mine") == [job]
            problem(reader.patch(f"{JOBS}/{job}/tags", json={"add": ["x"]}), 403, "forbidden")
            problem(reader.post(f"{JOBS}/tags", json={"jobs": [job], "add": ["x"]}), 403, "forbidden")
    assert ada.get(f"{JOBS}/{job}").json()["tags"] == ["mine", "seen"]


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({"tags": ["fine", "not fine"]}, "tags.1"),
        ({"tags": ["<script>alert(1)</script>"]}, "tags.0"),
        ({"tags": ["x" * 41]}, "tags.0"),
        ({"tags": "word"}, "tags"),
        ({"tags": [7]}, "tags.0"),
        ({"tags": [f"t{i}" for i in range(17)]}, "tags"),
    ],
)
def test_a_submit_with_what_is_no_tag_is_refused(ada: httpx2.Client, body: Json, loc: str) -> None:
    for path in (JOBS, f"{JOBS}/dry-run"):
        assert {place for place, _ in locs(problem(ada.post(path, json=txt(**body)), 422, "invalid_field"))} == {loc}


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, "add"),
        ({"add": ["a b"]}, "add.0"),
        ({"remove": ["ok", ""]}, "remove.1"),
        ({"add": ["x"], "remove": ["x"]}, "remove"),
    ],
)
def test_a_change_that_is_none_is_refused(site: Site, ada: httpx2.Client, body: Json, loc: str) -> None:
    job = submitted(ada)
    answers = ada.patch(f"{JOBS}/{job}/tags", json=body), ada.post(f"{JOBS}/tags", json={"jobs": [job], **body})
    assert [locs(problem(answer, 422, "invalid_field")) for answer in answers] == [{(loc, "invalid_field")}] * 2
    assert locs(problem(ada.get(JOBS, params={"tag": "a b"}), 422, "invalid_field")) == {("query.tag", "invalid_field")}


def test_what_has_a_tag_is_not_cleared_away_with_the_others(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given three that have ended, one with a star
    jobs = [submitted(ada) for _ in range(3)]
    for _ in jobs:
        hand.serve(hand.claim(QUEUE))
    tag(ada, jobs[1], add=["starred"])
    # When all that has ended is deleted, Then the starred one is left, with its picture
    body = {"act": "delete", "jobs": "ended"}
    assert ada.post(f"{JOBS}/steer", json=body).json() == {"count": 2, "more": False, "kept": 1, "hindered": ""}
    assert listed(ada) == [jobs[1]]
    assert ada.get(f"{JOBS}/{jobs[1]}/artifacts/0").status_code == 307
    # And by its own id it is deleted
    body = {"act": "delete", "jobs": [jobs[1]]}
    assert ada.post(f"{JOBS}/steer", json=body).json() == {"count": 1, "more": False, "kept": 0, "hindered": ""}
    assert (listed(ada), counted(ada)) == ([], {})


def test_the_event_streams_tell_of_tags(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a done job, and one who watches the farm
    job = submitted(ada)
    hand.serve(hand.claim(QUEUE))
    with ada.stream("GET", "/api/v1/events") as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        # When it is tagged
        tag(ada, job, add=["starred"])
        # Then that is told, with all that is known of it
        told = (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {"))
        found = next(one for one in told if one["id"] == job and one["tags"])
    assert (found["state"], found["tags"]) == ("done", ["starred"])
    assert [one["type"] for one in ada.get(f"{JOBS}/{job}/history").json()][-1] == "tagged"


def test_the_farm_here_and_the_one_elsewhere_tag_alike(site: Site, hand: Hand) -> None:
    with RemoteFarm(site.url, site.token("root", "read", "submit", "admin")) as remote:
        for farm in (site.farm, remote):
            word = f"w{secrets.token_hex(4)}"
            jobs = farm.run("a pear", chain="txt", count=2, tags=[word, "Caf\u00e9"])
            ids = [job.id for job in jobs]
            assert [job.tags for job in jobs] == [(word, "Caf\u00e9")] * 2
            jobs[0].tag(add=["more"], remove=["Cafe\u0301"])
            assert farm.tag([*ids, "nobodys"], add=["all"]) == 2
            assert jobs[0].tags == (word, "more", "all")
            assert [one.job for one in farm.jobs(tag=word)] == ids[::-1]
            assert [one.tags for one in farm.jobs(tag="more", limit=1)] == [(word, "more", "all")]
            assert farm.tags()[word] == 2
            assert farm.dry_run("a pear", chain="txt", tags=[word]).count == 1
            site.empty()
