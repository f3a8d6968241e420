"""Is what belongs to somebody else, or to nobody, as if it were not there, whatever call names it?"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from farm.tokens import SCOPES
from tests.api.calls import Call, calls
from tests.api.conftest import Json, Site, made, problem, txt
from tests.api.rows import planned
from tests.test_bad_inputs import IDS

OWNED = {"job", "run", "dataset"}
"""Ids of what has an owner."""
SHARED = {"kind", "worker", "name", "index", "sha256", "token", "shard"}
"""Ids of what has none: what the farm can draw, who works on it, what is in quarantine, and what is within a job."""
BY_ID = [call for call in calls() if call.names]
OF_OWNERS = [call for call in BY_ID if OWNED & set(call.names)]
NOBODYS = {
    "job": "00000000-0000-7000-8000-000000000000", "run": "none", "index": "0", "sha256": "0" * 64, "dataset": "none",
    "shard": "0",
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(site: Site) -> Iterator[Json]:
    """A run that somebody else submitted, and a dataset of theirs that was planned."""
    with site.client("ada") as ada:
        found = made(ada.post("/api/v1/jobs", json=txt(count=2)))
        planned(site, ada, "theirs")
        yield {**found, "dataset": "theirs"}
        ada.post(f"/api/v1/runs/{found['run']}/cancel")


@pytest.mark.parametrize("call", BY_ID, ids=lambda call: call.id)
def test_every_id_is_somebodys_or_everybodys(call: Call) -> None:
    assert set(call.names) <= OWNED | SHARED, f"say whose {call.names} are"


@pytest.mark.parametrize("call", [call for call in calls() if call.known], ids=lambda call: call.id)
def test_no_call_is_answered_without_a_token(site: Site, call: Call) -> None:
    with site.anonymous() as client:
        path = call.at(dict.fromkeys(call.names, "x"))
        problem(client.request(call.method, path, json=call.body), 401, "unauthorized")


def test_only_these_calls_ask_nobody() -> None:
    assert {call.id for call in calls() if not call.known} == {"session.begin", "health.healthz", "health.readyz"}


@pytest.mark.parametrize("call", OF_OWNERS, ids=lambda call: call.id)
def test_what_is_somebody_elses_is_not_there(site: Site, theirs: Json, call: Call) -> None:
    job = theirs["jobs"][0]["id"]
    with site.client() as bob, site.client("ada") as ada:
        # When somebody else asks, Then it is as if there were none
        named = {"job": job, "run": theirs["run"], "dataset": theirs["dataset"]}
        of_theirs = bob.request(call.method, call.at({**NOBODYS, **named}), json=call.body)
        of_none = bob.request(call.method, call.at(NOBODYS), json=call.body)
        told, none = problem(of_theirs, 404, "not_found"), problem(of_none, 404, "not_found")
        assert {**told, "request_id": ""} == {**none, "request_id": ""}
        # And nothing has happened to it
        states = ada.get(f"/api/v1/runs/{theirs['run']}").json()["states"]
        assert (states, ada.get(f"/api/v1/jobs/{job}").json()["priority"]) == ({"queued": 2}, 50)
        dataset = ada.get(f"/api/v1/datasets/{theirs['dataset']}").json()
        assert (dataset["state"], dataset["priority"]) == ("planned", 50)


def test_lists_have_nothing_of_somebody_else(site: Site, theirs: Json) -> None:
    with site.client() as bob:
        assert bob.get("/api/v1/jobs").json()["jobs"] == []
        assert bob.get("/api/v1/jobs", params={"run": theirs["run"]}).json()["jobs"] == []
        assert bob.get("/api/v1/datasets").json()["datasets"] == []


def test_an_admin_sees_whose_it_is(site: Site, theirs: Json) -> None:
    with site.client("root", "admin") as root:
        assert root.get(theirs["jobs"][0]["url"]).json()["owner"] == "ada"
        assert root.get(f"/api/v1/runs/{theirs['run']}").json()["count"] == 2
        assert root.get(f"/api/v1/datasets/{theirs['dataset']}").json()["owner"] == "ada"


@pytest.mark.parametrize("call", BY_ID, ids=lambda call: call.id)
def test_what_is_no_id_is_not_found(site: Site, theirs: Json, call: Call) -> None:
    job = theirs["jobs"][0]["id"]
    odd = [*IDS, job.upper(), job + ".", job + " ", job[:-1], "..%5c", "%00", "CON"]
    with site.client("ada", *SCOPES) as ada:
        for name in call.names:
            for wrong in odd:
                # Given one wrong id among right ones, as it is and as a browser writes it
                known = {"job": job, "run": theirs["run"], "dataset": theirs["dataset"]}
                right = {**NOBODYS, **known, "kind": "text2img", "worker": "w", "name": "none"}
                for text in {quote(wrong.encode("utf-8", "surrogatepass"), safe=""), quote(wrong, safe="%/~*{}:") if
                             wrong.isascii() else ""} - {""}:  # fmt: skip
                    answer = ada.request(call.method, call.at({**right, name: text}), json=call.body)
                    # Then
                    assert answer.status_code in (404, 405, 422), (call.id, wrong, answer.text)
                    found = problem(answer, answer.status_code, answer.json()["code"])
                    assert "passwd" not in str(found)
